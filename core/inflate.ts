/**
 * Inflating as far as a buffer goes, as zlib does it when it is given no more
 * room: what comes after is not looked at, so it may be cut off, be anything
 * else, or go on. `fflate` judges the whole stream.
 *
 * @module
 */
import { inflateSync } from "fflate";
import { isEqual } from "./runtime.ts";

/** A stored block, the largest thing that is copied whole or not at all. */
const LARGEST_BLOCK = 65535;

/**
 * Fill `target` from a raw deflate stream, and answer whether that could be
 * done.
 */
export function inflateExactly(
  input: Uint8Array,
  target: Uint8Array,
): boolean {
  const { length } = target;
  // Given nothing, it would answer the buffer as it is.
  if (input.length === 0) return length === 0;
  try {
    // Given a buffer to fill, it neither grows it nor writes beyond it.
    const out = new Uint8Array(length);
    if (inflateSync(input, { out }).length === length) {
      target.set(out);
      return true;
    }
  } catch {
    // What is wanted of it may be right all the same.
  }
  // What has not been written is what was there before, which differs.
  const [one, other] = [0, 255].map((filler) =>
    inflateOver(new Uint8Array(length + LARGEST_BLOCK).fill(filler), input)
      .subarray(0, length)
  );
  if (!isEqual(one, other)) return false;
  target.set(one);
  return true;
}

/** Inflate over what a buffer holds, as far as that goes. */
function inflateOver(out: Uint8Array, input: Uint8Array): Uint8Array {
  try {
    inflateSync(input, { out });
  } catch {
    // Only what comes after the error has not been written.
  }
  return out;
}
