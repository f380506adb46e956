/**
 * Allocating clusters for writes, and linking them into the L2 tables.
 *
 * @module
 */
import type { Allocation, Place } from "../../core/block_map.ts";
import { roomInPlace } from "../../core/access.ts";
import type { Encryption } from "../../core/encryption.ts";
import type { ClusterMap, EntryPlace, Mapping } from "./cluster_map.ts";
import {
  allocateData,
  checkData,
  type EntryHost,
  type Freed,
  hasPlace,
  isClearOfMetadata,
  isOwned,
  noteFreed,
  orderL2AfterData,
  releaseClusters,
  returnData,
} from "./data_clusters.ts";
import { hex } from "./format.ts";
import type { Geometry } from "./geometry.ts";

/** What allocation needs of the image. */
export interface AllocationHost extends EntryHost {
  readonly encryption?: Encryption;
  readonly clusters: ClusterMap;
  /** Refuse to continue once damage was found while writing. */
  checkUsable(): void;
  /** Report damage; always rejects. */
  corrupt(message: string): Promise<never>;
}

/** How the first part of a write can be done, and how much of it. */
interface WritableRun {
  readonly kind: "inPlace" | "reuse" | "allocate";
  /** Bytes. */
  readonly length: number;
  /**
   * The bytes of the disk that become data: more than those of the write if the
   * rest of a cluster or subcluster is not data yet.
   */
  readonly start: number;
  readonly end: number;
  /** Whether it replaces clusters that are shared. */
  readonly replaces: boolean;
}

/** A range of the disk that becomes data, and where it is stored. */
interface Room {
  readonly start: number;
  readonly end: number;
  /** Host offset of the cluster in which it begins. */
  readonly hostStart: number;
}

/**
 * Where the first part of a write can go, if that is known without waiting and
 * nothing but the data changes there.
 */
export function placeOf(
  host: AllocationHost,
  offset: number,
  length: number,
): Place | undefined {
  const { clusters, geometry, dataFile } = host;
  const entry = clusters.peekForWrite(offset);
  if (!entry) return undefined;
  const mapping = clusters.mappingAt(entry, offset, length);
  if (mapping.kind !== "normal") return undefined;
  const { hostOffset: childOffset } = mapping;
  const run = writableRun(host, entry, mapping, offset, length);
  const isSound = run.kind === "inPlace" &&
    geometry.isAligned(childOffset - geometry.offsetInCluster(offset)) &&
    isClearOfMetadata(host, childOffset, run.length);
  return isSound
    ? { length: run.length, child: dataFile, childOffset }
    : undefined;
}

/**
 * Allocate space for the first part of a write: its own clusters where the
 * image alone uses them, new ones elsewhere. The range must be held
 * exclusively.
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
    if (mapping.kind === "invalid") {
      const place = clusters.placeText(offset);
      await host.corrupt(`Invalid cluster entry found ${place}`);
    }
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
    return run.kind === "reuse"
      ? await reuseClusters(host, run, mapping, offset)
      : await newClusters(host, run);
  } finally {
    held[Symbol.dispose]();
  }
}

/** The run that begins with `first`, the mapping of `offset` at `place`. */
function writableRun(
  { geometry, clusters }: {
    readonly geometry: Geometry;
    readonly clusters: { entriesLeft(place: EntryPlace): number };
  },
  place: EntryPlace,
  first: Mapping,
  offset: number,
  length: number,
): WritableRun {
  const { clusterSize, l2 } = geometry;
  const { view } = place.slice;
  const owned = isOwned(first.isCopied, first.kind);
  const offsetInCluster = offset % clusterSize;
  const most = Math.min(
    clusters.entriesLeft(place),
    geometry.clustersFor(offsetInCluster + length),
  );
  let count = 1;
  let expected = first.hostOffset - offsetInCluster;
  let last = l2.kind(view, place.index);
  let hasZeroes = last !== "normal";
  let replaces = !owned && hasPlace(last);
  for (; count < most; count++) {
    const index = place.index + count;
    // Damage is reported when it comes first.
    if (l2.isInvalid(view, index)) break;
    const kind = l2.kind(view, index);
    if (isOwned(l2.isCopied(view, index), kind) !== owned) break;
    if (owned) {
      expected += clusterSize;
      if (l2.offset(view, index) !== expected) break;
      if (kind !== "normal") hasZeroes = true;
    } else if (hasPlace(kind)) replaces = true;
    last = kind;
  }
  const run = Math.min(length, count * clusterSize - offsetInCluster);
  const end = offset + run;
  if (l2.isExtended) {
    const entries = { index: place.index, count };
    const borders = subclusterRun(geometry, view, entries, offset, end, owned);
    return { ...borders, length: run, replaces };
  }
  if (!owned) {
    const start = offset - offsetInCluster;
    const end = start + count * clusterSize;
    return { kind: "allocate", length: run, start, end, replaces };
  }
  // What the first and last cluster hold already stays.
  const whole = {
    start: offset - offsetInCluster,
    end: geometry.clusterEnd(end),
  };
  return {
    kind: hasZeroes ? "reuse" : "inPlace",
    length: run,
    start: first.kind === "normal" ? offset : whole.start,
    end: last === "normal" ? end : whole.end,
    replaces,
  };
}

/** A run in entries with subclusters. */
function subclusterRun(
  { clusterSize, l2 }: Geometry,
  table: DataView,
  { index, count }: { index: number; count: number },
  offset: number,
  end: number,
  owned: boolean,
): Pick<WritableRun, "kind" | "start" | "end"> {
  const last = index + count - 1;
  /** Bytes of each cluster that are written, from its start. */
  const from = offset % clusterSize;
  const guestStart = offset - from;
  const to = end - guestStart - (count - 1) * clusterSize;
  const down = (at: number) => at - at % l2.subclusterSize;
  const up = (at: number) => down(at + l2.subclusterSize - 1);
  const isData = (index: number, from: number, to: number) =>
    l2.isAllocated(table, index, from, to);
  let [start, stop] = [down(from), up(to)];
  let isInPlace = owned;
  if (owned) {
    for (let i = index; i <= last && isInPlace; i++) {
      const stop = i === last ? to : clusterSize;
      isInPlace = isData(i, i === index ? from : 0, stop);
    }
    if (isData(index, from, from + 1)) start = from;
    if (isData(last, to - 1, to)) stop = to;
  } else {
    // A shared cluster is copied in one piece, as in QEMU.
    const first = l2.firstAllocated(table, index) * l2.subclusterSize;
    const end = l2.lastAllocated(table, last) * l2.subclusterSize;
    start = l2.isCompressed(table, index) ? 0 : Math.min(start, first);
    stop = l2.isCompressed(table, last) ? clusterSize : Math.max(stop, end);
  }
  return {
    kind: isInPlace ? "inPlace" : owned ? "reuse" : "allocate",
    start: guestStart + start,
    end: guestStart + (count - 1) * clusterSize + stop,
  };
}

/** Refuse to write in place at an offset where no data cluster can be. */
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

/**
 * Reuse clusters that belong to the image alone, some of which were not data.
 */
async function reuseClusters(
  host: AllocationHost,
  { start, end }: WritableRun,
  mapping: Mapping,
  offset: number,
): Promise<Allocation> {
  const { geometry, dataFile } = host;
  const hostStart = mapping.hostOffset - geometry.offsetInCluster(offset);
  const first = geometry.clusterStart(start);
  const bytes = geometry.clusterEnd(end) - first;
  const checked = checkData(host, hostStart, bytes);
  if (checked) await checked;
  return {
    start,
    length: end - start,
    child: dataFile,
    childOffset: hostStart + start - first,
    isZero: false,
    replaces: false,
    commit: () => link(host, { start, end, hostStart }),
    abort: async () => {},
  };
}

/** Allocate new clusters. */
async function newClusters(
  host: AllocationHost,
  { start, end, replaces }: WritableRun,
): Promise<Allocation> {
  const { geometry, dataFile, encryption } = host;
  const { clusterSize } = geometry;
  const guestStart = geometry.clusterStart(start);
  const count = geometry.clustersFor(end - guestStart);
  const taken = allocateData(host, guestStart, count);
  const hostStart = taken instanceof Promise ? await taken : taken;
  const bytes = count * clusterSize;
  try {
    // Checked first, as in QEMU: the data to be copied may be damaged as well.
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
    start,
    length: end - start,
    child: dataFile,
    childOffset: hostStart + start - guestStart,
    // Unwritten bytes past the end of the file read as zeroes, but would not
    // decrypt to zeroes.
    isZero: !encryption && hostStart >= dataFile.size,
    replaces,
    abort,
    async commit() {
      const freed: Freed[] = [];
      try {
        await link(host, { start, end, hostStart }, freed);
      } catch (error) {
        await abort();
        throw error;
      }
      // The new clusters are in use now: a failure can only leak the old ones.
      if (freed.length > 0) await releaseClusters(host, freed);
    },
  };
}

/**
 * Point the L2 entries at clusters whose data has been written. If this fails,
 * no entry has changed: they are all in one slice, and change in one turn.
 *
 * @param freed Receives what they pointed to before, if it differs.
 */
async function link(
  host: AllocationHost,
  { start, end, hostStart }: Room,
  freed?: Freed[],
): Promise<void> {
  const { geometry, clusters } = host;
  const { clusterSize, l2 } = geometry;
  const guestStart = geometry.clusterStart(start);
  const lock = host.metadata.lock();
  const held = lock instanceof Promise ? await lock : lock;
  try {
    const ordered = orderL2AfterData(host);
    if (ordered) await ordered;
    const entry = clusters.entryForWrite(guestStart);
    const place = entry instanceof Promise ? await entry : entry;
    for (let at = guestStart; at < end; at += clusterSize, place.index++) {
      if (freed) noteFreed(host, place, freed);
      l2.setData(
        clusters.changing(place),
        place.index,
        hostStart + at - guestStart,
        Math.max(start - at, 0),
        Math.min(end - at, clusterSize),
      );
    }
  } finally {
    held[Symbol.dispose]();
  }
}
