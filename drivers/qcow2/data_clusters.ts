/**
 * Space for guest data: in the file, where each cluster has a refcount, or in
 * an external data file, where guest clusters have the same offsets as on the
 * disk and no refcounts (specification: "External data file"); and changing the
 * L2 entries that refer to it: which clusters they own, what must be durable
 * before they change, and freeing what they referred to ("L2 table entry").
 *
 * @module
 */
import type { Mutex } from "../../core/lock.ts";
import type { BlockNode } from "../../core/node.ts";
import type { Behaviour, FreeReason } from "./behaviour.ts";
import type { EntryPlace } from "./cluster_map.ts";
import { hex } from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { SubclusterKind } from "./l2_entry.ts";
import type { OverlapGuard } from "./overlap.ts";
import type { Refcounts } from "./refcounts.ts";
import type { TableCache } from "./table_cache.ts";

/** What allocating data clusters needs of the image. */
export interface DataHost {
  /** What guest data is written to: the file, or an external data file. */
  readonly dataFile: BlockNode;
  /** Whether guest data is in an external data file. */
  readonly hasDataFile: boolean;
  readonly refcounts: Refcounts;
  readonly overlap: OverlapGuard;
  readonly behaviour: Behaviour;
  readonly l2Cache: TableCache;
  /** Protects tables and refcounts. */
  readonly metadata: Mutex;
}

/** Space that L2 entries no longer refer to. */
export interface Freed {
  offset: number;
  length: number;
  /** Whether it is the data of one compressed cluster. */
  compressed?: boolean;
}

/**
 * Allocate space for consecutive guest clusters; without waiting if possible.
 */
export function allocateData(
  { hasDataFile, refcounts }: DataHost,
  guestOffset: number,
  clusters: number,
): number | Promise<number> {
  return hasDataFile ? guestOffset : refcounts.allocate(clusters);
}

/** Free space that no entry refers to yet. Requires the metadata lock. */
export async function returnData(
  { hasDataFile, refcounts }: DataHost,
  hostOffset: number,
  length: number,
): Promise<void> {
  if (!hasDataFile) await refcounts.add(hostOffset, length, -1);
}

/** Refuse to write guest data over metadata, which is only in the file. */
export function checkData(
  { hasDataFile, overlap }: DataHost,
  hostOffset: number,
  length: number,
): void | Promise<void> {
  if (!hasDataFile) return overlap.check(hostOffset, length);
}

/** Whether guest data is known, without waiting, to overlap no metadata. */
export function isClearOfMetadata(
  { hasDataFile, overlap }: DataHost,
  hostOffset: number,
  length: number,
): boolean {
  return hasDataFile || overlap.isClear(hostOffset, length);
}

/**
 * Discard freed space in an external data file, once no entry in the file
 * refers to it. The caller holds the guest clusters, so that no later write is
 * discarded.
 */
export async function discardData(
  state: DataHost,
  freed: readonly Freed[],
  reason: FreeReason,
): Promise<void> {
  const { behaviour, dataFile, l2Cache, metadata } = state;
  const isWanted = behaviour.passDiscard[reason] && dataFile.discard;
  if (!isWanted || freed.length === 0) return;
  {
    using _ = await metadata.lock();
    await l2Cache.flush();
  }
  for (const { offset, length, compressed } of freed) {
    const inside = Math.min(length, dataFile.size - offset);
    if (compressed || inside <= 0) continue;
    // A discard is only a hint: a failure does no harm.
    await dataFile.discard!(offset, inside).catch(() => {});
  }
}

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
