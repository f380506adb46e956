/**
 * Resizing the disk, and preallocating clusters.
 *
 * @module
 */
import { allocate, SECTOR_SIZE } from "../../core/bytes.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import type { Preallocation, TruncateOptions } from "../../core/node.ts";
import { writeZeroData, writeZeroes } from "../../core/requests.ts";
import {
  allocateData,
  type Freed,
  noteFreed,
  orderL2AfterData,
  releaseClusters,
} from "./data_clusters.ts";

import type { Qcow2State } from "./state.ts";
import { cutOff, zeroGuest, zeroParts } from "./unmap.ts";

/**
 * Resize the disk. Requires exclusive access to the image.
 *
 * @param size Bytes, a multiple of 512.
 */
export async function resize(
  state: Qcow2State,
  size: number,
  options: TruncateOptions = {},
): Promise<void> {
  const { header } = state;
  const { preallocation = "off" } = options;
  if (size % SECTOR_SIZE !== 0) {
    throw new BlockError("EINVAL", "The new size must be a multiple of 512");
  }
  if (header.snapshotCount > 0 && header.version < 3) {
    throw new BlockError(
      "ENOTSUP",
      "Can't resize a v2 image which has snapshots",
    );
  }
  if (size < header.size && preallocation !== "off") {
    throw new BlockError(
      "EINVAL",
      "Preallocation can't be used for shrinking an image",
    );
  }
  if (size === header.size) return;
  const { bitmaps } = state;
  bitmaps?.checkResize(size);
  await bitmaps?.prepareResize();
  const oldSize = header.size;
  try {
    if (size < oldSize) await shrink(state, size);
    else await grow(state, size, preallocation);
  } finally {
    await bitmaps?.resize(header.size);
    // The part to be cut off may be lost, but the size is unchanged.
    const lost = header.size - size;
    if (lost > 0) await bitmaps?.mark(size, lost);
  }
}

async function grow(
  state: Qcow2State,
  size: number,
  preallocation: Preallocation,
): Promise<void> {
  const { header, geometry, clusters, backing } = state;
  const oldSize = header.size;
  // Whoever reads a raw data file alone must find the whole disk there.
  if (state.dataFileIsRaw && preallocation === "off") {
    preallocation = "metadata";
  }
  {
    using _ = await state.metadata.lock();
    try {
      await clusters.growL1(geometry.l1EntriesFor(size), true);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      throw error.prefixed("Failed to grow the L1 table: ");
    }
  }
  // The new area must read as zeroes before the disk includes it: neither a
  // larger backing file nor the old rest of the last cluster may show.
  header.size = size;
  try {
    await forgetPast(state, oldSize);
    const clusterEnd = Math.min(size, geometry.clusterEnd(oldSize));
    const showsMore = backing !== undefined && backing.size > oldSize;
    if (showsMore && clusterEnd < size) {
      await zeroGuest(state, clusterEnd, size - clusterEnd).catch((error) => {
        throw asBlockError(error).prefixed("Failed to zero out new clusters: ");
      });
    }
    if (
      oldSize < clusterEnd &&
      (showsMore || !await state.access.readsAsZeroes(oldSize, clusterEnd))
    ) {
      await zeroGuest(state, oldSize, clusterEnd - oldSize);
    }
    if (preallocation !== "off") {
      const first = geometry.clusterEnd(oldSize);
      const start = await completeLast(state, oldSize, clusterEnd);
      await preallocate(state, start, size, preallocation);
      // QEMU marks areas that would show the backing file as zeroes once more,
      // unless their space is zeroed on the disk.
      if (showsMore && preallocation === "metadata" && first < size) {
        await zeroGuest(state, first, size - first);
      }
    }
    await fitDataFile(state, size);
    using _ = await state.metadata.lock();
    await state.flushCaches();
  } catch (error) {
    header.size = oldSize;
    throw error;
  }
  // The file still has the old size, to which a failure returns.
  header.size = oldSize;
  await state.changeHeader({ size });
}

/**
 * Complete the cluster that contains the old end: it may be unallocated, or its
 * rest a hole.
 *
 * @returns where the clusters to be allocated begin.
 */
async function completeLast(
  state: Qcow2State,
  oldSize: number,
  end: number,
): Promise<number> {
  const { geometry, clusters } = state;
  const next = geometry.clusterEnd(oldSize);
  if (oldSize >= end) return next;
  if (!geometry.l2.isExtended) {
    // Writing zeroes as data fixes both.
    await state.access.writev(oldSize, [allocate(end - oldSize)]);
    return next;
  }
  const start = geometry.clusterStart(oldSize);
  using _ = await state.metadata.lock();
  const { kind } = await clusters.findWhole(start, 1);
  const isPlaced = kind === "normal" || kind === "zeroAllocated" ||
    kind === "compressed";
  // It can be allocated without changing what it reads as.
  return isPlaced ? next : start;
}

/**
 * Unmap everything past the end of the disk, which is about to move: for one,
 * VM state that never became a snapshot.
 *
 * @param end The present end of the disk.
 */
async function forgetPast(state: Qcow2State, end: number): Promise<void> {
  const { header, geometry, clusters } = state;
  const start = geometry.clusterEnd(end);
  let index = Math.floor(start / geometry.l2Coverage);
  for (; index < header.l1Size; index++) {
    const first = index * geometry.l2Coverage;
    if (first >= header.size) break;
    const table = clusters.l2TableOffset(index);
    // Nothing can be read through a table that is in no cluster of its own.
    if (table === 0 || !geometry.isAligned(table)) continue;
    const last = Math.min(first + geometry.l2Coverage, header.size);
    await cutOff(state, Math.max(start, first), last, "always");
  }
}

async function shrink(state: Qcow2State, size: number): Promise<void> {
  const { header, geometry, file } = state;
  const oldSize = header.size;
  await cutOff(state, geometry.clusterEnd(size), oldSize, "always").catch(
    (error) => {
      throw asBlockError(error).prefixed(
        "Failed to discard cropped clusters: ",
      );
    },
  );
  using _ = await state.metadata.lock();
  await state.flushCaches();
  await state.changeHeader({ size });
  await fitDataFile(state, size);
  await dropL2Tables(state, geometry.l1EntriesFor(size));
  await state.flushCaches();
  try {
    while (await state.refcounts.dropEmptyBlocks());
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw error.prefixed("Failed to discard unused refblocks: ");
  }
  const end = await state.refcounts.endOfUse();
  if (end < file.size) {
    // The disk is smaller in any case; a window of a file cannot shrink.
    await file.truncate?.(end).catch((error) => {
      state.behaviour.report(
        "warning: Failed to truncate the tail of the image: " +
          asBlockError(error).message,
      );
    });
  }
}

/** Resize a data file along with the disk, if possible. */
async function fitDataFile(
  { dataFile, hasDataFile }: Qcow2State,
  size: number,
): Promise<void> {
  if (!hasDataFile || dataFile.size === size) return;
  try {
    await dataFile.truncate?.(size);
  } catch (error) {
    // A device may be larger than its disk.
    if (dataFile.size < size) throw error;
  }
}

/** Free the L2 tables of all L1 entries from an index on. */
async function dropL2Tables(state: Qcow2State, from: number): Promise<void> {
  const { header, geometry, clusters, refcounts } = state;
  for (let index = from; index < header.l1Size; index++) {
    const offset = clusters.l2TableOffset(index);
    if (offset === 0) continue;
    await clusters.setL1Entry(index, 0);
    await refcounts.free(offset, geometry.clusterSize, "always");
  }
}

/**
 * Allocate every cluster of a range, which must read as zeroes and still does
 * afterwards. `falloc` and `full` also reserve the space on the disk.
 *
 * @param first Where the range begins: the start of a cluster.
 * @param keep Whether a data file keeps its content and shows it.
 */
export async function preallocate(
  state: Qcow2State,
  first: number,
  end: number,
  mode: Preallocation,
  keep = false,
): Promise<void> {
  const { geometry, refcounts, clusters, header } = state;
  const { clusterSize, l2 } = geometry;
  // Zeroes in the file do not decrypt to zeroes: the entries must mark them.
  const areZero = state.encryption !== undefined && header.version >= 3;
  const count = geometry.clustersFor(Math.max(0, end - first));
  if (count === 0) return;
  const freed: Freed[] = [];
  {
    using _ = await state.metadata.lock();
    // With the tables allocated first, the data is contiguous.
    for (let at = first; at < end; at += geometry.l2Coverage) {
      await clusters.entryForWrite(at);
    }
    await clusters.entryForWrite(end - 1);
    const hostStart = await allocateClusters(state, first, count);
    try {
      if (!keep) await reserveData(state, hostStart, count, end - first, mode);
    } catch (error) {
      if (!state.hasDataFile) {
        await refcounts.free(hostStart, count * clusterSize);
      }
      throw error;
    }
    for (let done = 0; done < count;) {
      await orderL2AfterData(state);
      const place = await clusters.entryForWrite(first + done * clusterSize);
      const run = Math.min(clusters.entriesLeft(place), count - done);
      for (let i = 0; i < run; i++, done++, place.index++) {
        noteFreed(state, place, freed);
        const host = hostStart + done * clusterSize;
        l2.reserve(clusters.changing(place), place.index, host, areZero);
      }
    }
  }
  await releaseClusters(state, freed);
  // Version 2 entries cannot mark zeroes: encrypted zeroes are written.
  if (state.encryption && !areZero) await zeroParts(state, first, end);
}

async function allocateClusters(
  state: Qcow2State,
  guestOffset: number,
  count: number,
): Promise<number> {
  try {
    return await allocateData(state, guestOffset, count);
  } catch (error) {
    throw asBlockError(error).prefixed("Allocating clusters failed: ");
  }
}

/**
 * Make new clusters read as zeroes, and reserve the space that the
 * preallocation mode demands.
 *
 * @param length Bytes of the disk in them.
 */
async function reserveData(
  { dataFile: file, dataFileIsRaw, geometry }: Qcow2State,
  hostStart: number,
  count: number,
  length: number,
  mode: Preallocation,
): Promise<void> {
  const hostEnd = hostStart + count * geometry.clusterSize;
  // Reused clusters hold old data, and a raw data file may hold data put there
  // for the disk.
  const used = Math.min(file.size, hostEnd) - hostStart;
  if (used > 0 && !dataFileIsRaw) {
    const unmap = mode === "metadata";
    await writeZeroes(file, hostStart, used, { unmap });
  }
  // Space is reserved for data only: tables are written in any case.
  if (hostStart > file.size) await file.truncate!(hostStart);
  // Of the last cluster, only the part that belongs to the disk.
  const dataEnd = hostStart + length;
  const preallocation = mode === "metadata" ? "off" : mode;
  // Even if it is large enough already: a file that cannot reserve space
  // reports it.
  const reserved = Math.max(dataEnd, file.size);
  if (reserved > file.size || preallocation !== "off") {
    await file.truncate!(reserved, { preallocation }).catch((error) => {
      const why = asBlockError(error);
      throw mode === "metadata"
        ? why
        : why.prefixed("Failed to resize underlying file: ");
    });
  }
  if (hostEnd > file.size) {
    // If reserved, the part that is never written would remain an extent of its
    // own.
    const rest = hostEnd - file.size;
    if (mode === "metadata") await file.truncate!(hostEnd);
    else await writeZeroData(file, file.size, rest);
  }
}
