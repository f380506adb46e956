/**
 * Emptying an image: freeing all of its own data.
 *
 * @module
 */
import type { BlockNode } from "../../core/node.ts";
import { writeZeroes } from "../../core/requests.ts";
import { Crypt } from "./format.ts";
import { firstRefcounts } from "./refcount_layout.ts";
import type { Qcow2State } from "./state.ts";
import { cutOff } from "./unmap.ts";

/** Clusters before the L1 table: header, refcount table, refcount block. */
const FIXED_CLUSTERS = 3;

/**
 * Unmap the whole disk: it reads as the backing file, or as zeroes without one.
 * Requires exclusive access to the image.
 */
export async function makeEmpty(state: Qcow2State): Promise<void> {
  if (canReset(state)) return await reset(state);
  await cutOff(state, 0, state.header.size, "snapshot");
  using _ = await state.metadata.lock();
  await state.flushCaches();
}

/**
 * Whether only the disk has clusters, and one refcount block counts the tables
 * of an empty image. Version 2 lacks the dirty bit, which {@linkcode reset}
 * relies on.
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
 * Make the file as short as when the image was created, in time that does not
 * depend on its content.
 *
 * The dirty bit is set meanwhile. Once the L1 table is zero, nothing can be
 * lost any more: missing or outdated refcounts are repaired when the image is
 * next opened for writing.
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
      // Tables in memory describe the old disk, part of which is gone.
      state.abandon();
      throw error;
    }
  });
  await file.truncate?.(total * clusterSize);
}

/** Durable, so that the next step cannot overtake it. */
async function zero(
  file: BlockNode,
  offset: number,
  length: number,
): Promise<void> {
  if (length > 0) await writeZeroes(file, offset, length);
  await file.flush?.();
}
