/**
 * Writing clusters compressed: several share a cluster of the file.
 *
 * @module
 */
import {
  allocate,
  divideUp,
  flattenVector,
  type IoVector,
  release,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { CompressionQueue } from "./compression_queue.ts";
import {
  type Freed,
  giveUp,
  isOwned,
  noteFreed,
  orderL2AfterData,
} from "./entry_changes.ts";
import type { Qcow2State } from "./state.ts";
import { writeGuest } from "./write.ts";

/**
 * Store clusters compressed. Those that would not become smaller are stored
 * plain. They are compressed at once, but stored in the order in which this
 * was asked for, so that the order in the file is the order on the disk.
 *
 * @throws {BlockError} EINVAL unless they are whole clusters, the disk's last
 * one up to its end; EIO if one is allocated already; ENOTSUP in an encrypted
 * image.
 */
export async function writeCompressedGuest(
  state: Qcow2State,
  offset: number,
  iov: IoVector,
  level: number | undefined,
): Promise<void> {
  const { geometry, header } = state;
  const { clusterSize } = geometry;
  const length = vectorLength(iov);
  const whole = geometry.isAligned(length) || offset + length === header.size;
  if (!geometry.isAligned(offset) || !whole) throw new BlockError("EINVAL");
  if (state.encryption) {
    // The format has compressed clusters lie open for all to read.
    throw new BlockError(
      "ENOTSUP",
      "Compression and encryption not supported at the same time",
    );
  }
  const part = (index: number) => {
    const start = index * clusterSize;
    return sliceVector(iov, start, Math.min(clusterSize, length - start));
  };
  state.compressed.queue ??= new CompressionQueue(clusterSize);
  await state.compressed.queue.run(
    divideUp(length, clusterSize),
    (index) => {
      const cluster = padded(flattenVector(part(index)), clusterSize);
      return state.compressed.compress(cluster, level);
    },
    async (index, compressed) => {
      const at = offset + index * clusterSize;
      if (!compressed) return await writeGuest(state, at, part(index));
      await store(state, at, compressed);
      release(compressed);
    },
  );
}

function padded(cluster: Uint8Array, clusterSize: number): Uint8Array {
  if (cluster.length === clusterSize) return cluster;
  const whole = allocate(clusterSize);
  whole.set(cluster);
  return whole;
}

async function store(
  state: Qcow2State,
  guestOffset: number,
  compressed: Uint8Array,
): Promise<void> {
  const { geometry, ranges, refcounts, file } = state;
  const end = guestOffset + geometry.clusterSize;
  using _held = await ranges.acquire(guestOffset, end, true);
  let hostOffset: number;
  {
    using _ = await state.metadata.lock();
    state.checkUsable();
    const { high, kind } = await state.clusters.mapLocked(guestOffset, 1);
    if (isOwned(high, kind)) throw new BlockError("EIO");
    hostOffset = await refcounts.allocateBytes(compressed.length);
  }
  const freed: Freed[] = [];
  try {
    await state.overlap.check(hostOffset, compressed.length);
    await state.event("write_compressed");
    await file.writev!(hostOffset, [compressed]);
    using _ = await state.metadata.lock();
    await orderL2AfterData(state);
    const place = await state.clusters.entryForWrite(guestOffset);
    noteFreed(state, place, freed);
    const high = geometry.compressedEntryHigh(hostOffset, compressed.length);
    state.clusters.setEntry(place, high, hostOffset % 2 ** 32);
    state.compressed.forget();
  } catch (error) {
    using _ = await state.metadata.lock();
    await refcounts.add(hostOffset, compressed.length, -1);
    throw error;
  }
  await giveUp(state, freed);
}
