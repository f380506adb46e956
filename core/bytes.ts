/**
 * Arithmetic on offsets, and vectors of buffers.
 *
 * @module
 */

/**
 * Buffers that together hold the bytes of one request, in order.
 *
 * @category Images
 */
export type IoVector = readonly Uint8Array[];

/** Bytes of a sector, the unit of disk sizes. */
export const SECTOR_SIZE = 512;

/**
 * Whether a size or offset is exact: below 2^53, or below 2^62 and in whole
 * sectors, which a number can hold exactly.
 */
export function isExactSize(bytes: number): boolean {
  return Number.isSafeInteger(bytes) ||
    (bytes > 0 && bytes < 2 ** 62 && bytes % SECTOR_SIZE === 0);
}

/** `value` rounded down to a multiple of `unit` (both below 2^53). */
export function roundDown(value: number, unit: number): number {
  return value - (value % unit);
}

/** `value` rounded up to a multiple of `unit` (both below 2^53). */
export function roundUp(value: number, unit: number): number {
  const rest = value % unit;
  return rest === 0 ? value : value + (unit - rest);
}

/** The quotient of two non-negative integers, rounded up. */
export function divideUp(value: number, unit: number): number {
  return Math.ceil(value / unit);
}

/** Whether `value` is a power of two. */
export function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}

/**
 * A buffer of `length` zero bytes whose address avoids the first bytes of a
 * page. V8 starts large arrays 16 bytes into a page, where copies from the page
 * cache are far slower (see bench/RESULTS.md).
 */
export function allocate(length: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(length + 64).subarray(48, 48 + length);
}

/** `bytes` with zeroes after them, up to a multiple of `unit`. */
export function padded(bytes: Uint8Array, unit: number): IoVector {
  const rest = bytes.length % unit;
  return rest === 0 ? [bytes] : [bytes, allocate(unit - rest)];
}

/**
 * Free the memory of a buffer, and of all views that share it, at once. The
 * garbage collector counts its own heap and lets tens of MiB outside it pile up
 * before it runs.
 */
export function release({ buffer }: Uint8Array): void {
  // Runtimes from before 2024 leave it to the garbage collector.
  (buffer as ArrayBuffer).transfer?.(0);
}

/** The number of bytes in a vector. */
export function vectorLength(iov: IoVector): number {
  if (iov.length === 1) return iov[0].length;
  let total = 0;
  for (const part of iov) total += part.length;
  return total;
}

/** The part `[start, start + length)` of a vector, sharing its memory. */
export function sliceVector(
  iov: IoVector,
  start: number,
  length: number,
): IoVector {
  if (iov.length === 1) {
    const only = iov[0];
    if (start === 0 && length === only.length) return iov;
    return [only.subarray(start, start + length)];
  }
  const parts: Uint8Array[] = [];
  for (const part of iov) {
    if (length === 0) break;
    if (start >= part.length) {
      start -= part.length;
      continue;
    }
    const take = Math.min(length, part.length - start);
    parts.push(part.subarray(start, start + take));
    length -= take;
    start = 0;
  }
  return parts;
}

/** Copy `source` into the vector, from its byte `start` on. */
export function copyIntoVector(
  iov: IoVector,
  start: number,
  source: Uint8Array,
): void {
  let copied = 0;
  for (const part of sliceVector(iov, start, source.length)) {
    part.set(source.subarray(copied, copied + part.length));
    copied += part.length;
  }
}

/** Set the bytes `[start, start + length)` of a vector to `value`. */
export function fillVector(
  iov: IoVector,
  start: number,
  length: number,
  value = 0,
): void {
  for (const part of sliceVector(iov, start, length)) part.fill(value);
}

/** The bytes of a vector as one buffer; a copy if it has several parts. */
export function flattenVector(iov: IoVector): Uint8Array {
  if (iov.length === 1) return iov[0];
  const flat = allocate(vectorLength(iov));
  let at = 0;
  for (const part of iov) {
    flat.set(part, at);
    at += part.length;
  }
  return flat;
}

/** A `DataView` of the same memory. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
