/**
 * Giving up all that an image holds of its own.
 *
 * @module
 */
import type { BlockNode } from "../../core/node.ts";
import { writeZeroes } from "../../core/requests.ts";
import { Crypt } from "./format.ts";
import { firstRefcounts } from "./refcount_layout.ts";
import type { Qcow2State } from "./state.ts";
import { cutOff } from "./unmap.ts";

/** Clusters in front of the L1 table: header, refcount table, refcount block. */
const FIXED_CLUSTERS = 3;

/**
 * Leave the whole disk to the backing file; without one it reads as zeroes.
 * The caller holds the image alone.
 */
export async function makeEmpty(state: Qcow2State): Promise<void> {
  if (canReset(state)) return await reset(state);
  await cutOff(state, 0, state.header.size, "snapshot");
  using _ = await state.metadata.lock();
  await state.flushCaches();
}

/**
 * Whether nothing but the disk has clusters, and the tables of an empty image
 * fit below one refcount block. Version 2 lacks the dirty bit, on which
 * {@linkcode reset} relies.
 */
function canReset(
  { header, geometry, clusters, hasDataFile }: Qcow2State,
): boolean {
  return header.version >= 3 && header.snapshotCount === 0 &&
    !header.bitmaps && header.cryptMethod !== Crypt.LUKS &&
    !hasDataFile &&
    FIXED_CLUSTERS + geometry.clustersFor(clusters.l1Bytes.length) <=
      geometry.refcountBlockEntries;
}

/**
 * Make the file what it was when the image was made: as long as its tables,
 * however much it held.
 *
 * The dirty bit is set meanwhile. Once the L1 table is zero, there is nothing
 * left that could be lost: refcounts that are gone, or of the old disk, are
 * set right by whoever opens the image to write to it.
 */
async function reset(state: Qcow2State): Promise<void> {
  const { file, header, geometry, clusters } = state;
  const { clusterSize } = geometry;
  const l1Clusters = geometry.clustersFor(clusters.l1Bytes.length);
  const total = FIXED_CLUSTERS + l1Clusters;
  using _ = await state.metadata.lock();
  await state.flushCaches();
  await state.changeAsOne(async () => {
    try {
      await state.event("l1_update");
      await zero(file, header.l1TableOffset, l1Clusters * clusterSize);
      await state.event("empty_image_prepare");
      await zero(file, clusterSize, (total - 1) * clusterSize);
      await state.event("l1_update");
      await state.event("reftable_update");
      await state.changeHeader({
        l1TableOffset: FIXED_CLUSTERS * clusterSize,
        refcountTableOffset: clusterSize,
        refcountTableClusters: 1,
      });
      await state.event("refblock_alloc");
      await file.writev!(clusterSize, firstRefcounts(geometry, total));
      await state.reload();
    } catch (error) {
      // What is in memory is of the old disk, of which something is gone.
      state.abandon();
      throw error;
    }
  });
  await file.truncate?.(total * clusterSize);
}

/** Durably, so that what comes next cannot overtake it. */
async function zero(
  file: BlockNode,
  offset: number,
  length: number,
): Promise<void> {
  if (length > 0) await writeZeroes(file, offset, length);
  await file.flush?.();
}
