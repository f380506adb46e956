/**
 * Check and repair: every reference in the metadata is counted and compared
 * with the refcounts stored in the image. Findings and their order are those of
 * `qemu-img check`.
 *
 * @module
 */
import { asBlockError, BlockError, reasonOf } from "../../core/errors.ts";
import type { CheckOptions, CheckResult } from "../../core/node.ts";
import { countBitmaps } from "./bitmaps/check.ts";
import { checkCopiedFlags } from "./check_copied.ts";
import { compareRefcounts, countRefcountBlocks } from "./check_refcounts.ts";
import { CheckAbandoned, CheckRun, type CheckTarget } from "./check_run.ts";
import { TableWalk } from "./check_tables.ts";
import { ENTRY_SIZE, hex, MAX_L1_BYTES, MAX_SNAPSHOTS } from "./format.ts";
import { rebuildRefcounts } from "./rebuild.ts";
import {
  markClean,
  rewriteSnapshotTable,
  writeSnapshotCount,
} from "./repair.ts";
import {
  isIncomplete,
  readSnapshotTable,
  type SnapshotTableRepair,
} from "./snapshot_table.ts";

export type { CheckTarget } from "./check_run.ts";

const NOTHING = { leaks: false, corruptions: false };

/**
 * Check an image, and repair what the options say. Nothing else may use the
 * file meanwhile. Cached tables must have been written before, and must be
 * reloaded after a repair; `header` is updated together with the file.
 *
 * A repair was made if the result says that something was fixed; check again to
 * learn whether the image is sound then.
 *
 * @throws {BlockError} if the check could not be completed.
 */
export async function checkImage(
  target: CheckTarget,
  options: CheckOptions = {},
): Promise<CheckResult> {
  return await performCheck(new CheckRun(target, options));
}

/**
 * As {@linkcode checkImage}, for a caller that needs the counted references.
 */
export async function performCheck(run: CheckRun): Promise<CheckResult> {
  const { result } = run;
  const inSnapshots = await readSnapshots(run);
  await run.stored.load();
  try {
    await checkReferences(run);
  } catch (error) {
    const isKnown = error instanceof CheckAbandoned && result.corruptions > 0;
    if (!isKnown || run.repairs) throw error;
    // The image is known to be damaged, which is all that was asked.
    result.imageEndOffset = run.file.size;
  }
  if (inSnapshots > 0 && run.fix.corruptions) {
    await rewriteSnapshotTable(run);
    result.corruptionsFixed += inSnapshots;
  } else {
    result.corruptions += inSnapshots;
  }
  if (run.repairs) {
    await run.discardFreed();
    if (result.checkErrors === 0 && result.corruptions === 0) {
      await markClean(run);
    }
  }
  return result;
}

/** Read the snapshot table; returns the number of entries to be rewritten. */
async function readSnapshots(run: CheckRun): Promise<number> {
  const { header, result, fix } = run;
  const removed: SnapshotTableRepair = {
    discarded: 0,
    shortened: 0,
    report: (line) => run.report(line),
  };
  if (header.snapshotCount > MAX_SNAPSHOTS && fix.corruptions) {
    removed.discarded = header.snapshotCount - MAX_SNAPSHOTS;
    run.report(`Discarding ${removed.discarded} overhanging snapshots`);
    header.snapshotCount = MAX_SNAPSHOTS;
  }
  checkSnapshotPointer(run);
  try {
    const repair = fix.corruptions ? removed : undefined;
    run.snapshots = await readSnapshotTable(run.file, header, repair);
  } catch (error) {
    const { code, message, hint } = asBlockError(error);
    run.report(`ERROR failed to read the snapshot table: ${message}`, true);
    if (hint) run.report(hint);
    throw new BlockError(code, reasonOf(error), { cause: error });
  }
  if (removed.discarded > 0) {
    // Before anything is counted: counting relies on the header.
    header.snapshotCount = run.snapshots.entries.length;
    await writeSnapshotCount(run);
    result.corruptionsFixed += removed.discarded;
  }
  let damaged = removed.shortened;
  run.snapshots.entries.forEach((entry, index) => {
    if (!isIncomplete(entry, header.version)) return;
    damaged++;
    const verdict = fix.corruptions ? "Repairing" : "ERROR";
    run.report(`${verdict} snapshot table entry ${index} is incomplete`);
  });
  return damaged;
}

function checkSnapshotPointer(run: CheckRun): void {
  const { snapshotCount, snapshotsOffset } = run.header;
  if (snapshotCount > MAX_SNAPSHOTS) {
    run.report("ERROR snapshot table too large", true);
    const rest = snapshotCount - MAX_SNAPSHOTS;
    run.report(
      `You can force-remove all ${rest} overhanging snapshots ` +
        "with qemu-img check -r all",
    );
    throw new BlockError("EFBIG");
  }
  if (snapshotsOffset >= 2 ** 53 || !run.geometry.isAligned(snapshotsOffset)) {
    run.report("ERROR snapshot table offset invalid", true);
    throw new BlockError("EINVAL");
  }
}

/** Compare refcounts with references, and repair what is to be repaired. */
async function checkReferences(run: CheckRun): Promise<void> {
  const { result, fix, geometry } = run;
  result.totalClusters = geometry.clustersFor(run.diskSize);
  const damaged = await countReferences(run, fix.corruptions);
  const before = { ...result };
  let comparison = await compareRefcounts(run, NOTHING);
  const rebuild = damaged || comparison.rebuild;
  if (rebuild && fix.corruptions) {
    comparison = await replaceRefcounts(run) ?? comparison;
  } else if (run.repairs) {
    if (rebuild) {
      throw run.failure(
        "ERROR need to rebuild refcount structures",
        new BlockError("EIO"),
      );
    }
    if (result.leaks > 0 || result.corruptions > 0) {
      Object.assign(result, before);
      comparison = await compareRefcounts(run, fix);
    }
  }
  await checkCopiedFlags(run);
  await run.stored.flush();
  // Before any of these clusters is allocated again.
  await run.discardFreed();
  result.imageEndOffset = (comparison.highestCluster + 1) *
    geometry.clusterSize;
}

/** Rebuild the refcount structure, and count what that repaired. */
async function replaceRefcounts(run: CheckRun) {
  const { result, fix } = run;
  const before = { ...result };
  run.report("Rebuilding refcount structure");
  await rebuildRefcounts(run);
  result.corruptions = 0;
  result.leaks = 0;
  run.startCounting();
  const damaged = await countReferences(run, false);
  let comparison;
  let newLeaks = 0;
  if (fix.leaks) {
    // The old structure is leaked now; only leaks that remain are of interest.
    const counted = { ...result };
    const repair = { leaks: true, corruptions: false };
    comparison = await compareRefcounts(run, repair);
    if (damaged || comparison.rebuild) {
      run.report("ERROR rebuilt refcount structure is still broken");
    }
    newLeaks = result.leaks;
    Object.assign(result, counted);
  }
  const { corruptions, leaks } = result;
  result.corruptionsFixed += Math.max(0, before.corruptions - corruptions);
  result.leaksFixed += Math.max(0, before.leaks - leaks);
  result.leaks += newLeaks;
  return comparison;
}

/**
 * Count every reference in the metadata.
 *
 * @returns whether the refcount structure must be rebuilt.
 */
async function countReferences(
  run: CheckRun,
  repair: boolean,
): Promise<boolean> {
  const { header, geometry, snapshots } = run;
  const { clusterSize } = geometry;
  const walk = new TableWalk(run, repair);
  run.count(0, clusterSize);
  await walk.walk({
    offset: header.l1TableOffset,
    size: header.l1Size,
    active: true,
  });
  await countSnapshots(run, walk);
  run.count(header.snapshotsOffset, snapshots.byteLength);
  const tableBytes = header.refcountTableClusters * clusterSize;
  run.count(header.refcountTableOffset, tableBytes);
  if (header.encryptionHeader) {
    const { offset, length } = header.encryptionHeader;
    run.count(offset, length);
  }
  await countBitmaps(run, repair);
  return await countRefcountBlocks(run, repair);
}

async function countSnapshots(run: CheckRun, walk: TableWalk): Promise<void> {
  const { entries } = run.snapshots;
  if (run.uses("DATA_FILE") && entries.length > 0) {
    run.corruption(`ERROR ${entries.length} snapshots in image with data file`);
  }
  for (const { id, name, l1TableOffset, l1Size, huge } of entries) {
    const corrupted = (what: string) =>
      run.corruption(
        `ERROR snapshot ${id} (${name}) ${what}; ` +
          "snapshot table entry corrupted",
      );
    const offset = huge?.l1TableOffset ?? BigInt(l1TableOffset);
    const offsetText = offset.toString(16);
    if (offset % BigInt(run.geometry.clusterSize) !== 0n) {
      corrupted(`l1_offset=0x${offsetText}: L1 table is not cluster aligned`);
    } else if (l1Size > MAX_L1_BYTES / ENTRY_SIZE) {
      corrupted(`l1_size=${hex(l1Size)}: L1 table is too large`);
    } else {
      await walk.walk({
        offset: l1TableOffset,
        size: l1Size,
        active: false,
        offsetText,
      });
    }
  }
  await walk.finish();
}
