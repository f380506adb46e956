/**
 * Changing what clusters are mapped to without writing data: zeroes, discard,
 * and cutting off.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import { BlockError } from "../../core/errors.ts";
import { chainExtents } from "../../core/extents.ts";
import type { HeldRange, RangePlace } from "../../core/lock.ts";
import type { ZeroFlags } from "../../core/node.ts";
import type { FreeReason } from "./behaviour.ts";
import type { EntryPlace } from "./cluster_map.ts";
import { discardData, type Freed } from "./data_clusters.ts";
import { noteFreed, releaseClusters } from "./entry_changes.ts";
import type { ClusterKind } from "./l2_entry.ts";
import type { Qcow2State } from "./state.ts";
import { zeroes } from "./state.ts";

/**
 * What becomes of an L2 entry: `keep` it as it is, `zero` keeps its cluster
 * but reads as zeroes, `unmapZero` gives its cluster up and reads as zeroes,
 * `unmap` gives its cluster up and leaves the range to the backing file.
 */
type Change = "keep" | "zero" | "unmapZero" | "unmap";

/** Change the entries of whole clusters; `end` may be the end of the disk. */
async function changeEntries(
  state: Qcow2State,
  start: number,
  end: number,
  reason: FreeReason,
  decide: (kind: ClusterKind) => Change,
): Promise<void> {
  const { geometry, clusters, access: { ranges } } = state;
  let inLine: RangePlace | undefined;
  try {
    for (let at = start; at < end;) {
      const freed: Freed[] = [];
      let held: HeldRange | undefined;
      {
        using _ = await state.metadata.lock();
        state.checkUsable();
        // Damaged entries as well: what they refer to is not touched.
        const mapping = await clusters.findLocked(at, end - at);
        const change = decide(mapping.kind);
        if (change === "keep") {
          at += mapping.length;
          continue;
        }
        // Entries that refer to less rely on nothing that must come before.
        const place = await clusters.entryForWrite(at);
        const count = Math.min(
          geometry.clustersFor(mapping.length),
          clusters.entriesLeft(place),
        );
        const stop = at + count * geometry.clusterSize;
        inLine = ranges.conflict(at, stop, true, inLine);
        if (!inLine) {
          if (state.hasDataFile) held = ranges.hold(at, stop, true);
          changeRun(state, place, count, change, freed);
          at = Math.min(stop, end);
        }
      }
      if (inLine) await inLine.turn;
      else if (held) {
        using _ = held;
        await discardData(state, freed, reason);
      } else await releaseClusters(state, freed, reason);
    }
  } finally {
    inLine?.[Symbol.dispose]();
  }
}

/** Change entries from `place` on; what they referred to is added to `freed`. */
function changeRun(
  state: Qcow2State,
  place: EntryPlace,
  count: number,
  change: Change,
  freed: Freed[],
): void {
  const { geometry: { l2 }, clusters } = state;
  for (let i = 0; i < count; i++, place.index++) {
    if (change !== "zero") noteFreed(state, place, freed);
    const table = clusters.changing(place);
    if (change === "zero") l2.setZero(table, place.index);
    else l2.clear(table, place.index, change === "unmapZero");
  }
}

/**
 * Make whole clusters read as zeroes.
 *
 * @param onlyEmpty Leave those alone that hold data.
 * @returns whether all of them read as zeroes now.
 * @throws {BlockError} ENOTSUP for version 2 with a backing file, which has no
 * way to say it.
 */
async function zeroClusters(
  state: Qcow2State,
  start: number,
  end: number,
  unmap = false,
  onlyEmpty = false,
): Promise<boolean> {
  const isOld = state.header.version < 3;
  if (isOld && state.backing) throw new BlockError("ENOTSUP");
  let areAllZero = true;
  await changeEntries(state, start, end, "request", (kind) => {
    if (onlyEmpty && (kind === "normal" || kind === "compressed")) {
      areAllZero = false;
      return "keep";
    }
    if (isOld) return kind === "unallocated" ? "keep" : "unmap";
    switch (kind) {
      case "zero":
        return "keep";
      case "unallocated":
      case "compressed":
        return "unmapZero";
      case "zeroAllocated":
        return unmap ? "unmapZero" : "keep";
      case "normal":
        return unmap ? "unmapZero" : "zero";
    }
  });
  return areAllZero;
}

/**
 * Make a range read as zeroes: whole clusters by their entries, and so the
 * clusters at its ends if the rest of them is zeroes already; otherwise these
 * are written to.
 *
 * @throws {BlockError} ENOTSUP where that must not be.
 */
export async function zeroGuest(
  state: Qcow2State,
  offset: number,
  length: number,
  flags: ZeroFlags = {},
): Promise<void> {
  const { geometry, header } = state;
  const end = offset + length;
  const first = Math.min(geometry.clusterEnd(offset), end);
  const last = end === header.size ? end : geometry.clusterStart(end);
  if (offset < first) await zeroPart(state, offset, first, flags);
  checkSignal(flags.signal);
  if (first < last) await zeroClusters(state, first, last, flags.unmap);
  if (Math.max(first, last) < end) {
    await zeroPart(state, Math.max(first, last), end, flags);
  }
}

/** Make a part of a cluster read as zeroes. */
async function zeroPart(
  state: Qcow2State,
  start: number,
  end: number,
  { unmap, noFallback, signal }: ZeroFlags,
): Promise<void> {
  const { geometry, header, backing } = state;
  const clusterStart = geometry.clusterStart(start);
  const clusterEnd = Math.min(
    clusterStart + geometry.clusterSize,
    header.size,
  );
  const canSay = header.version >= 3 || !backing;
  if (
    canSay && await holdsZeroes(state, clusterStart, start) &&
    await holdsZeroes(state, end, clusterEnd) &&
    await zeroClusters(state, clusterStart, clusterEnd, unmap, true)
  ) return;
  if (noFallback) throw new BlockError("ENOTSUP");
  await state.access.writev(start, [zeroes(end - start)], { signal });
}

/** Whether a part of a cluster reads as zeroes, as far as can be told. */
async function holdsZeroes(
  state: Qcow2State,
  start: number,
  end: number,
): Promise<boolean> {
  if (start === end) return true;
  try {
    if (await state.access.readsAsZeroes(start, end)) return true;
  } catch (error) {
    // Damage has been reported; what is tried instead fails in its own way.
    if (state.unusable) return false;
    throw error;
  }
  const { kind } = await state.clusters.map(start, 1);
  if (kind !== "unallocated" || !state.backing) return false;
  const stop = Math.min(end, state.backing.size);
  for await (const extent of chainExtents(state.backing, start, stop - start)) {
    if (!extent.zero) return false;
  }
  return true;
}

/** Write zeroes as data, except to clusters that read as zeroes. */
export async function zeroParts(
  state: Qcow2State,
  start: number,
  end: number,
): Promise<void> {
  const { geometry } = state;
  while (start < end) {
    const stop = Math.min(
      end,
      geometry.clusterStart(start) + geometry.clusterSize,
    );
    if (!await state.access.readsAsZeroes(start, stop)) {
      await state.access.writev(start, [zeroes(stop - start)]);
    }
    start = stop;
  }
}

/**
 * Give up the whole clusters of a range. They read as zeroes afterwards.
 *
 * @throws {BlockError} ENOTSUP for version 2 with a backing file, whose old
 * content would show.
 */
export async function discardGuest(
  state: Qcow2State,
  offset: number,
  length: number,
): Promise<void> {
  const { geometry, header, backing } = state;
  if (header.version < 3 && backing) throw new BlockError("ENOTSUP");
  const end = offset + length;
  const first = geometry.clusterEnd(offset);
  const last = end === header.size ? end : geometry.clusterStart(end);
  const gone = header.version < 3 ? "unmap" : "unmapZero";
  await changeEntries(state, first, last, "request", (kind) => {
    if (kind === "zero") return "keep";
    return kind === "unallocated" && !backing ? "keep" : gone;
  });
}

/** Forget everything from a cluster on, as if it had never been written. */
export async function cutOff(
  state: Qcow2State,
  start: number,
  end: number,
  reason: FreeReason,
): Promise<void> {
  await changeEntries(
    state,
    start,
    end,
    reason,
    (kind) => kind === "unallocated" ? "keep" : "unmap",
  );
}
