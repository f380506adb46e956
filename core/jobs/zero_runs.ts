/**
 * Which parts of a buffer need not be written, since they are zero.
 *
 * @module
 */
import { isZero } from "../runtime.ts";

/** How finely to look for zeroes. */
export interface ZeroRunOptions {
  /** Shortest run between data that is worth leaving out, in bytes. */
  readonly minimum: number;
  /**
   * Runs begin and end on multiples of this, a power of two, in bytes: parts
   * of what the target stores as a whole are not worth leaving out.
   */
  readonly alignment: number;
}

/**
 * Where the zeroes that begin at `from` end; `from` itself if there is data
 * in the aligned block. `offset` is the place of the buffer on the disk.
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
    // Most data shows in its first byte; this saves the call and the view.
    if (bytes[from] !== 0 || !isZero(bytes.subarray(from, end))) break;
    from = end;
  }
  return from;
}

/**
 * Where the data that begins at `from` ends: before the next run of zeroes
 * that is long enough, or that reaches the end.
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
 * The first of `from` and the block starts after it at which there is a zero;
 * `to` or more if there is none. Mostly there is none: apart, this loop is
 * compiled in 2 ms, as part of the other in up to 30.
 */
function nextZero(
  bytes: Uint8Array,
  from: number,
  to: number,
  offset: number,
  alignment: number,
): number {
  while (from < to && bytes[from] !== 0) {
    from = blockEnd(offset + from, alignment) - offset;
  }
  return from;
}

/** The end of the block in which the byte at `at` lies. */
function blockEnd(at: number, alignment: number): number {
  return at - (at % alignment) + alignment;
}
