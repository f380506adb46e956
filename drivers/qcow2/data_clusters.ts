/**
 * Places for guest data: in the file, where each cluster is counted, or in an
 * external data file, where guest clusters have the offsets that they have on
 * the disk, and nothing counts them. (Specification: "External data file".)
 *
 * @module
 */
import type { Mutex } from "../../core/lock.ts";
import type { BlockNode } from "../../core/node.ts";
import type { Behaviour, FreeReason } from "./behaviour.ts";
import type { OverlapGuard } from "./overlap.ts";
import type { Refcounts } from "./refcounts.ts";
import type { TableCache } from "./table_cache.ts";

/** What it takes to find places. */
export interface DataHost {
  /** What guest data is written to: the file, or an external data file. */
  readonly dataFile: BlockNode;
  /** Whether guest data lies in a file of its own. */
  readonly hasDataFile: boolean;
  readonly refcounts: Refcounts;
  readonly overlap: OverlapGuard;
  readonly behaviour: Behaviour;
  readonly l2Cache: TableCache;
  /** Protects tables and refcounts. */
  readonly metadata: Mutex;
}

/** A place that L2 entries no longer refer to. */
export interface Freed {
  offset: number;
  length: number;
  /** It is that of one compressed cluster. */
  compressed?: boolean;
}

/** Take a place for guest clusters in a row; at once if that can be. */
export function allocateData(
  { hasDataFile, refcounts }: DataHost,
  guestOffset: number,
  clusters: number,
): number | Promise<number> {
  return hasDataFile ? guestOffset : refcounts.allocate(clusters);
}

/**
 * Give back a place that no entry has come to refer to. For the metadata lock's
 * holder.
 */
export async function returnData(
  { hasDataFile, refcounts }: DataHost,
  hostOffset: number,
  length: number,
): Promise<void> {
  if (!hasDataFile) await refcounts.add(hostOffset, length, -1);
}

/** Refuse to write guest data where metadata lies, which is only in the file. */
export function checkData(
  { hasDataFile, overlap }: DataHost,
  hostOffset: number,
  length: number,
): void | Promise<void> {
  if (!hasDataFile) return overlap.check(hostOffset, length);
}

/** Whether guest data can go there, as far as that is known at once. */
export function isClearOfMetadata(
  { hasDataFile, overlap }: DataHost,
  hostOffset: number,
  length: number,
): boolean {
  return hasDataFile || overlap.isClear(hostOffset, length);
}

/**
 * Pass freed space down to an external data file, once no entry in the file
 * refers to it. The caller holds the guest clusters: written to before, they
 * would lose what was written.
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
    // Only a wish: that it fails does no harm.
    await dataFile.discard!(offset, inside).catch(() => {});
  }
}
