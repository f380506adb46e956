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
  hex,
  viewOf,
} from "./format.ts";
import type { Qcow2State } from "./state.ts";

/**
 * Add `delta` to the refcount of each L2 table and each cluster that an L1
 * table leads to, once for every reference. For the metadata lock's holder;
 * the caches must have been written.
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
        await state.refcounts.free(offset, length, "snapshot");
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

interface TreeRange {
  offset: number;
  length: number;
}

/** All ranges of the file that an L1 table leads to, L2 tables among them. */
async function* treeRanges(
  state: Qcow2State,
  l1: DataView,
): AsyncGenerator<TreeRange> {
  const { geometry } = state;
  const { clusterSize } = geometry;
  const table = allocate(clusterSize);
  const view = viewOf(table);
  for (let at = 0; at < l1.byteLength; at += ENTRY_SIZE) {
    const l2Offset = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
    if (l2Offset === 0) continue;
    await readTable(state, l2Offset, table, at / ENTRY_SIZE);
    let run: TreeRange | undefined;
    // The halves of the offset that would lengthen the run. Long runs are the
    // rule: this takes a quarter of the time of decoding each entry.
    let nextHigh = -1;
    let nextLow = -1;
    for (let entry = 0; entry < clusterSize; entry += ENTRY_SIZE) {
      const high = view.getUint32(entry);
      const low = view.getUint32(entry + 4);
      if (low === nextLow && (high & ~COPIED) === nextHigh) {
        run!.length += clusterSize;
        nextLow += clusterSize;
        continue;
      }
      const kind = clusterKind(high, low);
      if (kind === "unallocated" || kind === "zero") continue;
      if (kind === "compressed") {
        const { hostOffset, length } = geometry.compressedCluster(high, low);
        yield { offset: hostOffset, length };
        continue;
      }
      const offset = entryOffset(high, low);
      if (offset % clusterSize !== 0) {
        await state.corrupt(
          `Data cluster offset ${hex(offset)} unaligned (L2 offset: ${
            hex(l2Offset)
          }, L2 index: ${hex(entry / ENTRY_SIZE)})`,
        );
      }
      if (run && run.offset + run.length === offset) {
        run.length += clusterSize;
      } else {
        if (run) yield run;
        run = { offset, length: clusterSize };
      }
      // Past 32 bits, `nextLow` matches nothing, and the entry is decoded.
      nextHigh = Math.floor(offset / 2 ** 32);
      nextLow = offset % 2 ** 32 + clusterSize;
    }
    if (run) yield run;
    yield { offset: l2Offset, length: clusterSize };
  }
}

/**
 * Make the COPIED flags of the active tables true to the refcounts. For the
 * metadata lock's holder; the caches must have been written, and forget what
 * this changes in the file.
 *
 * @param shared Everything is known to be referenced more than once.
 */
export async function updateCopiedFlags(
  state: Qcow2State,
  shared: boolean,
): Promise<void> {
  const { geometry, file, clusters, header } = state;
  const { clusterSize } = geometry;
  const l1 = viewOf(clusters.l1Bytes);
  const table = allocate(clusterSize);
  const view = viewOf(table);
  const { refcounts } = state;
  const isSole = async (offset: number) =>
    !shared && await refcounts.get(offset / clusterSize) === 1;
  let l1Changed = false;
  for (let at = 0; at < l1.byteLength; at += ENTRY_SIZE) {
    const l2Offset = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
    if (l2Offset === 0) continue;
    await readTable(state, l2Offset, table, at / ENTRY_SIZE);
    let changed = false;
    for (let entry = 0; entry < clusterSize; entry += ENTRY_SIZE) {
      const high = view.getUint32(entry);
      const low = view.getUint32(entry + 4);
      if (shared && !(high & COPIED)) continue;
      const kind = clusterKind(high, low);
      if (kind !== "normal" && kind !== "zeroAllocated") continue;
      const offset = entryOffset(high, low);
      // Nearly always at hand: no waiting for each of millions of entries.
      const count = shared ? 2 : refcounts.peek(offset / clusterSize);
      const sole = count === undefined ? await isSole(offset) : count === 1;
      changed = setCopied(view, entry, sole) || changed;
    }
    if (changed) await file.writev!(l2Offset, [table]);
    l1Changed = setCopied(l1, at, await isSole(l2Offset)) || l1Changed;
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

async function readTable(
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
