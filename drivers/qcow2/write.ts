/**
 * Writing guest data: in place where a cluster is this image's alone, into
 * newly allocated clusters with copy-on-write elsewhere.
 *
 * @module
 */
import { checkSignal, unlessAborted } from "../../core/abort.ts";
import { allocate } from "../../core/bytes.ts";
import type { HeldRange, RangePlace } from "../../core/lock.ts";
import type { WriteFlags } from "../../core/node.ts";
import type { EntryPlace, Mapping } from "./cluster_map.ts";
import {
  type Freed,
  giveUp,
  hasPlace,
  isOwned,
  noteFreed,
  orderL2AfterData,
  setNormal,
} from "./entry_changes.ts";
import {
  type ClusterKind,
  clusterKind,
  ENTRY_SIZE,
  entryOffset,
  hex,
} from "./format.ts";
import {
  type Payload,
  payloadLength,
  slicePayload,
  writePayload,
} from "./payload.ts";
import { readHeld } from "./read.ts";
import type { Qcow2State } from "./state.ts";

/** A part of a write that goes to one place in the file. */
interface WritePlan {
  /** Bytes of the request that it covers. */
  length: number;
  /** Where in the file its first byte goes. */
  hostOffset: number;
  /** The guest clusters, held until the write is done. */
  held: HeldRange;
  /** New clusters whose L2 entries are to be set when the data is there. */
  allocation?: Allocation;
}

/** Clusters that have a place in the file, but no L2 entries yet. */
interface Allocation {
  guestStart: number;
  hostStart: number;
  clusters: number;
  /** They had this place already, some of them as preallocated zeroes. */
  inPlace: boolean;
  /** They replace others, which are given up in the end. */
  replaces: boolean;
  /** The first one holds data there. */
  keepsHead: boolean;
  /** The last one holds data there. */
  keepsTail: boolean;
}

/** Write guest data; to have it reach the disk (`fua`) is the caller's part. */
export async function writeGuest(
  state: Qcow2State,
  offset: number,
  payload: Payload,
  { background, placed, signal }: WriteFlags = {},
): Promise<void> {
  const flags = background ? { background } : undefined;
  let replaces = false;
  const length = payloadLength(payload);
  for (let done = 0; done < length;) {
    // Between clusters that are linked and those that are not allocated yet.
    if (done > 0) checkSignal(signal);
    const plan = await planWrite(state, offset + done, length - done, signal);
    try {
      const { allocation } = plan;
      replaces ||= allocation?.replaces ?? false;
      // What is given up in the end may become the place of something else.
      if (done + plan.length === length && !replaces) placed?.();
      const at = offset + done;
      const part = slicePayload(payload, done, plan.length);
      await (allocation
        ? writeAllocated(state, plan, allocation, at, part, flags)
        : writeInPlace(state, plan, at, part, flags));
    } finally {
      plan.held[Symbol.dispose]();
    }
    done += plan.length;
  }
}

async function writeInPlace(
  state: Qcow2State,
  { hostOffset, length }: WritePlan,
  offset: number,
  payload: Payload,
  flags?: WriteFlags,
): Promise<void> {
  const checked = state.overlap.check(hostOffset, length);
  if (checked) await checked;
  const told = state.event("write_aio");
  if (told) await told;
  await writePayload(state, hostOffset, offset, payload, flags);
}

/**
 * Decide where the first part of a write goes, holding its clusters. Looking
 * at an entry and holding its range happen in one turn under the metadata
 * lock; a range that is in use is waited for without the lock.
 */
async function planWrite(
  state: Qcow2State,
  offset: number,
  length: number,
  signal?: AbortSignal,
): Promise<WritePlan> {
  const { geometry, ranges } = state;
  let inLine: RangePlace | undefined;
  try {
    for (;;) {
      // Tables are in memory nearly always. To `await` nothing then, not even
      // for a moment, keeps others from queueing for the lock.
      const lock = state.metadata.lock();
      const held = lock instanceof Promise ? await lock : lock;
      try {
        state.checkUsable();
        const entry = state.clusters.entryForWrite(offset);
        const place = entry instanceof Promise ? await entry : entry;
        const mapping = state.clusters.mappingAt(place, offset, length);
        if (isOwned(mapping.high, mapping.kind)) {
          const checked = checkInPlace(state, mapping, offset);
          if (checked) await checked;
        }
        const run = writableRun(state, place, mapping, offset, length);
        const start = geometry.clusterStart(offset);
        const end = geometry.clusterEnd(offset + run.length);
        const exclusive = run.kind !== "inPlace";
        inLine = ranges.conflict(start, end, exclusive, inLine);
        if (!inLine) {
          const range = ranges.hold(start, end, exclusive);
          if (run.kind === "inPlace") {
            const { hostOffset } = mapping;
            return { length: run.length, hostOffset, held: range };
          }
          const plan = planAllocation(state, run, mapping, offset, range);
          return plan instanceof Promise ? await plan : plan;
        }
      } finally {
        held[Symbol.dispose]();
      }
      await unlessAborted(inLine.turn!, signal);
    }
  } finally {
    inLine?.[Symbol.dispose]();
  }
}

/** Take clusters for a range that is held; if there are none, let go of it. */
function planAllocation(
  state: Qcow2State,
  run: WritableRun,
  mapping: Mapping,
  offset: number,
  range: HeldRange,
): WritePlan | Promise<WritePlan> {
  const plan = (host: number) =>
    allocationPlan(state, run, mapping, offset, host, range);
  const letGo = (error: unknown): never => {
    range[Symbol.dispose]();
    throw error;
  };
  try {
    const host = takeClusters(state, run, mapping, offset);
    return host instanceof Promise ? host.then(plan, letGo) : plan(host);
  } catch (error) {
    return letGo(error);
  }
}

/** Refuse to write to a cluster in a place where none can be. */
function checkInPlace(
  state: Qcow2State,
  { kind, hostOffset }: Mapping,
  guestOffset: number,
): void | Promise<never> {
  const { geometry } = state;
  const cluster = hostOffset - geometry.offsetInCluster(guestOffset);
  if (geometry.isAligned(cluster)) return;
  const what = kind === "normal" ? "Data" : "Preallocated zero";
  return state.corrupt(
    `${what} cluster offset ${hex(cluster)} unaligned ` +
      `(guest offset: ${hex(guestOffset)})`,
  );
}

/** How the first part of a write can be done, and how far. */
interface WritableRun {
  kind: "inPlace" | "zeroInPlace" | "allocate";
  length: number;
  /** What its last cluster is now. */
  last: ClusterKind;
  /** Whether clusters are replaced that are not the image's alone. */
  replaces: boolean;
}

function writableRun(
  state: Qcow2State,
  place: EntryPlace,
  first: Mapping,
  offset: number,
  length: number,
): WritableRun {
  const { geometry, clusters } = state;
  const { clusterSize } = geometry;
  const { view } = place.slice;
  const owned = isOwned(first.high, first.kind);
  const within = offset % clusterSize;
  const most = Math.min(
    clusters.entriesLeft(place),
    geometry.clustersFor(within + length),
  );
  let count = 1;
  let expected = entryOffset(first.high, first.low);
  let last = first.kind;
  let hasZeroes = first.kind !== "normal";
  let replaces = !owned && hasPlace(first.kind);
  for (; count < most; count++) {
    const at = (place.index + count) * ENTRY_SIZE;
    const [high, low] = [view.getUint32(at), view.getUint32(at + 4)];
    const kind = clusterKind(high, low);
    if (isOwned(high, kind) !== owned) break;
    if (owned) {
      expected += clusterSize;
      if (entryOffset(high, low) !== expected) break;
      if (kind !== "normal") hasZeroes = true;
    } else if (hasPlace(kind)) replaces = true;
    last = kind;
  }
  return {
    kind: !owned ? "allocate" : hasZeroes ? "zeroInPlace" : "inPlace",
    length: Math.min(length, count * clusterSize - within),
    last,
    replaces,
  };
}

/** Where the clusters of a run are, or are to be; they are taken then. */
function takeClusters(
  state: Qcow2State,
  run: WritableRun,
  mapping: Mapping,
  offset: number,
): number | Promise<number> {
  const { geometry, refcounts } = state;
  const within = geometry.offsetInCluster(offset);
  return run.kind === "zeroInPlace"
    ? mapping.hostOffset - within
    : refcounts.allocate(geometry.clustersFor(within + run.length));
}

function allocationPlan(
  state: Qcow2State,
  run: WritableRun,
  mapping: Mapping,
  offset: number,
  hostStart: number,
  held: HeldRange,
): WritePlan {
  const { geometry } = state;
  const within = geometry.offsetInCluster(offset);
  const clusters = geometry.clustersFor(within + run.length);
  const inPlace = run.kind === "zeroInPlace";
  const guestStart = held.start;
  return {
    length: run.length,
    hostOffset: hostStart + within,
    held,
    allocation: {
      guestStart,
      hostStart,
      clusters,
      inPlace,
      replaces: run.replaces,
      keepsHead: inPlace && mapping.kind === "normal",
      keepsTail: inPlace && run.last === "normal",
    },
  };
}

/** Write data and what of its clusters it leaves as it was; then link them. */
async function writeAllocated(
  state: Qcow2State,
  plan: WritePlan,
  allocation: Allocation,
  offset: number,
  payload: Payload,
  flags?: WriteFlags,
): Promise<void> {
  let freed: Freed[];
  try {
    await copyOnWrite(state, plan, allocation, offset, payload, flags);
    freed = await link(state, allocation);
  } catch (error) {
    if (!allocation.inPlace) {
      using _ = await state.metadata.lock();
      const length = allocation.clusters * state.geometry.clusterSize;
      await state.refcounts.add(allocation.hostStart, length, -1);
    }
    throw error;
  }
  // Past this point the clusters are in use: a failure can only leak others.
  await giveUp(state, freed);
}

async function copyOnWrite(
  state: Qcow2State,
  plan: WritePlan,
  allocation: Allocation,
  offset: number,
  payload: Payload,
  flags?: WriteFlags,
): Promise<void> {
  const { file, geometry, encryption } = state;
  const { guestStart, hostStart, clusters, inPlace } = allocation;
  const { keepsHead, keepsTail } = allocation;
  const end = guestStart + clusters * geometry.clusterSize;
  const head = offset - guestStart;
  const tail = end - offset - plan.length;
  // First of all, as QEMU has it: what is copied may be damaged as well.
  const checked = state.overlap.check(
    hostStart,
    clusters * geometry.clusterSize,
  );
  if (checked) await checked;
  // Past the file's end, unwritten bytes read as zeroes anyway; but as
  // encrypted ones, they are something else.
  const fresh = !encryption && !inPlace && hostStart >= file.size;
  // Version 2 has no zero clusters: reading what looks like one reports it.
  const zero = inPlace && state.header.version >= 3;
  const before = head > 0 && !keepsHead &&
    await oldContent(state, guestStart, head, zero, fresh);
  const after = tail > 0 && !keepsTail &&
    await oldContent(state, end - tail, tail, zero, fresh);
  const told = state.event("write_aio");
  if (told) await told;
  const skipped = before ? 0 : head;
  await writePayload(
    state,
    hostStart + skipped,
    guestStart + skipped,
    payload,
    flags,
    before ? [before] : [],
    after ? [after] : [],
  );
}

/**
 * What a part of a cluster held before, to be copied; `false` if it was zeroes
 * and `fresh` space holds them already.
 */
async function oldContent(
  state: Qcow2State,
  offset: number,
  length: number,
  zero: boolean,
  fresh: boolean,
): Promise<Uint8Array | false> {
  if (zero || await readsAsZeroes(state, offset)) {
    return fresh ? false : allocate(length);
  }
  const bytes = allocate(length);
  await state.event("cow_read");
  await readHeld(state, offset, [bytes]);
  return bytes;
}

/** Whether a guest cluster is known to hold zeroes without being read. */
export async function readsAsZeroes(
  state: Qcow2State,
  offset: number,
): Promise<boolean> {
  const { size } = state.header;
  if (offset >= size && offset < state.geometry.clusterEnd(size)) return true;
  const { kind } = await state.clusters.map(offset, 1);
  if (kind === "zero" || kind === "zeroAllocated") return true;
  return kind === "unallocated" &&
    (!state.backing || offset >= state.backing.size);
}

/**
 * Point the L2 entries at clusters whose data has been written.
 *
 * @returns what they pointed to before. If this fails, no entry has changed:
 * all are in one slice, and change in one turn.
 */
async function link(
  state: Qcow2State,
  allocation: Allocation,
): Promise<Freed[]> {
  const { geometry, clusters } = state;
  const { guestStart, hostStart, inPlace } = allocation;
  const lock = state.metadata.lock();
  const held = lock instanceof Promise ? await lock : lock;
  try {
    const ordered = orderL2AfterData(state);
    if (ordered) await ordered;
    const entry = clusters.entryForWrite(guestStart);
    const place = entry instanceof Promise ? await entry : entry;
    const freed: Freed[] = [];
    for (let i = 0; i < allocation.clusters; i++, place.index++) {
      if (!inPlace) noteFreed(state, place, freed);
      setNormal(state, place, hostStart + i * geometry.clusterSize);
    }
    return freed;
  } finally {
    held[Symbol.dispose]();
  }
}
