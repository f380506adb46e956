/**
 * Places for guest data: in the file, where each cluster is counted, or in an
 * external data file, where guest clusters have the offsets that they have on
 * the disk, and nothing counts them. (Specification: "External data file".)
 *
 * @module
 */
import type { FreeReason } from "./behaviour.ts";
import type { Freed } from "./entry_changes.ts";
import type { Qcow2State } from "./state.ts";

/** Take a place for guest clusters in a row; at once if that can be. */
export function allocateData(
  { hasDataFile, refcounts }: Qcow2State,
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
  { hasDataFile, refcounts }: Qcow2State,
  hostOffset: number,
  length: number,
): Promise<void> {
  if (!hasDataFile) await refcounts.add(hostOffset, length, -1);
}

/** Refuse to write guest data where metadata lies, which is only in the file. */
export function checkData(
  { hasDataFile, overlap }: Qcow2State,
  hostOffset: number,
  length: number,
): void | Promise<void> {
  if (!hasDataFile) return overlap.check(hostOffset, length);
}

/**
 * Pass freed space down to an external data file, once no entry in the file
 * refers to it. The caller holds the guest clusters: written to before, they
 * would lose what was written.
 */
export async function discardData(
  state: Qcow2State,
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
