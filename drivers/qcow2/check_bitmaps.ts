/**
 * Counting the references of the bitmaps extension: the bitmap directory, the
 * bitmap tables, and the clusters of bitmap data. (Specification: "Bitmaps".)
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { type BitmapEntry, parseBitmapDirectory } from "./bitmap_directory.ts";
import type { CheckRun } from "./check_run.ts";
import { ENTRY_SIZE, entryOffset, viewOf } from "./format.ts";

/** Count all references that bitmaps make. */
export async function countBitmaps(run: CheckRun): Promise<void> {
  const { bitmaps } = run.header;
  if (!bitmaps) return;
  const { directoryOffset, directorySize, count } = bitmaps;
  run.count(directoryOffset, directorySize);
  const bytes = allocate(directorySize);
  await run.read(directoryOffset, bytes);
  const { geometry, diskSize } = run;
  let entries: BitmapEntry[];
  try {
    entries = parseBitmapDirectory(bytes, count, geometry, diskSize);
  } catch {
    throw damaged(run);
  }
  for (const entry of entries) await countBitmap(run, entry);
}

async function countBitmap(run: CheckRun, entry: BitmapEntry): Promise<void> {
  const { clusterSize } = run.geometry;
  const length = entry.tableSize * ENTRY_SIZE;
  run.count(entry.tableOffset, length);
  const bytes = allocate(length);
  await run.read(entry.tableOffset, bytes);
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

function damaged(run: CheckRun): BlockError {
  run.result.corruptions++;
  return new BlockError("EINVAL");
}
