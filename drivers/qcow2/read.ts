/**
 * Reading guest data: from the file, compressed clusters, or what lies below.
 *
 * @module
 */
import {
  fillVector,
  type IoVector,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import { lockUnlessAborted } from "../../core/abort.ts";
import { InFlight } from "../../core/in_flight.ts";
import type { Held } from "../../core/lock.ts";
import type { BlockNode, Extent, ReadFlags } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import type { Mapping } from "./cluster_map.ts";
import { readData } from "./encryption.ts";
import type { Qcow2State } from "./state.ts";

/**
 * Read guest data, keeping its clusters where they are meanwhile.
 *
 * @param share Of the operations, which this lets go of at its end. (A function
 * around this one that did would cost 0.2 µs, an eighth of a read of 4 KiB.)
 */
export async function readGuest(
  state: Qcow2State,
  share: Held | Promise<Held>,
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
): Promise<void> {
  const held = share instanceof Promise
    ? await lockUnlessAborted(share, flags?.signal)
    : share;
  try {
    const { geometry, ranges } = state;
    const end = offset + vectorLength(iov);
    const taken = ranges.acquire(
      geometry.clusterStart(offset),
      geometry.clusterEnd(end),
      false,
      flags?.signal,
    );
    const range = taken instanceof Promise ? await taken : taken;
    try {
      await readRuns(state, offset, iov, flags);
    } finally {
      range[Symbol.dispose]();
    }
  } finally {
    held[Symbol.dispose]();
  }
}

/** Read clusters that are held, so that what they are mapped to stays so. */
function readRuns(
  state: Qcow2State,
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
): void | Promise<void> {
  const length = vectorLength(iov);
  if (length === 0) return;
  const mapping = state.clusters.map(offset, length);
  if (!(mapping instanceof Promise)) {
    const run = runFrom(state, mapping, offset, length);
    if (run.length === length) return readRun(state, run, offset, iov, flags);
  }
  return readManyRuns(state, mapping, offset, iov, flags);
}

async function readManyRuns(
  state: Qcow2State,
  first: Mapping | Promise<Mapping>,
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
): Promise<void> {
  const length = vectorLength(iov);
  const inFlight = new InFlight(flags?.signal);
  let mapped = first;
  for (let done = 0; !inFlight.hasFailed;) {
    const at = offset + done;
    const mapping = mapped instanceof Promise
      ? await inFlight.whileUnderWay(mapped)
      : mapped;
    const run = runFrom(state, mapping, at, length - done);
    const part = sliceVector(iov, done, run.length);
    const reading = readRun(state, run, at, part, flags);
    if (reading && run.compressed) {
      // Its clusters are decompressed together as it is: more take memory.
      await inFlight.whileUnderWay(reading);
    } else if (reading) {
      const full = inFlight.add(reading);
      if (full) await full;
    }
    done += run.length;
    if (done === length) break;
    mapped = state.clusters.map(offset + done, length - done);
  }
  await inFlight.end();
}

/** What can be read at once: a mapping, or several compressed clusters. */
interface ReadableRun {
  readonly length: number;
  readonly mapping: Mapping;
  readonly compressed?: Mapping[];
}

function runFrom(
  state: Qcow2State,
  mapping: Mapping,
  offset: number,
  length: number,
): ReadableRun {
  if (mapping.kind !== "compressed") {
    return { length: mapping.length, mapping };
  }
  const compressed = state.compressed.run(mapping, offset, length);
  let sum = 0;
  for (const { length } of compressed) sum += length;
  return { length: sum, mapping, compressed };
}

function readRun(
  state: Qcow2State,
  { mapping, compressed }: ReadableRun,
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
): void | Promise<void> {
  return compressed
    ? state.compressed.read(compressed, offset, iov)
    : readMapping(state, mapping, offset, iov, flags);
}

/**
 * Read guest data whose clusters the caller holds; in the last cluster, past
 * the disk's end, it is zeroes.
 */
export async function readHeld(
  state: Qcow2State,
  offset: number,
  iov: IoVector,
): Promise<void> {
  const length = vectorLength(iov);
  const inside = lengthWithin(state, offset, length);
  for (let done = 0; done < inside;) {
    const mapping = await state.clusters.map(offset + done, inside - done);
    const part = sliceVector(iov, done, mapping.length);
    await readMapping(state, mapping, offset + done, part);
    done += mapping.length;
  }
  if (inside < length) fillVector(iov, inside, length - inside);
}

/** Bytes of a range that belong to the disk, or to the VM state past it. */
function lengthWithin(
  state: Qcow2State,
  offset: number,
  length: number,
): number {
  const { size } = state.header;
  if (offset >= state.geometry.clusterEnd(size)) return length;
  return Math.max(0, Math.min(length, size - offset));
}

/** No promise where nothing has to be waited for: it would cost 0.2 µs. */
function readMapping(
  state: Qcow2State,
  mapping: Mapping,
  guestOffset: number,
  iov: IoVector,
  flags?: ReadFlags,
): void | Promise<void> {
  const { backing, header } = state;
  switch (mapping.kind) {
    case "normal": {
      // Past the end of any file.
      if (mapping.hostOffset >= 2 ** 53) break;
      const read = () =>
        readData(state, mapping.hostOffset, guestOffset, iov, flags);
      const told = state.event("read_aio");
      return told ? told.then(read) : read();
    }
    case "compressed":
      return state.compressed.read([mapping], guestOffset, iov);
    case "unallocated":
      if (backing && guestOffset < header.size) {
        const read = () => readBacking(backing, guestOffset, iov, flags);
        const told = state.event("read_backing_aio");
        return told ? told.then(read) : read();
      }
  }
  fillVector(iov, 0, mapping.length);
}

/** Reads of backing files, one within the other, that are made at once. */
const MAX_NESTED = 100;
let nested = 0;

/** A chain may be so long that the stack would overflow. */
function readBacking(
  backing: BlockNode,
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
): Promise<void> {
  if (nested >= MAX_NESTED) {
    return Promise.resolve().then(() =>
      readBacking(backing, offset, iov, flags)
    );
  }
  nested++;
  try {
    return readPadded(backing, offset, iov, flags);
  } finally {
    nested--;
  }
}

/**
 * Whether the file has far fewer bytes on its disk than clusters in use, as
 * after preallocation of metadata: then it pays to ask it where its holes are.
 */
async function findHoles(state: Qcow2State): Promise<boolean> {
  const { file, geometry, refcounts } = state;
  const { actualSize } = await file.info?.() ?? {};
  if (actualSize === undefined) return false;
  const real = Math.floor(actualSize / geometry.clusterSize);
  const threshold = Math.max(Math.floor(real * 10 / 9), real + 2);
  const clusters = geometry.clustersFor(file.size);
  if (clusters < threshold) return false;
  using _ = await state.metadata.lock();
  let used = 0;
  for (let index = 0; index < clusters && used < threshold; index++) {
    if (await refcounts.get(index, false) > 0) used++;
  }
  return used >= threshold;
}

/** What {@linkcode findHoles} found, once it has. */
function hasHoles(state: Qcow2State): boolean | Promise<boolean> {
  return state.hasHoles ??= findHoles(state)
    // Who is not told reads what is there.
    .catch(() => false)
    .then((found) => state.hasHoles = found);
}

const DATA = { allocated: true, zero: false } as const;
const ZERO = { allocated: true, zero: true } as const;

/** What a range of the disk is mapped to, in the terms of all drivers. */
export async function guestStatus(
  state: Qcow2State,
  offset: number,
  length: number,
): Promise<Extent> {
  const { plainFile: file, encryption } = state;
  const mapped = state.clusters.map(offset, length, true);
  const mapping = mapped instanceof Promise ? await mapped : mapped;
  const { kind, hostOffset, length: run } = mapping;
  // What lies encrypted in the file is not what the disk holds.
  const place = encryption ? {} : { hostOffset, file };
  switch (kind) {
    case "normal": {
      const holes = !encryption && hasHoles(state);
      const recurse = holes instanceof Promise ? await holes : holes;
      return { length: run, ...DATA, ...place, recurse };
    }
    case "zeroAllocated":
      return { length: run, ...ZERO, ...place };
    case "compressed": {
      const unit = state.geometry.clusterSize;
      const more = compressedAfter(state, offset + run, length - run);
      return { length: run + more, ...DATA, compressed: true, unit };
    }
    case "zero":
      return { length: run, ...ZERO };
    case "unallocated":
      return { length: run, allocated: false, zero: false };
  }
}

/** Most bytes of compressed clusters that are told of at once. */
const MAX_COMPRESSED = 2 * 1024 * 1024;

/** Bytes of compressed clusters from `offset` on whose entries are in memory. */
function compressedAfter(
  state: Qcow2State,
  offset: number,
  length: number,
): number {
  const most = Math.min(length, MAX_COMPRESSED);
  let run = 0;
  while (run < most) {
    const next = state.clusters.lookup(offset + run, length - run);
    if (next?.kind !== "compressed") break;
    run += next.length;
  }
  return run;
}
