/**
 * Counting the references of the bitmaps extension: the bitmap directory, the
 * bitmap tables, and the clusters of bitmap data. (Specification: "Bitmaps".)
 *
 * @module
 */
import { allocate, roundUp } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { CheckRun } from "./check_run.ts";
import { ENTRY_SIZE, entryOffset, readUint64, viewOf } from "./format.ts";

/** Bytes of the part of a directory entry that each has. */
const ENTRY_LENGTH = 24;
const IN_USE = 1;
const RESERVED_FLAGS = 0xfffffffc;
const TYPE_DIRTY_TRACKING = 1;
const MAX_NAME_LENGTH = 1023;
const MAX_TABLE_ENTRIES = 0x8000000;
/** Bytes of a bitmap at most. */
const MAX_BITMAP_BYTES = 0x20000000;
const MIN_GRANULARITY_BITS = 9;
const MAX_GRANULARITY_BITS = 31;

/** Where a bitmap table lies. */
interface BitmapTable {
  offset: number;
  /** Entries. */
  size: number;
}

/** Count all references that bitmaps make. */
export async function countBitmaps(run: CheckRun): Promise<void> {
  const { bitmaps } = run.header;
  if (!bitmaps) return;
  const { directoryOffset, directorySize, count } = bitmaps;
  run.count(directoryOffset, directorySize);
  const tables = await readDirectory(
    run,
    directoryOffset,
    directorySize,
    count,
  );
  for (const table of tables) await countBitmap(run, table);
}

async function countBitmap(run: CheckRun, table: BitmapTable): Promise<void> {
  const { clusterSize } = run.geometry;
  const length = table.size * ENTRY_SIZE;
  run.count(table.offset, length);
  const bytes = allocate(length);
  await run.read(table.offset, bytes);
  const view = viewOf(bytes);
  for (let at = 0; at < length; at += ENTRY_SIZE) {
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    if (!isValidEntry(high, low, clusterSize)) throw damaged(run);
  }
  for (let at = 0; at < length; at += ENTRY_SIZE) {
    const offset = entryOffset(view.getUint32(at), view.getUint32(at + 4));
    if (offset !== 0) run.count(offset, clusterSize);
  }
}

/** Whether an entry of a bitmap table makes sense. */
function isValidEntry(high: number, low: number, clusterSize: number): boolean {
  if ((high & 0xff000000) !== 0 || (low & 0x1fe) !== 0) return false;
  const offset = entryOffset(high, low);
  // Without an offset, bit 0 tells all ones from all zeroes.
  return offset === 0 || ((low & 1) === 0 && offset % clusterSize === 0);
}

async function readDirectory(
  run: CheckRun,
  offset: number,
  size: number,
  count: number,
): Promise<BitmapTable[]> {
  if (size === 0) throw damaged(run);
  const bytes = allocate(size);
  await run.read(offset, bytes);
  const view = viewOf(bytes);
  const tables: BitmapTable[] = [];
  let at = 0;
  while (at < size) {
    if (at + ENTRY_LENGTH > size || tables.length >= count) throw damaged(run);
    const nameLength = view.getUint16(at + 18);
    const extraLength = view.getUint32(at + 20);
    const end = at + roundUp(ENTRY_LENGTH + nameLength + extraLength, 8);
    if (end > size || extraLength !== 0) throw damaged(run);
    const table = readDirectoryEntry(run, view, at);
    if (!table) throw damaged(run);
    tables.push(table);
    at = end;
  }
  if (tables.length !== count) throw damaged(run);
  return tables;
}

/** The table of one bitmap, unless the entry makes no sense. */
function readDirectoryEntry(
  run: CheckRun,
  view: DataView,
  at: number,
): BitmapTable | undefined {
  const { clusterSize } = run.geometry;
  const offset = readUint64(view, at);
  const size = view.getUint32(at + 8);
  const flags = view.getUint32(at + 12);
  const granularityBits = view.getUint8(at + 17);
  const bytes = size * clusterSize;
  const valid = size > 0 && size <= MAX_TABLE_ENTRIES &&
    offset > 0 && offset % clusterSize === 0 &&
    granularityBits >= MIN_GRANULARITY_BITS &&
    granularityBits <= MAX_GRANULARITY_BITS &&
    (flags & RESERVED_FLAGS) === 0 &&
    view.getUint16(at + 18) <= MAX_NAME_LENGTH &&
    view.getUint8(at + 16) === TYPE_DIRTY_TRACKING &&
    bytes <= MAX_BITMAP_BYTES;
  if (!valid) return undefined;
  // One that was in use when the program died may be of an earlier size.
  const covered = bytes * 8 * 2 ** granularityBits;
  if (!(flags & IN_USE) && run.diskSize > covered) return undefined;
  return { offset, size };
}

function damaged(run: CheckRun): BlockError {
  run.result.corruptions++;
  return new BlockError("EINVAL");
}
