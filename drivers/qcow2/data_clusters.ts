/**
 * Space for guest data: in the file, where each cluster has a refcount, or in
 * an external data file, where guest clusters have the same offsets as on the
 * disk and no refcounts. (Specification: "External data file".)
 *
 * @module
 */
import type { Mutex } from "../../core/lock.ts";
import type { BlockNode } from "../../core/node.ts";
import type { Behaviour, FreeReason } from "./behaviour.ts";
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
