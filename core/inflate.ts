/**
 * Inflating until a buffer is full, as zlib does when it has no more room: the
 * rest of the stream is ignored, so it may be cut off, be anything else, or go
 * on. `fflate` validates the whole stream.
 *
 * @module
 */
import { inflateSync } from "fflate";
import { isEqual } from "./runtime.ts";

/** A stored block, the largest unit that is copied completely or not at all. */
const LARGEST_BLOCK = 65535;

/** Fill `target` from a raw deflate stream; whether that was possible. */
export function inflateExactly(
  input: Uint8Array,
  target: Uint8Array,
): boolean {
  const { length } = target;
  // For empty input, `fflate` returns the buffer unchanged.
  if (input.length === 0) return length === 0;
  try {
    // `fflate` neither grows a given buffer nor writes beyond it.
    const out = new Uint8Array(length);
    if (inflateSync(input, { out }).length === length) {
      target.set(out);
      return true;
    }
  } catch {
    // The part that is needed may be valid all the same.
  }
  // Unwritten bytes keep the filler, which differs between the two.
  const [one, other] = [0, 255].map((filler) =>
    inflateOver(new Uint8Array(length + LARGEST_BLOCK).fill(filler), input)
      .subarray(0, length)
  );
  if (!isEqual(one, other)) return false;
  target.set(one);
  return true;
}

/** Inflate into a buffer as far as possible. */
function inflateOver(out: Uint8Array, input: Uint8Array): Uint8Array {
  try {
    inflateSync(input, { out });
  } catch {
    // Everything before the error has been written.
  }
  return out;
}
