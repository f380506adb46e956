/**
 * Clusters for what is to be written: their room, and the L2 entries that make
 * them part of the disk.
 *
 * @module
 */
import { type Allocation, roomInPlace } from "../../core/block_map.ts";
import type { Encryption } from "../../core/encryption.ts";
import type { ClusterMap, Mapping } from "./cluster_map.ts";
import {
  allocateData,
  checkData,
  type Freed,
  returnData,
} from "./data_clusters.ts";
import {
  type EntryHost,
  isOwned,
  noteFreed,
  orderL2AfterData,
  releaseClusters,
} from "./entry_changes.ts";
import { hex } from "./format.ts";
import { type WritableRun, writableRun } from "./writable_run.ts";

/** What allocation needs of the image. */
export interface AllocationHost extends EntryHost {
  readonly encryption?: Encryption;
  readonly clusters: ClusterMap;
  /** Refuse to work on after damage was found while writing. */
  checkUsable(): void;
  /** Report damage: never answers. */
  corrupt(message: string): Promise<never>;
}

/** A range of guest clusters, and where they are to lie. */
interface Clusters {
  /** The first byte of the first one. */
  readonly guestStart: number;
  readonly hostStart: number;
  readonly count: number;
}

/**
 * Find room for the first part of a write: its own clusters where these are the
 * image's alone, new ones elsewhere. The caller holds the range exclusively.
 */
export async function allocateClusters(
  host: AllocationHost,
  offset: number,
  length: number,
): Promise<Allocation> {
  const lock = host.metadata.lock();
  const held = lock instanceof Promise ? await lock : lock;
  try {
    host.checkUsable();
    const { clusters } = host;
    const entry = clusters.entryForWrite(offset);
    const place = entry instanceof Promise ? await entry : entry;
    const mapping = clusters.mappingAt(place, offset, length);
    if (isOwned(mapping.isCopied, mapping.kind)) {
      const checked = checkInPlace(host, mapping, offset);
      if (checked) await checked;
    }
    const run = writableRun(host, place, mapping, offset, length);
    if (run.kind === "inPlace") {
      const { hostOffset } = mapping;
      const checked = checkData(host, hostOffset, run.length);
      if (checked) await checked;
      const place = { length: run.length, child: host.dataFile };
      return roomInPlace(offset, { ...place, childOffset: hostOffset });
    }
    if (run.kind === "zeroInPlace") {
      return await reuseClusters(host, run, mapping, offset);
    }
    return await newClusters(host, run, offset);
  } finally {
    held[Symbol.dispose]();
  }
}

/** Refuse to write to a cluster in a place where none can be. */
function checkInPlace(
  host: AllocationHost,
  { kind, hostOffset }: Mapping,
  guestOffset: number,
): void | Promise<never> {
  const { geometry } = host;
  const cluster = hostOffset - geometry.offsetInCluster(guestOffset);
  if (geometry.isAligned(cluster)) return;
  const what = kind === "normal" ? "Data" : "Preallocated zero";
  return host.corrupt(
    `${what} cluster offset ${hex(cluster)} unaligned ` +
      `(guest offset: ${hex(guestOffset)})`,
  );
}

/** The image's own clusters, some of which read as zeroes until now. */
async function reuseClusters(
  host: AllocationHost,
  { length, last }: WritableRun,
  mapping: Mapping,
  offset: number,
): Promise<Allocation> {
  const { geometry, dataFile } = host;
  const { clusterSize } = geometry;
  const guestStart = geometry.clusterStart(offset);
  const hostStart = mapping.hostOffset - geometry.offsetInCluster(offset);
  const count = geometry.clustersFor(offset + length - guestStart);
  const checked = checkData(host, hostStart, count * clusterSize);
  if (checked) await checked;
  // What lies in the first or the last one stays as it is.
  const start = mapping.kind === "normal" ? offset : guestStart;
  const end = last === "normal"
    ? offset + length
    : guestStart + count * clusterSize;
  return {
    start,
    length: end - start,
    child: dataFile,
    childOffset: hostStart + start - guestStart,
    isZero: false,
    replaces: false,
    commit: () => link(host, { guestStart, hostStart, count }),
    abort: async () => {},
  };
}

/** New clusters. */
async function newClusters(
  host: AllocationHost,
  { length, replaces }: WritableRun,
  offset: number,
): Promise<Allocation> {
  const { geometry, dataFile, encryption } = host;
  const { clusterSize } = geometry;
  const guestStart = geometry.clusterStart(offset);
  const count = geometry.clustersFor(offset + length - guestStart);
  const taken = allocateData(host, guestStart, count);
  const hostStart = taken instanceof Promise ? await taken : taken;
  const bytes = count * clusterSize;
  try {
    // First of all, as QEMU has it: what is copied may be damaged as well.
    const checked = checkData(host, hostStart, bytes);
    if (checked) await checked;
  } catch (error) {
    await returnData(host, hostStart, bytes);
    throw error;
  }
  const abort = async () => {
    using _ = await host.metadata.lock();
    // If that fails, they are only leaked.
    await returnData(host, hostStart, bytes).catch(() => {});
  };
  return {
    start: guestStart,
    length: bytes,
    child: dataFile,
    childOffset: hostStart,
    // Past the file's end, unwritten bytes read as zeroes anyway; but as
    // encrypted ones, they are something else.
    isZero: !encryption && hostStart >= dataFile.size,
    replaces,
    abort,
    async commit() {
      const freed: Freed[] = [];
      try {
        await link(host, { guestStart, hostStart, count }, freed);
      } catch (error) {
        await abort();
        throw error;
      }
      // From here on they are in use: a failure can only leak others.
      await releaseClusters(host, freed);
    },
  };
}

/**
 * Point the L2 entries at clusters whose data has been written. If this fails,
 * no entry has changed: all are in one slice, and change in one turn.
 *
 * @param freed Receives what they pointed to before, if that was something else.
 */
async function link(
  host: AllocationHost,
  { guestStart, hostStart, count }: Clusters,
  freed?: Freed[],
): Promise<void> {
  const { geometry: { clusterSize, l2 }, clusters } = host;
  const lock = host.metadata.lock();
  const held = lock instanceof Promise ? await lock : lock;
  try {
    const ordered = orderL2AfterData(host);
    if (ordered) await ordered;
    const entry = clusters.entryForWrite(guestStart);
    const place = entry instanceof Promise ? await entry : entry;
    for (let i = 0; i < count; i++, place.index++) {
      if (freed) noteFreed(host, place, freed);
      const hostOffset = hostStart + i * clusterSize;
      l2.setPlace(clusters.changing(place), place.index, hostOffset);
    }
  } finally {
    held[Symbol.dispose]();
  }
}
