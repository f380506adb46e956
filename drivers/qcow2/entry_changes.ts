/**
 * Changing L2 entries: whose clusters they refer to, what has to reach the disk
 * before they change, and what they no longer refer to then. (Specification:
 * "L2 table entry".)
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
  /** Mark the image as dirty: refcounts need not be right from here on. */
  markDirty(): Promise<void>;
  /** Report damage that does not stop the request which found it. */
  reportDamage(message: string): void;
}

/** Whether an entry's cluster belongs to this image alone. */
export function isOwned(isCopied: boolean, kind: SubclusterKind): boolean {
  return isCopied && kind !== "compressed" && hasPlace(kind);
}

/** Whether such a cluster takes up space in the file. */
export function hasPlace(kind: SubclusterKind): boolean {
  return kind !== "unallocated" && kind !== "zero";
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

/** Note what an L2 entry refers to, which is about to be overwritten. */
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
      // In an external data file, nothing counts it.
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

/** Give up references that L2 entries no longer make. */
export async function releaseClusters(
  state: EntryHost,
  freed: readonly Freed[],
  reason: FreeReason = "other",
): Promise<void> {
  // In an external data file, nothing counts them.
  if (freed.length === 0 || state.hasDataFile) return;
  using _ = await state.metadata.lock();
  state.compressed.forget();
  for (const { offset, length, compressed } of freed) {
    const step = compressed ? length : state.geometry.clusterSize;
    await state.refcounts.free(offset, length, reason, step);
  }
}
