/**
 * Repairs beyond single entries: rewriting the snapshot table, and clearing the
 * flags in the header of an image that is sound again.
 *
 * @module
 */
import { allocate, viewOf } from "../../core/bytes.ts";
import {
  asBlockError,
  BlockError,
  reasonOf,
  strerror,
} from "../../core/errors.ts";
import type { CheckRun } from "./check_run.ts";
import { Incompatible, writeUint64 } from "./format.ts";
import { rebuildRefcounts } from "./rebuild.ts";
import { writeRefcount } from "./refcount_layout.ts";
import { encodeSnapshotTable } from "./snapshot_table.ts";

/**
 * Offset in the header of the number of snapshots, and of their table's offset.
 */
const SNAPSHOT_COUNT = 60;

/**
 * Update the number of snapshots in the header. It need not be durable when the
 * clusters of the others are freed: with so many snapshots, only a repair can
 * open the image, and it would drop the same ones again.
 */
export async function writeSnapshotCount(run: CheckRun): Promise<void> {
  const bytes = allocate(4);
  viewOf(bytes).setUint32(0, run.header.snapshotCount);
  await run.file.writev!(SNAPSHOT_COUNT, [bytes]);
}

/**
 * Rewrite the snapshot table at a new offset, with all entries complete. The
 * refcounts must be sound.
 */
export async function rewriteSnapshotTable(run: CheckRun): Promise<void> {
  const { snapshots, header, file, geometry } = run;
  try {
    const table = encodeSnapshotTable(snapshots.entries);
    const clusters = geometry.clustersFor(table.length);
    const first = await takeClusters(run, clusters);
    const offset = first * geometry.clusterSize;
    // Refcounts and table must be durable before the header refers to the
    // table.
    await run.write(offset, table);
    await file.flush?.();
    const old = {
      offset: header.snapshotsOffset,
      length: snapshots.byteLength,
    };
    const pointer = allocate(12);
    viewOf(pointer).setUint32(0, snapshots.entries.length);
    writeUint64(viewOf(pointer), 4, offset);
    await file.writev!(SNAPSHOT_COUNT, [pointer]);
    await file.flush?.();
    header.snapshotCount = snapshots.entries.length;
    header.snapshotsOffset = offset;
    snapshots.byteLength = table.length;
    run.metadataMoved();
    await freeOldTable(run, old.offset, old.length);
    await run.stored.flush();
  } catch (error) {
    const { code } = asBlockError(error);
    const reason = reasonOf(error);
    run.report(`ERROR failed to update snapshot table: ${reason}`);
    run.result.checkErrors++;
    throw new BlockError(code, reason, { cause: error });
  }
}

/** Free the table that was replaced. */
async function freeOldTable(
  run: CheckRun,
  offset: number,
  length: number,
): Promise<void> {
  const { geometry, stored } = run;
  const first = offset / geometry.clusterSize;
  const end = first + geometry.clustersFor(length);
  for (let cluster = first; cluster < end; cluster++) {
    if ((await stored.get(cluster))?.value) continue;
    // The old table was misplaced.
    const reason = strerror("EINVAL");
    run.report(`qcow2_free_clusters failed: ${reason}`);
    return;
  }
  for (let cluster = first; cluster < end; cluster++) {
    await release(run, cluster);
  }
}

/** Allocate free clusters in a row, and record that in the file. */
async function takeClusters(run: CheckRun, count: number): Promise<number> {
  const { counts, stored, geometry } = run;
  const first = await findFree(run, count);
  const end = first + count;
  counts.grow(end);
  for (let at = first; at < end; at++) counts.set(at, 1);
  const entries = geometry.refcountBlockEntries;
  const last = Math.floor((end - 1) / entries);
  let covered = true;
  for (let index = Math.floor(first / entries); index <= last; index++) {
    if (stored.isAbsent(index)) covered = false;
  }
  if (covered) {
    for (let at = first; at < end; at++) await storeRefcount(run, at, 1);
    await stored.flush();
  } else {
    // They are past what the refcount blocks cover, at the end of the file.
    await replaceRefcounts(run);
  }
  return first;
}

/**
 * Find clusters without references. Their stored refcounts must be zero as
 * well: clusters past the end of the file are not counted, but entries that
 * could not be repaired may refer to them.
 */
async function findFree(run: CheckRun, count: number): Promise<number> {
  let free = 0;
  let at = run.counts.nextFree(0);
  for (; free < count; at++) {
    const used = run.counts.get(at) !== 0 ||
      (await run.stored.get(at))?.value !== 0;
    free = used ? 0 : free + 1;
  }
  return at - count;
}

/** Rebuild the refcount structure, and free the old one. */
async function replaceRefcounts(run: CheckRun): Promise<void> {
  const { stored, geometry, header } = run;
  const { clusterSize } = geometry;
  const old: number[] = [];
  const table = header.refcountTableOffset / clusterSize;
  for (let at = 0; at < header.refcountTableClusters; at++) {
    old.push(table + at);
  }
  for (let index = 0; index < stored.tableSize; index++) {
    const offset = stored.blockOffset(index);
    if (offset) old.push(offset / clusterSize);
  }
  await rebuildRefcounts(run);
  for (const cluster of old) await release(run, cluster);
}

/** Drop one reference to a cluster. */
async function release(run: CheckRun, cluster: number): Promise<void> {
  const refcount = await run.stored.get(cluster);
  if (!refcount || refcount.value === 0) return;
  // A damaged table may claim the header's cluster, which must stay in use.
  if (cluster === 0 && refcount.value === 1) return;
  await storeRefcount(run, cluster, refcount.value - 1);
  if (refcount.value === 1) run.freed(cluster);
}

async function storeRefcount(
  run: CheckRun,
  cluster: number,
  value: number,
): Promise<void> {
  const { refcountBlockEntries, refcountOrder } = run.geometry;
  const index = Math.floor(cluster / refcountBlockEntries);
  const block = await run.stored.block(index);
  if (block === null) throw new BlockError("EIO");
  writeRefcount(block, refcountOrder, cluster % refcountBlockEntries, value);
  run.stored.markDirty(index);
}

/** Clear the flags of an image that is dirty or corrupt. */
export async function markClean(run: CheckRun): Promise<void> {
  const marks = Incompatible.DIRTY | Incompatible.CORRUPT;
  if ((run.header.incompatible.low & marks) === 0) return;
  await run.file.flush?.();
  await run.target.prepareChange();
  const { incompatible } = run.header;
  incompatible.low = (incompatible.low & ~marks) >>> 0;
  await run.target.writeHeader();
}
