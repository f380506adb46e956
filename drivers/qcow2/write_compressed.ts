/**
 * Writing clusters compressed: several share a cluster of the file.
 *
 * @module
 */
import {
  allocate,
  flattenVector,
  type IoVector,
  roundUp,
  SECTOR_SIZE,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { CompressOptions } from "../../core/node.ts";
import {
  type Freed,
  giveUp,
  hasPlace,
  noteFreed,
  orderL2AfterData,
} from "./entry_changes.ts";
import { type Qcow2State, zeroes } from "./state.ts";
import { writeGuest } from "./write.ts";

/** Bytes of clusters that are compressed at once: enough for all processors. */
const MAX_AT_ONCE = 8 * 1024 * 1024;

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
  options: CompressOptions = {},
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
  const pending: Promise<void>[] = [];
  let failure: unknown;
  for (let done = 0; done < length && !failure; done += clusterSize) {
    const part = sliceVector(iov, done, Math.min(clusterSize, length - done));
    const written = writeCluster(state, offset + done, part, options);
    pending.push(written.catch((error) => {
      failure ??= error;
    }));
    if (pending.length * clusterSize >= MAX_AT_ONCE) await pending.shift();
  }
  await Promise.all(pending);
  if (failure) throw failure;
}

async function writeCluster(
  state: Qcow2State,
  offset: number,
  iov: IoVector,
  { level, onlyEmpty = false }: CompressOptions,
): Promise<void> {
  const { clusterSize } = state.geometry;
  let cluster = flattenVector(iov);
  if (cluster.length < clusterSize) {
    const padded = allocate(clusterSize);
    padded.set(cluster);
    cluster = padded;
  }
  const turn = state.compressed.storing.lock();
  const compressing = state.compressed.compress(cluster, level);
  // If it fails before our turn, that is still dealt with below.
  compressing.catch(() => {});
  using _ = await turn;
  const compressed = await compressing;
  if (!compressed) return await writeGuest(state, offset, iov);
  await store(state, offset, compressed, onlyEmpty);
}

async function store(
  state: Qcow2State,
  guestOffset: number,
  compressed: Uint8Array,
  onlyEmpty: boolean,
): Promise<void> {
  const { geometry, ranges, refcounts, file } = state;
  const end = guestOffset + geometry.clusterSize;
  using _held = await ranges.acquire(guestOffset, end, true);
  let hostOffset: number;
  {
    using _ = await state.metadata.lock();
    state.checkUsable();
    const place = await state.clusters.entryForWrite(guestOffset);
    const { kind } = state.clusters.mappingAt(place, guestOffset, 1);
    const isFree = kind === "compressed" ? !onlyEmpty : !hasPlace(kind);
    if (!isFree) throw new BlockError("EIO");
    hostOffset = await refcounts.allocateBytes(compressed.length);
  }
  const freed: Freed[] = [];
  try {
    await state.overlap.check(hostOffset, compressed.length);
    await state.event("write_compressed");
    await file.writev!(hostOffset, endingWhole(state, hostOffset, compressed));
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

/**
 * What ends the file ends a sector of it: who sees the file as a device, which
 * has whole sectors only, would miss the rest. The next compressed cluster
 * begins where this one ends, and takes the place of the zeroes.
 */
function endingWhole(
  { file }: Qcow2State,
  offset: number,
  bytes: Uint8Array,
): IoVector {
  const end = offset + bytes.length;
  const missing = end > file.size ? roundUp(end, SECTOR_SIZE) - end : 0;
  return missing === 0 ? [bytes] : [bytes, zeroes(missing)];
}
