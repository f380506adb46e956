/**
 * Finding the parts of a buffer that need not be written because they are zero.
 *
 * @module
 */
import { isZero } from "../runtime.ts";

/** How finely to look for zeroes. */
export interface ZeroRunOptions {
  /** Shortest run between data that is worth leaving out, in bytes. */
  readonly minimum: number;
  /**
   * Runs begin and end on multiples of this, a power of two, in bytes: leaving
   * out part of a unit of the target gains nothing.
   */
  readonly alignment: number;
}

/**
 * The end of the zeroes at `from`; `from` itself if its aligned block has data.
 * `offset` is the buffer's position on the disk.
 */
export function zeroEnd(
  bytes: Uint8Array,
  from: number,
  to: number,
  offset: number,
  alignment: number,
): number {
  while (from < to) {
    const end = Math.min(to, blockEnd(offset + from, alignment) - offset);
    // Most data starts with a nonzero byte; this saves the call and the view.
    if (bytes[from] !== 0 || !isZero(bytes.subarray(from, end))) break;
    from = end;
  }
  return from;
}

/**
 * The end of the data at `from`: before the next run of zeroes that is long
 * enough or reaches the end.
 */
export function dataEnd(
  bytes: Uint8Array,
  from: number,
  to: number,
  offset: number,
  { minimum, alignment }: ZeroRunOptions,
): number {
  const step = Math.max(minimum, alignment);
  while ((from = nextZero(bytes, from, to, offset, alignment)) < to) {
    const limit = Math.min(to, from + step);
    const zeroes = zeroEnd(bytes, from, limit, offset, alignment);
    if (zeroes === to || zeroes - from >= minimum) return from;
    from = blockEnd(offset + zeroes, alignment) - offset;
  }
  return to;
}

/**
 * The first of `from` and the block starts after it with a zero byte; `to` or
 * more if there is none, as is usual. A separate function, because the engine
 * compiles this loop much sooner on its own.
 */
function nextZero(
  bytes: Uint8Array,
  from: number,
  to: number,
  offset: number,
  alignment: number,
): number {
  if (from < to && bytes[from] !== 0) {
    from = blockEnd(offset + from, alignment) - offset;
  }
  while (from < to && bytes[from] !== 0) from += alignment;
  return from;
}

/** The end of the block in which the byte at `at` lies. */
function blockEnd(at: number, alignment: number): number {
  return at - (at % alignment) + alignment;
}
