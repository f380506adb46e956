/**
 * Changing L2 entries: whose clusters they refer to, what has to reach the disk
 * before they change, and what they no longer refer to then. (Specification:
 * "L2 table entry".)
 *
 * @module
 */
import type { Mutex } from "../../core/lock.ts";
import type { FreeReason } from "./behaviour.ts";
import type { EntryPlace } from "./cluster_map.ts";
import {
  type ClusterKind,
  clusterKind,
  COPIED,
  ENTRY_SIZE,
  entryOffset,
  type Geometry,
  hex,
} from "./format.ts";
import type { Refcounts } from "./refcounts.ts";
import type { TableCache } from "./table_cache.ts";

/** What changing entries needs of the image. */
export interface EntryHost {
  readonly geometry: Geometry;
  readonly clusters: {
    setEntry(place: EntryPlace, high: number, low: number): void;
  };
  readonly l2Cache: TableCache;
  readonly refcountCache: TableCache;
  readonly refcounts: Refcounts;
  readonly compressed: { forget(): void };
  readonly behaviour: { readonly lazyRefcounts: boolean };
  /** Protects tables and refcounts. */
  readonly metadata: Mutex;
  /** Mark the image as dirty: refcounts need not be right from here on. */
  markDirty(): Promise<void>;
  /** Report damage that does not stop the request which found it. */
  reportDamage(message: string): void;
}

/** Whether the entry's cluster belongs to this image alone. */
export function isOwned(high: number, kind: ClusterKind): boolean {
  return (high & COPIED) !== 0 &&
    (kind === "normal" || kind === "zeroAllocated");
}

/** Whether such a cluster takes up space in the file. */
export function hasPlace(kind: ClusterKind): boolean {
  return kind !== "unallocated" && kind !== "zero";
}

/**
 * Point an L2 entry at a cluster that is this image's alone.
 *
 * @param flag {@linkcode ZERO} if it is to read as zeroes all the same.
 */
export function setNormal(
  state: EntryHost,
  place: EntryPlace,
  host: number,
  flag = 0,
): void {
  const high = (Math.floor(host / 2 ** 32) | COPIED) >>> 0;
  state.clusters.setEntry(place, high, host % 2 ** 32 + flag);
}

/**
 * Before L2 entries change: neither data nor refcounts that they rely on may
 * reach the disk later than they do.
 */
export function orderL2AfterData(state: EntryHost): void | Promise<void> {
  const { l2Cache, refcountCache, behaviour } = state;
  // Flushing that cache flushes the file, and with it the data.
  if (!behaviour.lazyRefcounts) return l2Cache.dependOn(refcountCache);
  return state.markDirty().then(() => l2Cache.dependOnFlush());
}

/** A place in the file that L2 entries no longer refer to. */
export interface Freed {
  offset: number;
  length: number;
  /** It is that of one compressed cluster. */
  compressed?: boolean;
}

/** Note what an L2 entry refers to, which is about to be overwritten. */
export function noteFreed(
  state: EntryHost,
  place: EntryPlace,
  freed: Freed[],
): void {
  const { geometry } = state;
  const at = place.index * ENTRY_SIZE;
  const high = place.slice.view.getUint32(at);
  const low = place.slice.view.getUint32(at + 4);
  const kind = clusterKind(high, low);
  if (kind === "compressed") {
    const { hostOffset, length } = geometry.compressedCluster(high, low);
    freed.push({ offset: hostOffset, length, compressed: true });
  } else if (kind === "normal" || kind === "zeroAllocated") {
    const offset = entryOffset(high, low);
    const last = freed[freed.length - 1];
    if (!geometry.isAligned(offset)) {
      state.reportDamage(`Cannot free unaligned cluster ${hex(offset)}`);
    } else if (
      last && !last.compressed && last.offset + last.length === offset
    ) {
      last.length += geometry.clusterSize;
    } else {
      freed.push({ offset, length: geometry.clusterSize });
    }
  }
}

/** Give up references that L2 entries no longer make. */
export async function giveUp(
  state: EntryHost,
  freed: readonly Freed[],
  reason: FreeReason = "other",
): Promise<void> {
  if (freed.length === 0) return;
  using _ = await state.metadata.lock();
  state.compressed.forget();
  for (const { offset, length, compressed } of freed) {
    const step = compressed ? length : state.geometry.clusterSize;
    await state.refcounts.free(offset, length, reason, step);
  }
}
