/**
 * Counting the references of the bitmaps extension: the bitmap directory, the
 * bitmap tables, and the clusters of bitmap data. (Specification: "Bitmaps".)
 *
 * @module
 */
import { allocate } from "../../../core/bytes.ts";
import { asBlockError, BlockError } from "../../../core/errors.ts";
import type { CheckRun } from "../check_run.ts";
import { Autoclear, ENTRY_SIZE } from "../format.ts";
import {
  bitmapClusters,
  type BitmapEntry,
  encodeBitmapDirectory,
  parseBitmapDirectory,
} from "./directory.ts";
import {
  ALL_ONES,
  ALL_ZEROES,
  type BitmapTable,
  parseBitmapTable,
} from "./table.ts";

/** A bitmap and where its data is stored. */
interface Found {
  readonly entry: BitmapEntry;
  readonly table: BitmapTable;
}

/**
 * Count all references that bitmaps make.
 *
 * @param repair Whether to remove damaged bitmaps, with all that they recorded.
 */
export async function countBitmaps(
  run: CheckRun,
  repair: boolean,
): Promise<void> {
  for (const { offset, length } of await bitmapPlaces(run, repair)) {
    run.count(offset, length);
  }
}

/** All ranges of the file that bitmaps occupy. */
export async function bitmapPlaces(
  run: CheckRun,
  repair = false,
): Promise<{ offset: number; length: number }[]> {
  const found = await findBitmaps(run, repair);
  const { bitmaps } = run.header;
  if (!bitmaps) return [];
  const { directoryOffset: offset, directorySize: length } = bitmaps;
  const places = [{ offset, length }];
  const { clusterSize } = run.geometry;
  for (const { entry, table } of found) {
    const { tableOffset, tableSize } = entry;
    places.push({ offset: tableOffset, length: tableSize * ENTRY_SIZE });
    for (const offset of table) {
      if (offset === ALL_ZEROES || offset === ALL_ONES) continue;
      places.push({ offset, length: clusterSize });
    }
  }
  return places;
}

async function findBitmaps(run: CheckRun, repair: boolean): Promise<Found[]> {
  const { bitmaps } = run.header;
  if (!bitmaps) return [];
  let entries: BitmapEntry[];
  try {
    entries = await readEntries(run);
  } catch (thrown) {
    const { message } = asBlockError(thrown);
    if (!repair) throw damaged(run, message);
    run.report(`Dropping all ${bitmaps.count} bitmaps: ${message}`);
    run.result.corruptionsFixed++;
    await nameDirectory(run, undefined);
    return [];
  }
  const found: Found[] = [];
  for (const entry of entries) {
    const table = await readTable(run, entry);
    if (table) found.push({ entry, table });
    else if (!repair) {
      throw damaged(run, `The table of bitmap '${entry.name}' is damaged`);
    } else {
      run.report(`Dropping bitmap '${entry.name}': its table is damaged`);
      run.result.corruptionsFixed++;
    }
  }
  if (found.length < entries.length) {
    await replaceDirectory(run, found.map(({ entry }) => entry));
  }
  return found;
}

async function readEntries(run: CheckRun): Promise<BitmapEntry[]> {
  const { directoryOffset, directorySize, count } = run.header.bitmaps!;
  const bytes = allocate(directorySize);
  await run.read(directoryOffset, bytes);
  return parseBitmapDirectory(bytes, count, run.geometry, run.diskSize);
}

/** A bitmap's table; `undefined` if it is invalid. */
async function readTable(
  run: CheckRun,
  { tableOffset, tableSize, granularity, inUse }: BitmapEntry,
): Promise<BitmapTable | undefined> {
  const { clusterSize } = run.geometry;
  const clusters = bitmapClusters(run.diskSize, granularity, clusterSize);
  // One that was in use may have an earlier size.
  if (!inUse && tableSize !== clusters) return undefined;
  const bytes = allocate(tableSize * ENTRY_SIZE);
  await run.read(tableOffset, bytes);
  try {
    return parseBitmapTable(bytes, clusterSize);
  } catch {
    return undefined;
  }
}

function damaged(run: CheckRun, what: string): BlockError {
  run.corruption(`ERROR ${what}`);
  return new BlockError("EINVAL");
}

/**
 * Write a shorter directory in place. No header refers to it meanwhile: if this
 * is interrupted, all bitmaps are lost, but none is wrong.
 */
async function replaceDirectory(
  run: CheckRun,
  entries: readonly BitmapEntry[],
): Promise<void> {
  const { directoryOffset } = run.header.bitmaps!;
  await nameDirectory(run, undefined);
  if (entries.length === 0) return;
  const bytes = encodeBitmapDirectory(entries);
  await run.write(directoryOffset, bytes, "bitmap directory");
  await run.file.flush?.();
  await nameDirectory(run, {
    count: entries.length,
    directorySize: bytes.length,
    directoryOffset,
  });
}

async function nameDirectory(
  run: CheckRun,
  bitmaps: CheckRun["header"]["bitmaps"],
): Promise<void> {
  const { header, target } = run;
  await target.prepareChange();
  header.bitmaps = bitmaps;
  const { low } = header.autoclear;
  const others = low & ~Autoclear.BITMAPS;
  header.autoclear.low = (bitmaps ? low | Autoclear.BITMAPS : others) >>> 0;
  await target.writeHeader();
}
