/**
 * Writing compressed clusters, several of which share a host cluster.
 *
 * @module
 */
import {
  allocate,
  divideUp,
  flattenVector,
  type IoVector,
  padded,
  release,
  roundUp,
  SECTOR_SIZE,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { CompressOptions } from "../../core/node.ts";
import { CompressionQueue } from "./compression_queue.ts";
import {
  type Freed,
  hasPlace,
  noteFreed,
  orderL2AfterData,
  releaseClusters,
} from "./data_clusters.ts";
import { type Qcow2State, zeroes } from "./state.ts";

/** Bytes of a cluster from which compressing it in workers pays off. */
const SMALL = 16 * 1024;

/**
 * Store clusters compressed; those that would not become smaller are stored
 * plain. They are compressed concurrently, but stored in the order of the
 * calls, so that the file has the order of the disk.
 *
 * @throws {BlockError} EINVAL unless they are whole clusters, the disk's last
 * one up to its end; EIO if one is allocated already; ENOTSUP in an encrypted
 * image, and with an external data file.
 */
export async function writeCompressedGuest(
  state: Qcow2State,
  offset: number,
  iov: IoVector,
  options: CompressOptions = {},
): Promise<void> {
  const { geometry, header } = state;
  const { clusterSize } = geometry;
  const { level, onlyEmpty = false } = options;
  // In a data file, a cluster's offset is that on the disk.
  if (state.hasDataFile) throw new BlockError("ENOTSUP");
  const length = vectorLength(iov);
  const whole = geometry.isAligned(length) || offset + length === header.size;
  if (!geometry.isAligned(offset) || !whole) throw new BlockError("EINVAL");
  if (state.encryption) {
    // The format does not encrypt compressed clusters.
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
  const { queue } = state.compressed;
  if (clusterSize < SMALL) {
    using _ = await queue.turn();
    return await writeSmall(state, offset, iov, options);
  }
  await queue.run(
    divideUp(length, clusterSize),
    (index) => {
      const cluster = wholeCluster(part(index), clusterSize);
      return state.compressed.compress(cluster, level);
    },
    async (index, compressed) => {
      const at = offset + index * clusterSize;
      if (!compressed) return await state.access.writev(at, part(index));
      const lengths = [compressed.length];
      const group = { guestOffset: at, bytes: compressed, lengths, onlyEmpty };
      await store(state, group);
      release(compressed);
    },
  );
}

/** Most clusters stored together. */
const GROUP = 64;

/**
 * Compress and store small clusters in groups, since their number matters, not
 * their bytes. Workers do not help here, so nothing is compressed ahead.
 */
async function writeSmall(
  state: Qcow2State,
  offset: number,
  iov: IoVector,
  { level, onlyEmpty = false }: CompressOptions,
): Promise<void> {
  const { geometry: { clusterSize }, header, compressed: codec } = state;
  const { compressNow } = await codec.load();
  const length = vectorLength(iov);
  const count = divideUp(length, clusterSize);
  const bytes = allocate(Math.min(GROUP, count) * clusterSize);
  let filled = 0;
  let lengths: number[] = [];
  /** Clusters before the current one that do not become smaller. */
  let plain = 0;
  /** Store the pending clusters, all of one kind, up to `end`. */
  const storeAll = async (end: number) => {
    if (plain > 0) {
      const start = end - plain * clusterSize;
      const part = sliceVector(iov, start, Math.min(end, length) - start);
      await state.access.writev(offset + start, part);
    } else {
      const guestOffset = offset + end - lengths.length * clusterSize;
      await store(state, { guestOffset, bytes, lengths, onlyEmpty });
    }
    plain = filled = 0;
    lengths = [];
  };
  for (let index = 0; index < count; index++) {
    const at = index * clusterSize;
    const part = sliceVector(iov, at, Math.min(clusterSize, length - at));
    const cluster = wholeCluster(part, clusterSize);
    let output = compressNow(header.compressionType, cluster, level);
    if (output === null) output = await codec.compress(cluster, level);
    const isOtherKind = output ? plain > 0 : lengths.length > 0;
    if (isOtherKind || plain + lengths.length === GROUP) await storeAll(at);
    if (output) {
      bytes.set(output, filled);
      filled += output.length;
      lengths.push(output.length);
    } else plain++;
  }
  await storeAll(count * clusterSize);
  release(bytes);
}

/** A whole cluster; the disk's last one is padded with zeroes. */
function wholeCluster(part: IoVector, clusterSize: number): Uint8Array {
  return flattenVector(padded(flattenVector(part), clusterSize));
}

/**
 * Compressed clusters that are consecutive on the disk, to be stored together
 * as far as they become contiguous in the file.
 */
interface Group {
  guestOffset: number;
  /** The compressed data, concatenated, and the length of each cluster's. */
  readonly bytes: Uint8Array;
  readonly lengths: readonly number[];
  /** Refuse to replace compressed data. */
  readonly onlyEmpty: boolean;
}

async function store(state: Qcow2State, group: Group): Promise<void> {
  const { geometry, access: { ranges }, refcounts } = state;
  const { clusterSize, l2 } = geometry;
  const { guestOffset, lengths } = group;
  const end = guestOffset + lengths.length * clusterSize;
  using _held = await ranges.acquire(guestOffset, end, true);
  const { places, failure } = await findPlaces(state, group);
  const freed: Freed[] = [];
  let done = 0;
  try {
    await writeRuns(state, group, places);
    using _ = await state.metadata.lock();
    await orderL2AfterData(state);
    while (done < places.length) {
      const at = guestOffset + done * clusterSize;
      const entry = state.clusters.entryForWrite(at);
      const place = entry instanceof Promise ? await entry : entry;
      noteFreed(state, place, freed);
      const table = state.clusters.changing(place);
      l2.setCompressed(table, place.index, places[done], lengths[done]);
      done++;
    }
    state.compressed.forget();
  } catch (error) {
    using _ = await state.metadata.lock();
    for (; done < places.length; done++) {
      await refcounts.add(places[done], lengths[done], -1);
    }
    throw error;
  }
  await releaseClusters(state, freed);
  if (failure) throw failure;
}

/** Allocate space for the clusters of a group, as far as possible. */
async function findPlaces(
  state: Qcow2State,
  { guestOffset, lengths, onlyEmpty }: Group,
): Promise<{ places: number[]; failure?: unknown }> {
  const { clusterSize } = state.geometry;
  const places: number[] = [];
  using _ = await state.metadata.lock();
  state.checkUsable();
  try {
    for (const length of lengths) {
      const at = guestOffset + places.length * clusterSize;
      const prepared = state.clusters.entryForWrite(at);
      const entry = prepared instanceof Promise ? await prepared : prepared;
      const kind = state.geometry.l2.kind(entry.slice.view, entry.index);
      const isFree = kind === "compressed" ? !onlyEmpty : !hasPlace(kind);
      if (!isFree) throw new BlockError("EIO");
      const place = state.refcounts.allocateBytes(length);
      places.push(place instanceof Promise ? await place : place);
    }
  } catch (failure) {
    // Those before the failure are stored nevertheless.
    return { places, failure };
  }
  return { places };
}

/** Write the data of a group, contiguous parts at once. */
async function writeRuns(
  state: Qcow2State,
  { bytes, lengths }: Group,
  places: readonly number[],
): Promise<void> {
  for (let i = 0, from = 0; i < places.length;) {
    const start = places[i];
    let end = start;
    for (; i < places.length && places[i] === end; i++) {
      const event = state.event("write_compressed");
      if (event) await event;
      end += lengths[i];
    }
    const checked = state.overlap.check(start, end - start);
    if (checked) await checked;
    const run = bytes.subarray(from, from + end - start);
    await state.dataFile.writev!(start, paddedToSector(state, start, run));
    from += end - start;
  }
}

/**
 * Pad data that ends the file to a whole sector: a device has whole sectors
 * only, and would lose the rest. The next compressed cluster begins where this
 * one ends, and overwrites the zeroes.
 */
function paddedToSector(
  { dataFile }: Qcow2State,
  offset: number,
  bytes: Uint8Array,
): IoVector {
  const end = offset + bytes.length;
  const missing = end > dataFile.size ? roundUp(end, SECTOR_SIZE) - end : 0;
  return missing === 0 ? [bytes] : [bytes, zeroes(missing)];
}
