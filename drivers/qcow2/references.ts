/**
 * Counting the references of a tree of tables, given by its L1 table.
 * Consecutive clusters are counted as one range. (Specification: "Snapshots".)
 *
 * @module
 */
import { allocate, viewOf } from "../../core/bytes.ts";
import {
  bytesOf,
  clearCopied,
  ENTRY_SIZE,
  entryOffset,
  hex,
  setCopied,
} from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { Qcow2State } from "./state.ts";

/**
 * Add `delta` to the refcounts of the L2 tables and clusters of an L1 table,
 * once for every reference. Requires the metadata lock. Cached L2 tables must
 * have been written; a snapshot's do not change.
 */
export async function countTree(
  state: Qcow2State,
  l1: DataView,
  delta: 1 | -1,
): Promise<void> {
  const done: TreeRange[] = [];
  try {
    for await (const range of treeRanges(state, l1)) {
      const { offset, length } = range;
      if (delta === 1) {
        await state.refcounts.add(offset, length, 1);
        done.push(range);
      } else {
        await state.refcounts.release(offset, length, "snapshot");
      }
    }
  } catch (error) {
    // If one refcount cannot grow any further, none may have grown.
    for (const { offset, length } of done) {
      await state.refcounts.add(offset, length, -1);
    }
    throw error;
  }
}

/** All ranges of the file that an L1 table refers to, including L2 tables. */
async function* treeRanges(
  state: Qcow2State,
  l1: DataView,
): AsyncGenerator<TreeRange> {
  const { clusterSize, l2 } = state.geometry;
  for await (const { l2Offset, table } of l2Tables(state, l1)) {
    for (let index = 0; index < l2.entriesPerTable;) {
      const { range, next } = rangeFrom(state.geometry, table, index);
      if (range && range.offset % clusterSize !== 0 && !range.compressed) {
        await state.corrupt(unaligned(range.offset, l2Offset, next - 1));
      }
      if (range) yield range;
      index = next;
    }
    yield { offset: l2Offset, length: clusterSize };
  }
}

/** The message for an entry whose offset is not aligned to a cluster. */
function unaligned(offset: number, l2Offset: number, index: number): string {
  return `Cluster allocation offset ${hex(offset)} unaligned ` +
    `(L2 offset: ${hex(l2Offset)}, L2 index: ${hex(index)})`;
}

interface TreeRange {
  offset: number;
  length: number;
  compressed?: boolean;
}

/**
 * The range of an L2 entry, extended by the entries that continue it, and where
 * to go on. No promise and no object for each entry: a large disk has millions.
 */
function rangeFrom(
  { clusterSize, l2 }: Geometry,
  table: DataView,
  index: number,
): { range?: TreeRange; next: number } {
  for (; index < l2.entriesPerTable; index++) {
    if (l2.isCompressed(table, index)) {
      const offset = l2.compressedOffset(table, index);
      const length = l2.compressedLength(table, index);
      return { range: { offset, length, compressed: true }, next: index + 1 };
    }
    if (!l2.isPlaced(table, index)) continue;
    const offset = l2.offset(table, index);
    const isAligned = offset % clusterSize === 0;
    const count = isAligned
      ? l2.runLength(table, index, l2.entriesPerTable)
      : 1;
    const range = { offset, length: count * clusterSize };
    return { range, next: index + count };
  }
  return { next: index };
}

/** The L2 tables of an L1 table, in a buffer that is reused. */
async function* l2Tables(
  state: Qcow2State,
  l1: DataView,
): AsyncGenerator<{ l1At: number; l2Offset: number; table: DataView }> {
  const bytes = allocate(state.geometry.clusterSize);
  const table = viewOf(bytes);
  for (let l1At = 0; l1At < l1.byteLength; l1At += ENTRY_SIZE) {
    const l2Offset = entryOffset(l1.getUint32(l1At), l1.getUint32(l1At + 4));
    if (l2Offset === 0) continue;
    await readTable(state, l2Offset, bytes, l1At / ENTRY_SIZE);
    yield { l1At, l2Offset, table };
  }
}

/**
 * Clear the COPIED flags of the active tables, since everything is shared now.
 * Requires the metadata lock. The cached L2 tables must have been written, and
 * are dropped.
 */
export async function clearCopiedFlags(state: Qcow2State): Promise<void> {
  const { clusters, file, geometry: { l2 }, header, overlap } = state;
  const l1 = clusters.l1Bytes;
  for await (const { l2Offset, table } of l2Tables(state, viewOf(l1))) {
    const bytes = bytesOf(table);
    if (!clearCopied(bytes, l2.entrySize)) continue;
    await overlap.check(l2Offset, bytes.length, "active-l2");
    await file.writev!(l2Offset, [bytes]);
  }
  state.l2Cache.clear();
  if (clearCopied(l1)) await file.writev!(header.l1TableOffset, [l1]);
}

/**
 * Make the COPIED flags of the active tables agree with the refcounts. Requires
 * the metadata lock. The cached L2 tables must have been written, and are
 * dropped.
 *
 * @param keepsDamage Leave entries unchanged that are not aligned, or have no
 * refcount.
 */
export async function updateCopiedFlags(
  state: Qcow2State,
  keepsDamage = false,
): Promise<void> {
  const { file, clusters, header, overlap, refcounts } = state;
  const { clusterSize, l2 } = state.geometry;
  const l1 = viewOf(clusters.l1Bytes);
  let l1Changed = false;
  for await (const { l1At, l2Offset, table } of l2Tables(state, l1)) {
    let changed = false;
    for (let index = 0; index < l2.entriesPerTable; index++) {
      if (!l2.isPlaced(table, index)) continue;
      const offset = l2.offset(table, index);
      if (offset % clusterSize !== 0) {
        if (keepsDamage) continue;
        await state.corrupt(unaligned(offset, l2Offset, index));
      }
      const cluster = offset / clusterSize;
      // Nearly always cached: no waiting for each of millions of entries.
      const count = refcounts.peek(cluster) ?? await refcounts.get(cluster);
      if (count === 0 && keepsDamage) continue;
      changed = l2.setCopied(table, index, count === 1) || changed;
    }
    if (changed) {
      await overlap.check(l2Offset, clusterSize, "active-l2");
      await file.writev!(l2Offset, [bytesOf(table)]);
    }
    const count = await refcounts.get(l2Offset / clusterSize);
    if (count === 0 && keepsDamage) continue;
    l1Changed = setCopied(l1, l1At, count === 1) || l1Changed;
  }
  state.l2Cache.clear();
  if (l1Changed) await file.writev!(header.l1TableOffset, [clusters.l1Bytes]);
}

/** Read an L2 table; `l1Index` is its L1 entry, for messages. */
export async function readTable(
  state: Qcow2State,
  l2Offset: number,
  table: Uint8Array,
  l1Index: number,
): Promise<void> {
  if (!state.geometry.isAligned(l2Offset)) {
    await state.corrupt(
      `L2 table offset ${hex(l2Offset)} unaligned (L1 index: ${hex(l1Index)})`,
    );
  }
  await state.file.readv(l2Offset, [table]);
}
