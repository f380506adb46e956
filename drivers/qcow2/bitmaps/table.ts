/**
 * Bitmap tables: where a bitmap's data clusters are. (Specification: "Bitmap
 * table".)
 *
 * @module
 */
import { allocate, viewOf } from "../../../core/bytes.ts";
import { BlockError } from "../../../core/errors.ts";
import { ENTRY_SIZE, entryOffset, writeUint64 } from "../format.ts";

/**
 * For each data cluster its offset in the file, {@linkcode ALL_ZEROES} or
 * {@linkcode ALL_ONES}.
 */
export type BitmapTable = Float64Array<ArrayBuffer>;

/** The cluster is not stored: its bits are all zero. */
export const ALL_ZEROES = 0;
/** The cluster is not stored: its bits are all one. */
export const ALL_ONES = 1;

/**
 * Decode a table.
 *
 * @throws {BlockError} EINVAL if an entry is invalid.
 */
export function parseBitmapTable(
  bytes: Uint8Array,
  clusterSize: number,
): BitmapTable {
  const view = viewOf(bytes);
  const table: BitmapTable = new Float64Array(bytes.length / ENTRY_SIZE);
  for (let index = 0; index < table.length; index++) {
    const high = view.getUint32(index * ENTRY_SIZE);
    const low = view.getUint32(index * ENTRY_SIZE + 4);
    if (!isValidEntry(high, low, clusterSize)) throw new BlockError("EINVAL");
    table[index] = entryOffset(high, low) || low & 1;
  }
  return table;
}

/** Whether an entry of a bitmap table is valid. */
function isValidEntry(high: number, low: number, clusterSize: number): boolean {
  if ((high & 0xff000000) !== 0 || (low & 0x1fe) !== 0) return false;
  const offset = entryOffset(high, low);
  // Without an offset, bit 0 distinguishes all ones from all zeroes.
  return offset === 0 ||
    ((low & 1) === 0 && offset % clusterSize === 0 && offset < 2 ** 53);
}

/** Encode a table. */
export function encodeBitmapTable(table: BitmapTable): Uint8Array {
  const bytes = allocate(table.length * ENTRY_SIZE);
  const view = viewOf(bytes);
  table.forEach((entry, index) => writeUint64(view, index * ENTRY_SIZE, entry));
  return bytes;
}
