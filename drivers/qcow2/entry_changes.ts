/**
 * Changing L2 entries: which clusters they own, what must be durable before
 * they change, and freeing what they referred to. (Specification: "L2 table
 * entry".)
 *
 * @module
 */
import type { FreeReason } from "./behaviour.ts";
import type { EntryPlace } from "./cluster_map.ts";
import type { DataHost, Freed } from "./data_clusters.ts";
import { hex } from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { SubclusterKind } from "./l2_entry.ts";
import type { TableCache } from "./table_cache.ts";

/** What changing entries needs of the image. */
export interface EntryHost extends DataHost {
  readonly geometry: Geometry;
  readonly refcountCache: TableCache;
  readonly compressed: { forget(): void };
  /** Set the dirty bit: refcounts need not be correct from here on. */
  markDirty(): Promise<void>;
  /** Report damage without failing the request that found it. */
  reportDamage(message: string): void;
}

/** Whether the cluster of an entry belongs to this image alone. */
export function isOwned(isCopied: boolean, kind: SubclusterKind): boolean {
  return isCopied && kind !== "compressed" && hasPlace(kind);
}

/** Whether an entry of this kind takes up space in the file. */
export function hasPlace(kind: SubclusterKind): boolean {
  return kind !== "unallocated" && kind !== "zero";
}

/**
 * Order the writes before L2 entries change: data and refcounts that the
 * entries rely on must reach the disk before them.
 */
export function orderL2AfterData(state: EntryHost): void | Promise<void> {
  const { l2Cache, refcountCache, behaviour } = state;
  // Flushing the refcount cache flushes the file, and with it the data.
  if (!behaviour.lazyRefcounts) return l2Cache.dependOn(refcountCache);
  return state.markDirty().then(() => l2Cache.dependOnFlush());
}

/** Note the cluster of an L2 entry that is about to be overwritten. */
export function noteFreed(
  state: EntryHost,
  place: EntryPlace,
  freed: Freed[],
): void {
  const { geometry, geometry: { l2 } } = state;
  const { slice: { view }, index } = place;
  if (l2.isCompressed(view, index)) {
    const offset = l2.compressedOffset(view, index);
    const length = l2.compressedLength(view, index);
    freed.push({ offset, length, compressed: true });
  } else if (l2.isPlaced(view, index)) {
    const offset = l2.offset(view, index);
    const last = freed[freed.length - 1];
    if (!geometry.isAligned(offset)) {
      // Clusters of an external data file have no refcounts.
      if (state.hasDataFile) return;
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

/** Free clusters that L2 entries no longer refer to. */
export async function releaseClusters(
  state: EntryHost,
  freed: readonly Freed[],
  reason: FreeReason = "other",
): Promise<void> {
  // Clusters of an external data file have no refcounts.
  if (freed.length === 0 || state.hasDataFile) return;
  using _ = await state.metadata.lock();
  state.compressed.forget();
  for (const { offset, length, compressed } of freed) {
    const step = compressed ? length : state.geometry.clusterSize;
    await state.refcounts.free(offset, length, reason, step);
  }
}
