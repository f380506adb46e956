/**
 * Counting the references of a whole tree of tables: what an L1 table leads
 * to. Runs of clusters are counted as one range. (Specification: "Snapshots".)
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import {
  clusterKind,
  COPIED,
  ENTRY_SIZE,
  entryOffset,
  type Geometry,
  hex,
  viewOf,
} from "./format.ts";
import type { Qcow2State } from "./state.ts";

/**
 * Add `delta` to the refcount of each L2 table and each cluster that an L1
 * table leads to, once for every reference. For the metadata lock's holder; the
 * cached L2 tables, of which a snapshot's do not change, must have been written.
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
    // A count that cannot grow any further must not leave the others grown.
    for (const { offset, length } of done) {
      await state.refcounts.add(offset, length, -1);
    }
    throw error;
  }
}

/** All ranges of the file that an L1 table leads to, L2 tables among them. */
async function* treeRanges(
  state: Qcow2State,
  l1: DataView,
): AsyncGenerator<TreeRange> {
  const { clusterSize } = state.geometry;
  for await (const { l2Offset, table } of l2Tables(state, l1)) {
    const view = viewOf(table);
    for (let at = 0; at < clusterSize;) {
      const { range, next } = rangeFrom(state.geometry, view, at);
      if (range && range.offset % clusterSize !== 0 && !range.compressed) {
        await state.corrupt(
          unaligned(range.offset, l2Offset, next / ENTRY_SIZE - 1),
        );
      }
      if (range) yield range;
      at = next;
    }
    yield { offset: l2Offset, length: clusterSize };
  }
}

/** The message for an entry that does not point to the start of a cluster. */
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
 * What the entry at `at` of an L2 table leads to, with the entries after it
 * that go on where it ends; and where to look next. No promises and no objects
 * for each entry: a large disk has millions.
 */
function rangeFrom(
  geometry: Geometry,
  view: DataView,
  at: number,
): { range?: TreeRange; next: number } {
  const { clusterSize } = geometry;
  for (; at < clusterSize; at += ENTRY_SIZE) {
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    const kind = clusterKind(high, low);
    if (kind === "unallocated" || kind === "zero") continue;
    let next = at + ENTRY_SIZE;
    if (kind === "compressed") {
      const { hostOffset, length } = geometry.compressedCluster(high, low);
      const range = { offset: hostOffset, length, compressed: true };
      return { range, next };
    }
    const offset = entryOffset(high, low);
    let end = offset + clusterSize;
    if (offset % clusterSize === 0) {
      // The flags may differ, but compressed entries mean something else.
      while (
        next < clusterSize && (view.getUint8(next) & 0x40) === 0 &&
        entryOffset(view.getUint32(next), view.getUint32(next + 4)) === end
      ) {
        end += clusterSize;
        next += ENTRY_SIZE;
      }
    }
    return { range: { offset, length: end - offset }, next };
  }
  return { next: at };
}

/** Each L2 table that an L1 table leads to; its bytes are used again. */
async function* l2Tables(
  state: Qcow2State,
  l1: DataView,
): AsyncGenerator<{ l1At: number; l2Offset: number; table: Uint8Array }> {
  const table = allocate(state.geometry.clusterSize);
  for (let l1At = 0; l1At < l1.byteLength; l1At += ENTRY_SIZE) {
    const l2Offset = entryOffset(l1.getUint32(l1At), l1.getUint32(l1At + 4));
    if (l2Offset === 0) continue;
    await readTable(state, l2Offset, table, l1At / ENTRY_SIZE);
    yield { l1At, l2Offset, table };
  }
}

/**
 * Clear the COPIED flags of the active tables: everything is shared now. For
 * the metadata lock's holder; the cached L2 tables must have been written, and
 * are forgotten.
 */
export async function clearCopiedFlags(state: Qcow2State): Promise<void> {
  const l1 = state.clusters.l1Bytes;
  for await (const { l2Offset, table } of l2Tables(state, viewOf(l1))) {
    if (clearCopied(table)) await state.file.writev!(l2Offset, [table]);
  }
  state.l2Cache.clear();
  if (clearCopied(l1)) {
    await state.file.writev!(state.header.l1TableOffset, [l1]);
  }
}

/** Clear the COPIED flags of a table; whether any was set. */
export function clearCopied(table: Uint8Array): boolean {
  let changed = false;
  for (let at = 0; at < table.length; at += ENTRY_SIZE) {
    if (table[at] < 0x80) continue;
    table[at] &= 0x7f;
    changed = true;
  }
  return changed;
}

/**
 * Make the COPIED flags of the active tables true to the refcounts. For the
 * metadata lock's holder; the cached L2 tables must have been written, and are
 * forgotten.
 */
export async function updateCopiedFlags(state: Qcow2State): Promise<void> {
  const { file, clusters, header, refcounts } = state;
  const { clusterSize } = state.geometry;
  const l1 = viewOf(clusters.l1Bytes);
  let l1Changed = false;
  for await (const { l1At, l2Offset, table } of l2Tables(state, l1)) {
    const view = viewOf(table);
    let changed = false;
    for (let at = 0; at < table.length; at += ENTRY_SIZE) {
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      const kind = clusterKind(high, low);
      if (kind !== "normal" && kind !== "zeroAllocated") continue;
      const offset = entryOffset(high, low);
      if (offset % clusterSize !== 0) {
        const index = at / ENTRY_SIZE;
        await state.corrupt(unaligned(offset, l2Offset, index));
      }
      const cluster = offset / clusterSize;
      // Nearly always at hand: no waiting for each of millions of entries.
      const count = refcounts.peek(cluster) ?? await refcounts.get(cluster);
      changed = setCopied(view, at, count === 1) || changed;
    }
    if (changed) await file.writev!(l2Offset, [table]);
    const count = await refcounts.get(l2Offset / clusterSize);
    l1Changed = setCopied(l1, l1At, count === 1) || l1Changed;
  }
  state.l2Cache.clear();
  if (l1Changed) await file.writev!(header.l1TableOffset, [clusters.l1Bytes]);
}

/** Set or clear the flag of an entry; whether that changed it. */
function setCopied(view: DataView, at: number, copied: boolean): boolean {
  const high = view.getUint32(at);
  const wanted = (copied ? high | COPIED : high & ~COPIED) >>> 0;
  if (wanted === high) return false;
  view.setUint32(at, wanted);
  return true;
}

/** Read an L2 table; `l1Index` says where it was found, for messages. */
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
