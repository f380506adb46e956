/**
 * Checking the refcount structure against the counted references: misplaced
 * blocks, and clusters whose stored refcount is wrong.
 *
 * @module
 */
import { BlockError, reasonOf, strerror } from "../../core/errors.ts";
import type { CheckOptions } from "../../core/node.ts";
import type { CheckRun } from "./check_run.ts";
import { refcountText } from "./stored_refcounts.ts";
import { readRefcount, writeRefcount } from "./refcount_layout.ts";

type Repair = NonNullable<CheckOptions["repair"]>;

/**
 * Count the references of the refcount table, and check its entries.
 *
 * @param repair Whether the file may be extended for blocks past its end.
 * @returns whether the structure is beyond repair and must be rebuilt.
 */
export async function countRefcountBlocks(
  run: CheckRun,
  repair: boolean,
): Promise<boolean> {
  const { stored, geometry, counts } = run;
  const { clusterSize } = geometry;
  let rebuild = false;
  for (let index = 0; index < stored.tableSize; index++) {
    const { high, low } = stored.entry(index);
    if (high === 0 && low === 0) continue;
    const offset = stored.blockOffset(index);
    if ((low & 0x1ff) !== 0) {
      run.corruption(
        `ERROR refcount table entry ${index} has reserved bits set`,
      );
      rebuild = true;
    } else if (!stored.isAligned(index)) {
      run.corruption(
        `ERROR refcount block ${index} is not cluster aligned; ` +
          "refcount table entry corrupted",
      );
      rebuild = true;
    } else if (offset / clusterSize >= counts.length) {
      run.corruption(
        `${repair ? "Repairing" : "ERROR"} refcount block ${index} ` +
          "is outside image",
      );
      if (repair && !await growFile(run, offset)) rebuild = true;
    } else {
      run.count(offset, clusterSize);
      const refcount = counts.get(offset / clusterSize);
      if (refcount !== 1) {
        run.corruption(`ERROR refcount block ${index} refcount=${refcount}`);
        rebuild = true;
      }
    }
  }
  return rebuild;
}

/** Extend the file to contain a block, which then reads as zeroes. */
async function growFile(run: CheckRun, offset: number): Promise<boolean> {
  const { file, geometry, counts, result } = run;
  const size = offset + geometry.clusterSize;
  try {
    if (size >= 2 ** 63) throw new BlockError("EINVAL");
    await resize(run, size);
  } catch (error) {
    const reason = reasonOf(error);
    run.report(`ERROR could not resize image: ${reason}`);
    return false;
  }
  counts.grow(geometry.clustersFor(file.size));
  result.corruptions--;
  result.corruptionsFixed++;
  run.count(offset, geometry.clusterSize);
  return true;
}

async function resize(run: CheckRun, size: number): Promise<void> {
  const { file, geometry } = run;
  try {
    if (geometry.clustersFor(size) >= 2 ** 31) throw new BlockError("EFBIG");
    if (!file.truncate) throw new BlockError("ENOTSUP");
    await file.truncate(size);
  } catch (error) {
    run.report(`Could not resize file: ${reasonOf(error)}`, true);
    throw error;
  }
}

/** The result of a comparison. */
export interface Comparison {
  /** Whether the refcount structure lacks blocks and must be rebuilt. */
  rebuild: boolean;
  /** The last cluster in use. */
  highestCluster: number;
}

/** Compare the stored refcounts with the counted ones. */
export async function compareRefcounts(
  run: CheckRun,
  repair: Repair,
): Promise<Comparison> {
  const { counts, stored, geometry } = run;
  const entries = geometry.refcountBlockEntries;
  const comparison = { rebuild: false, highestCluster: 0 };
  for (let index = 0; index * entries < counts.length; index++) {
    const first = index * entries;
    const end = Math.min(first + entries, counts.length);
    if (stored.isAbsent(index) && counts.nextUsed(first, end) === end) continue;
    const block = repair.leaks || repair.corruptions
      ? await stored.block(index)
      : await stored.blockOnce(index);
    if (block === null) {
      unreadable(run, first, end);
    } else if (compareBlock(run, block, first, end, repair, comparison)) {
      stored.markDirty(index);
    }
  }
  return comparison;
}

function unreadable(run: CheckRun, first: number, end: number): void {
  for (let cluster = first; cluster < end; cluster++) {
    run.report(
      `Can't get refcount for cluster ${cluster}: ${strerror("EIO")}`,
    );
    run.result.checkErrors++;
  }
}

/** Compare the clusters of one block; returns whether the block was changed. */
function compareBlock(
  run: CheckRun,
  block: DataView,
  first: number,
  end: number,
  repair: Repair,
  comparison: Comparison,
): boolean {
  const { counts, result } = run;
  const { refcountOrder } = run.geometry;
  const refcountOf = (cluster: number) =>
    readRefcount(block, refcountOrder, cluster - first);
  const next = (from: number) =>
    counts.nextDifferent(block, refcountOrder, first, from, end);
  let highest = end - 1;
  while (
    highest >= first && refcountOf(highest) === 0 && counts.get(highest) === 0
  ) highest--;
  if (highest >= first) comparison.highestCluster = highest;
  let changed = false;
  for (let cluster = next(first); cluster < end; cluster = next(cluster + 1)) {
    const refcount = refcountOf(cluster);
    const references = counts.get(cluster);
    const leaked = refcount > references;
    const fixable = leaked ? repair.leaks : repair.corruptions;
    const fix = fixable && refcount !== 0;
    if (refcount === 0) comparison.rebuild = true;
    const verdict = fix ? "Repairing" : leaked ? "Leaked" : "ERROR";
    run.report(
      `${verdict} cluster ${cluster} ` +
        `refcount=${refcountText(block, refcountOrder, cluster - first)} ` +
        `reference=${references}`,
    );
    if (fix) {
      writeRefcount(block, refcountOrder, cluster - first, references);
      changed = true;
      if (references === 0) run.freed(cluster);
      if (leaked) result.leaksFixed++;
      else result.corruptionsFixed++;
    } else if (leaked) {
      result.leaks++;
    } else {
      result.corruptions++;
    }
  }
  return changed;
}
