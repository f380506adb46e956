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
import type { Held } from "../../core/lock.ts";
import type { BlockNode, Extent } from "../../core/node.ts";
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
): Promise<void> {
  const held = share instanceof Promise ? await share : share;
  try {
    const { geometry, ranges } = state;
    const length = vectorLength(iov);
    for (let done = 0; done < length;) {
      const at = offset + done;
      const mapping = state.clusters.lookup(at, length - done);
      if (!mapping || !state.clusters.isSound(mapping, at)) {
        // Reads the table, or reports the damage. By the time we go on, the
        // entry may have changed again: so look anew.
        await state.clusters.map(at, length - done);
        continue;
      }
      const mappings = mapping.kind === "compressed"
        ? state.compressed.run(mapping, at, length - done)
        : undefined;
      const run = mappings?.reduce((sum, { length }) => sum + length, 0) ??
        mapping.length;
      const blocker = ranges.conflict(at, at + run, false);
      if (blocker) {
        await blocker.released;
        continue;
      }
      // From looking to holding is one turn: nothing changes in between.
      const range = ranges.hold(
        geometry.clusterStart(at),
        geometry.clusterEnd(at + run),
        false,
      );
      try {
        const part = sliceVector(iov, done, run);
        const reading = mappings
          ? state.compressed.read(mappings, at, part)
          : readMapping(state, mapping, at, part);
        if (reading) await reading;
      } finally {
        range[Symbol.dispose]();
      }
      done += run;
    }
  } finally {
    held[Symbol.dispose]();
  }
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
): void | Promise<void> {
  const { backing, header } = state;
  switch (mapping.kind) {
    case "normal": {
      // Past the end of any file.
      if (mapping.hostOffset >= 2 ** 53) break;
      const read = () => readData(state, mapping.hostOffset, guestOffset, iov);
      const told = state.event("read_aio");
      return told ? told.then(read) : read();
    }
    case "compressed":
      return state.compressed.read([mapping], guestOffset, iov);
    case "unallocated":
      if (backing && guestOffset < header.size) {
        const read = () => readBacking(backing, guestOffset, iov);
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
): Promise<void> {
  if (nested >= MAX_NESTED) {
    return Promise.resolve().then(() => readBacking(backing, offset, iov));
  }
  nested++;
  try {
    return readPadded(backing, offset, iov);
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
      return { length: run, kind: "data", ...place, recurse };
    }
    case "zeroAllocated":
      return { length: run, kind: "zero", ...place };
    case "compressed": {
      const unit = state.geometry.clusterSize;
      const more = compressedAfter(state, offset + run, length - run);
      return { length: run + more, kind, unit };
    }
    case "zero":
    case "unallocated":
      return { length: run, kind };
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
