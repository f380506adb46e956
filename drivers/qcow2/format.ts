/**
 * Constants of the qcow2 format, and what entries of all tables have in common.
 * (Specification: "Header", "L1 table entry".)
 *
 * 64-bit entries are handled as two 32-bit halves; offsets are numbers below
 * 2^53.
 *
 * @module
 */
import { viewOf } from "../../core/bytes.ts";
import { isZero } from "../../core/runtime.ts";

/** `QFI\xfb`, the first four bytes. */
export const MAGIC = 0x514649fb;

export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
export const DEFAULT_CLUSTER_SIZE = 65536;

/** Most bytes of an active or inactive L1 table: 32 MiB. */
export const MAX_L1_BYTES = 32 * 1024 * 1024;
/** Most bytes of the refcount table: 8 MiB. */
export const MAX_REFCOUNT_TABLE_BYTES = 8 * 1024 * 1024;
export const MAX_SNAPSHOTS = 65536;
/** Most bytes of the snapshot table: 64 MiB. */
export const MAX_SNAPSHOT_TABLE_BYTES = 1024 * MAX_SNAPSHOTS;
/** Most bytes of a snapshot's extra data. */
export const MAX_SNAPSHOT_EXTRA_BYTES = 1024;

/** Bytes of a table entry, except for extended L2 entries. */
export const ENTRY_SIZE = 8;

/**
 * In the upper half of L1 and L2 entries: the refcount is exactly one, so that
 * the target may be written in place.
 */
export const COPIED = 0x80000000;

/** Incompatible feature bits. */
export const Incompatible = {
  DIRTY: 1,
  CORRUPT: 2,
  DATA_FILE: 4,
  COMPRESSION: 8,
  EXTENDED_L2: 16,
} as const;

/** Compatible feature bits. */
export const Compatible = { LAZY_REFCOUNTS: 1 } as const;

/** Autoclear feature bits. */
export const Autoclear = { BITMAPS: 1, RAW_EXTERNAL_DATA: 2 } as const;

/** Encryption methods. */
export const Crypt = { NONE: 0, AES: 1, LUKS: 2 } as const;

/** The value of `icount` if instructions were not counted. */
export const NO_ICOUNT = 2n ** 64n - 1n;

const TWO_32 = 2 ** 32;

/** Read 64 bits; values of 2^53 or more lose precision, but not magnitude. */
export function readUint64(view: DataView, at: number): number {
  return view.getUint32(at) * TWO_32 + view.getUint32(at + 4);
}

/** Write 64 bits of a value below 2^53. */
export function writeUint64(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / TWO_32));
  view.setUint32(at + 4, value % TWO_32);
}

/** The bytes that a view shows, sharing its memory. */
export function bytesOf(
  { buffer, byteOffset, byteLength }: DataView,
): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** The host offset in an entry of an L1, L2 or refcount table (bits 9 to 55). */
export function entryOffset(high: number, low: number): number {
  return (high & 0x00ffffff) * TWO_32 + ((low & 0xfffffe00) >>> 0);
}

/** Bytes of a table that are compared with zero at once. */
const SCAN_BYTES = 4096;

/**
 * Visit the offsets in an L1 table or a refcount table. Most of such a table is
 * zero and skipped: examining each entry would be slow.
 */
export function visitOffsets(
  table: Uint8Array,
  visit: (offset: number) => void,
): void {
  const view = viewOf(table);
  for (let at = 0; at < table.length; at += SCAN_BYTES) {
    const end = Math.min(table.length, at + SCAN_BYTES);
    if (isZero(table.subarray(at, end))) continue;
    for (let entry = at; entry < end; entry += ENTRY_SIZE) {
      const high = view.getUint32(entry);
      const low = view.getUint32(entry + 4);
      if (high === 0 && low === 0) continue;
      const offset = entryOffset(high, low);
      if (offset !== 0) visit(offset);
    }
  }
}

/** Reserved bits of an L1 entry, which must be zero. */
export function l1ReservedBits(high: number, low: number): boolean {
  return (high & 0x7f000000) !== 0 || (low & 0x1ff) !== 0;
}

/**
 * Set or clear COPIED in the entry at a byte offset; returns whether that
 * changed it.
 */
export function setCopied(
  view: DataView,
  at: number,
  copied: boolean,
): boolean {
  // Its byte is a small integer, which V8 handles faster than the whole half.
  const first = view.getUint8(at);
  const wanted = copied ? first | 0x80 : first & 0x7f;
  if (wanted === first) return false;
  view.setUint8(at, wanted);
  return true;
}

/**
 * Clear COPIED in all entries of a table, `entrySize` bytes each; returns
 * whether any had it.
 */
export function clearCopied(
  table: Uint8Array,
  entrySize = ENTRY_SIZE,
): boolean {
  let first = 0;
  for (let at = 0; at < table.length; at += entrySize) {
    first |= table[at];
    table[at] &= 0x7f;
  }
  return (first & 0x80) !== 0;
}

/** An entry as QEMU prints it: hexadecimal digits without leading zeroes. */
export function entryToHex(high: number, low: number): string {
  const highDigits = (high >>> 0).toString(16);
  const lowDigits = (low >>> 0).toString(16);
  return high ? highDigits + lowDigits.padStart(8, "0") : lowDigits;
}

/** C's `%#x`: zero has no prefix. */
export function hex(value: number): string {
  return value === 0 ? "0" : "0x" + value.toString(16);
}
