/**
 * Doing without zero clusters, which version 2 of the format does not know, in
 * the active tables and in those of snapshots. (Specification: "Standard
 * Cluster Descriptor", bit 0.)
 *
 * @module
 */
import { writeZeroes } from "../../core/requests.ts";
import type { StepProgress } from "./amend.ts";
import { writeData } from "./encryption.ts";
import {
  clusterKind,
  ENTRY_SIZE,
  entryOffset,
  hex,
  viewOf,
  writeUint64,
} from "./format.ts";
import { readTable, updateCopiedFlags } from "./references.ts";
import { readSnapshotL1 } from "./snapshot_table.ts";
import { type Qcow2State, zeroes } from "./state.ts";

/** Bytes of zeroes that are encrypted at once. */
const BATCH = 256 * 1024;

/** An L2 table that is being gone through. */
interface Table {
  readonly view: DataView;
  readonly offset: number;
  /** Where the guest clusters that it maps begin. */
  readonly guestStart: number;
  /** How many L1 entries refer to it. */
  readonly references: number;
}

/** A zero cluster that is to have a cluster of zeroes in the file. */
interface Wanted {
  /** Offset of its entry in the table. */
  at: number;
  /** The cluster that it has already, if nobody else uses that. */
  host?: number;
}

/**
 * Turn all zero clusters into unallocated ones if the image has no backing
 * file, or else into clusters that hold zeroes. For the metadata lock's
 * holder; the caches must have been written.
 */
export async function expandZeroClusters(
  state: Qcow2State,
  progress: StepProgress,
): Promise<void> {
  const { header, snapshots } = state;
  let total = header.l1Size;
  for (const { l1Size } of snapshots) total += l1Size;
  const visited = { entries: 0, tables: new Set<number>() };
  await state.changeAsOne(async (undo) => {
    // What is shared now need not be so for long, and the other way round.
    undo.push(() => updateCopiedFlags(state));
    for (const l1 of await l1Tables(state)) {
      for (let at = 0; at < l1.byteLength; at += ENTRY_SIZE) {
        const offset = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
        if (offset !== 0 && !visited.tables.has(offset)) {
          visited.tables.add(offset);
          await expandTable(state, offset, at / ENTRY_SIZE);
        }
        progress(++visited.entries, total);
      }
    }
    await updateCopiedFlags(state);
    state.forgetTables();
  });
}

/** The active L1 table, and those of snapshots. */
async function l1Tables(state: Qcow2State): Promise<DataView[]> {
  const tables = [viewOf(state.clusters.l1Bytes)];
  for (const entry of state.snapshots) {
    tables.push(
      viewOf(await readSnapshotL1(state.file, state.geometry, entry)),
    );
  }
  return tables;
}

/** Whether any cluster is compressed, in the active tables or in snapshots. */
export async function hasCompressedClusters(
  state: Qcow2State,
): Promise<boolean> {
  const bytes = new Uint8Array(state.geometry.clusterSize);
  const view = viewOf(bytes);
  for (const l1 of await l1Tables(state)) {
    for (let index = 0; index < l1.byteLength / ENTRY_SIZE; index++) {
      const at = index * ENTRY_SIZE;
      const offset = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
      if (offset === 0) continue;
      await readTable(state, offset, bytes, index);
      for (let entry = 0; entry < bytes.length; entry += ENTRY_SIZE) {
        const high = view.getUint32(entry);
        const low = view.getUint32(entry + 4);
        if (clusterKind(high, low) === "compressed") return true;
      }
    }
  }
  return false;
}

async function expandTable(
  state: Qcow2State,
  offset: number,
  l1Index: number,
): Promise<void> {
  const { geometry, file, refcounts } = state;
  const { clusterSize } = geometry;
  const bytes = new Uint8Array(clusterSize);
  await readTable(state, offset, bytes, l1Index);
  const table: Table = {
    view: viewOf(bytes),
    offset,
    guestStart: l1Index * geometry.l2Coverage,
    references: await refcounts.get(offset / clusterSize),
  };
  const { wanted, freed, changed } = await examine(state, table);
  if (!changed) return;
  const fresh = await takeClusters(state, table, wanted);
  try {
    for (const { at, host } of wanted) {
      writeUint64(table.view, at, host!);
      const guest = table.guestStart + at / ENTRY_SIZE * clusterSize;
      await zeroCluster(state, host!, guest);
    }
    // The zeroes must be there before the entries that promise data.
    if (wanted.length > 0) await file.flush?.();
    await state.overlap.check(offset, clusterSize, "active-l2", "inactive-l2");
    await file.writev!(offset, [bytes]);
  } catch (error) {
    await release(state, table, fresh);
    throw error;
  }
  await release(state, table, freed);
}

/**
 * Find the zero clusters of a table. Those that need no data become
 * unallocated at once. A cluster that is shared with another table may hold
 * data there: it is given up rather than overwritten.
 */
async function examine(state: Qcow2State, table: Table) {
  const { geometry, refcounts, backing } = state;
  const { clusterSize } = geometry;
  const { view, references } = table;
  const wanted: Wanted[] = [];
  const freed: number[] = [];
  let changed = false;
  for (let at = 0; at < view.byteLength; at += ENTRY_SIZE) {
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    const kind = clusterKind(high, low);
    if (kind !== "zero" && kind !== "zeroAllocated") continue;
    changed = true;
    if (kind === "zeroAllocated") {
      const host = entryOffset(high, low);
      if (!geometry.isAligned(host)) {
        await state.corrupt(
          `Cluster allocation offset ${hex(host)} unaligned (L2 offset: ${
            hex(table.offset)
          }, L2 index: ${hex(at / ENTRY_SIZE)})`,
        );
      }
      if (await refcounts.get(host / clusterSize) === references) {
        wanted.push({ at, host });
        continue;
      }
      freed.push(host);
    }
    if (backing) wanted.push({ at });
    else writeUint64(view, at, 0);
  }
  return { wanted, freed, changed };
}

/** Give each zero cluster that has none a cluster in the file; answers those. */
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
  const { geometry, file, encryption, overlap } = state;
  const { clusterSize } = geometry;
  await overlap.check(host, clusterSize);
  // Plain zeroes in the file would not decrypt to zeroes.
  if (!encryption) return await writeZeroes(file, host, clusterSize);
  for (let done = 0; done < clusterSize; done += BATCH) {
    const part = zeroes(Math.min(BATCH, clusterSize - done));
    await writeData(state, host + done, guest + done, [part]);
  }
}

/** Give up all references that a table makes to clusters. */
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
