/**
 * Removing zero clusters, which version 2 of the format lacks, from the active
 * tables and those of snapshots. (Specification: "Standard Cluster Descriptor",
 * bit 0.)
 *
 * @module
 */
import { viewOf } from "../../core/bytes.ts";
import { writeZeroes } from "../../core/requests.ts";
import type { StepProgress } from "./amend_progress.ts";
import { checkData } from "./data_clusters.ts";
import { ENTRY_SIZE, entryOffset, hex } from "./format.ts";
import { readTable, updateCopiedFlags } from "./references.ts";
import { readSnapshotL1 } from "./snapshot_table.ts";
import { type Qcow2State, zeroes } from "./state.ts";

/** Most bytes of zeroes encrypted at once. */
const BATCH = 256 * 1024;

/** An L2 table being processed. */
interface Table {
  readonly view: DataView;
  readonly offset: number;
  /** Guest offset of its first cluster. */
  readonly guestStart: number;
  /** How many L1 entries refer to it. */
  readonly references: number;
}

/** A zero cluster that needs a data cluster of zeroes. */
interface Wanted {
  /** Index of its entry in the table. */
  index: number;
  /** Host offset of its present cluster, if it belongs to this table alone. */
  host?: number;
}

/**
 * Turn all zero clusters into unallocated ones if the image has no backing
 * file, or else into data clusters of zeroes. Requires the metadata lock; the
 * caches must have been written.
 */
export async function expandZeroClusters(
  state: Qcow2State,
  progress: StepProgress,
): Promise<void> {
  // Counted in the tables, since refcounts may be too high.
  const references = new Map<number, number>();
  let total = 0;
  for await (const l1 of l1Tables(state)) {
    total += l1.byteLength / ENTRY_SIZE;
    for (const { offset } of l1Entries(l1)) {
      if (offset) references.set(offset, (references.get(offset) ?? 0) + 1);
    }
  }
  await state.changeAsOne(async (undo) => {
    // Sharing changes on the way, and so do the COPIED flags.
    let changes = false;
    const updateFlags = async () => {
      if (changes) await updateCopiedFlags(state, true);
    };
    undo.push(updateFlags);
    let visited = 0;
    for await (const l1 of l1Tables(state)) {
      for (const { offset, l1Index } of l1Entries(l1)) {
        const count = references.get(offset);
        if (count) {
          const changed = await expandTable(state, offset, l1Index, count);
          changes ||= changed;
        }
        references.delete(offset);
        progress(++visited, total);
      }
    }
    await updateFlags();
    state.forgetTables();
  });
}

/** The active L1 table, and those of snapshots. */
async function* l1Tables(state: Qcow2State): AsyncGenerator<DataView> {
  const { clusters, snapshots, file, geometry } = state;
  yield viewOf(clusters.l1Bytes);
  for (const entry of snapshots) {
    yield viewOf(await readSnapshotL1(file, geometry, entry));
  }
}

/** Offsets of the L2 tables of an L1 table; 0 for none. */
function* l1Entries(
  l1: DataView,
): Generator<{ offset: number; l1Index: number }> {
  for (let at = 0; at < l1.byteLength; at += ENTRY_SIZE) {
    const offset = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
    yield { offset, l1Index: at / ENTRY_SIZE };
  }
}

/** Whether any cluster is compressed, in the active tables or in snapshots. */
export async function hasCompressedClusters(
  state: Qcow2State,
): Promise<boolean> {
  const { clusterSize, l2 } = state.geometry;
  const bytes = new Uint8Array(clusterSize);
  const view = viewOf(bytes);
  for await (const l1 of l1Tables(state)) {
    for (const { offset, l1Index } of l1Entries(l1)) {
      if (offset === 0) continue;
      await readTable(state, offset, bytes, l1Index);
      for (let index = 0; index < l2.entriesPerTable; index++) {
        if (l2.isCompressed(view, index)) return true;
      }
    }
  }
  return false;
}

/** Returns whether it changes the table. */
async function expandTable(
  state: Qcow2State,
  offset: number,
  l1Index: number,
  references: number,
): Promise<boolean> {
  const { geometry, file } = state;
  const { clusterSize, l2 } = geometry;
  const bytes = new Uint8Array(clusterSize);
  await readTable(state, offset, bytes, l1Index);
  const table: Table = {
    view: viewOf(bytes),
    offset,
    guestStart: l1Index * geometry.l2Coverage,
    references,
  };
  const { wanted, freed, changed } = await examine(state, table);
  if (!changed) return false;
  const fresh = await takeClusters(state, table, wanted);
  try {
    for (const { index, host } of wanted) {
      l2.setPlace(table.view, index, host!);
      // The flags are set at the end, for all entries.
      l2.setCopied(table.view, index, false);
      const guest = table.guestStart + index * clusterSize;
      await zeroCluster(state, host!, guest);
    }
    // Zeroes and refcounts must be durable before the entries that rely on
    // them.
    if (wanted.length > 0) {
      await state.flushData();
      await state.refcountCache.flush();
    }
    await state.overlap.check(offset, clusterSize, "active-l2", "inactive-l2");
    await file.writev!(offset, [bytes]);
  } catch (error) {
    await release(state, table, fresh);
    throw error;
  }
  await release(state, table, freed);
  return true;
}

/**
 * Find the zero clusters of a table. Those that need no data become unallocated
 * at once. A cluster shared with another table may hold data there: it is freed
 * rather than overwritten.
 */
async function examine(state: Qcow2State, table: Table) {
  const { geometry, refcounts, backing } = state;
  const { clusterSize, l2 } = geometry;
  const { view, references } = table;
  const wanted: Wanted[] = [];
  const freed: number[] = [];
  let changed = false;
  for (let index = 0; index < l2.entriesPerTable; index++) {
    const kind = l2.kind(view, index);
    if (kind !== "zero" && kind !== "zeroAllocated") continue;
    changed = true;
    if (kind === "zeroAllocated") {
      const host = l2.offset(view, index);
      if (!geometry.isAligned(host)) {
        await state.corrupt(
          `Cluster allocation offset ${hex(host)} unaligned (L2 offset: ${
            hex(table.offset)
          }, L2 index: ${hex(index)})`,
        );
      }
      if (await refcounts.get(host / clusterSize) <= references) {
        wanted.push({ index, host });
        continue;
      }
      freed.push(host);
    }
    if (backing) wanted.push({ index });
    else l2.clear(view, index, false);
  }
  return { wanted, freed, changed };
}

/** Allocate clusters for the zero clusters without one; returns these. */
async function takeClusters(
  { refcounts, geometry }: Qcow2State,
  { references }: Table,
  wanted: readonly Wanted[],
): Promise<number[]> {
  const { clusterSize } = geometry;
  const lacking = wanted.filter(({ host }) => host === undefined);
  if (lacking.length === 0) return [];
  const start = await refcounts.allocate(lacking.length);
  const length = lacking.length * clusterSize;
  for (let count = 1; count < references; count++) {
    await refcounts.add(start, length, 1);
  }
  return lacking.map((cluster, i) => cluster.host = start + i * clusterSize);
}

async function zeroCluster(
  state: Qcow2State,
  host: number,
  guest: number,
): Promise<void> {
  const { geometry, dataFile, encryption } = state;
  const { clusterSize } = geometry;
  await checkData(state, host, clusterSize);
  // Plain zeroes would not decrypt to zeroes.
  if (!encryption) return await writeZeroes(dataFile, host, clusterSize);
  for (let done = 0; done < clusterSize; done += BATCH) {
    const part = zeroes(Math.min(BATCH, clusterSize - done));
    await encryption.writev(dataFile, host + done, guest + done, [part]);
  }
}

/** Drop all references of a table to clusters. */
async function release(
  { refcounts, geometry }: Qcow2State,
  { references }: Table,
  clusters: readonly number[],
): Promise<void> {
  for (const offset of clusters) {
    for (let count = 0; count < references; count++) {
      await refcounts.free(offset, geometry.clusterSize);
    }
  }
}
