/**
 * Changing the mapping of clusters without writing data: write zeroes, discard,
 * truncate.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import { roundDown, roundUp } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { chainExtents } from "../../core/extents.ts";
import type { HeldRange, RangePlace } from "../../core/lock.ts";
import type { ZeroFlags } from "../../core/node.ts";
import { writeZeroes } from "../../core/requests.ts";
import type { FreeReason } from "./behaviour.ts";
import type { EntryPlace } from "./cluster_map.ts";
import {
  checkData,
  discardData,
  type Freed,
  noteFreed,
  releaseClusters,
} from "./data_clusters.ts";
import type { WholeKind } from "./l2_entry.ts";
import { type Qcow2State, zeroes } from "./state.ts";

/**
 * How an L2 entry changes: `keep` leaves it, `zero` keeps its cluster but reads
 * as zeroes, `punch` does so and discards the cluster's space, `unmapZero`
 * frees its cluster and reads as zeroes, `unmap` frees its cluster and reads as
 * the backing file. Part of a cluster, whole subclusters, can only become
 * zeroes.
 */
type Change = "keep" | "zero" | "punch" | "unmapZero" | "unmap" | ClusterPart;

/** Bytes of a cluster, from its start. */
interface ClusterPart {
  readonly from: number;
  readonly to: number;
}

/** Change the entries of whole clusters; `end` may be the end of the disk. */
async function changeEntries(
  state: Qcow2State,
  start: number,
  end: number,
  reason: FreeReason,
  decide: (kind: WholeKind) => Change,
): Promise<void> {
  const { geometry, clusters, access: { ranges } } = state;
  // Encrypted zeroes would not read as zeroes without their entries.
  const isRaw = state.dataFileIsRaw && !state.encryption;
  let inLine: RangePlace | undefined;
  try {
    for (let at = start; at < end;) {
      const freed: Freed[] = [];
      let held: HeldRange | undefined;
      let change: Change;
      let stop: number;
      {
        using _ = await state.metadata.lock();
        state.checkUsable();
        // Damaged entries as well: their clusters are not accessed.
        const found = await clusters.findWhole(at, end - at);
        change = decide(found.kind);
        if (change === "keep") {
          at += found.length;
          continue;
        }
        // Removing references requires nothing to be durable before.
        const place = await clusters.entryForWrite(at);
        const count = Math.min(
          geometry.clustersFor(found.length),
          clusters.entriesLeft(place),
        );
        stop = at + count * geometry.clusterSize;
        inLine = ranges.conflict(at, stop, true, inLine);
        if (!inLine) {
          const isHeld = state.hasDataFile || change === "punch";
          if (isHeld) held = ranges.hold(at, stop, true);
          if (!isRaw) changeRun(state, place, count, change, freed);
        }
      }
      if (inLine) {
        await inLine.turn;
        continue;
      }
      const next = Math.min(stop, end);
      if (held) {
        using _ = held;
        if (isRaw) await changeRaw(state, at, next, change);
        else {
          // With a damaged entry, this might discard something else.
          for (const { offset, length } of change === "punch" ? freed : []) {
            await checkData(state, offset, length);
          }
          await discardData(state, freed, reason);
        }
      } else await releaseClusters(state, freed, reason);
      at = next;
    }
  } finally {
    inLine?.[Symbol.dispose]();
  }
}

/**
 * Change the entries of a range, and the content of a raw data file: that comes
 * first, so that both read the same at any time. The caller holds the range.
 */
async function changeRaw(
  state: Qcow2State,
  start: number,
  end: number,
  change: Change,
): Promise<void> {
  const { geometry, clusters, dataFile } = state;
  if (typeof change === "object") {
    const { from, to } = change;
    await writeZeroes(dataFile, start + from, to - from);
  } else {
    const unmap = change !== "zero";
    await writeZeroes(dataFile, start, end - start, { unmap });
  }
  using _ = await state.metadata.lock();
  const place = await clusters.entryForWrite(start);
  const count = geometry.clustersFor(end - start);
  changeRun(state, place, count, change, []);
}

/**
 * Change entries from `place` on; what they referred to is added to `freed`.
 */
function changeRun(
  state: Qcow2State,
  place: EntryPlace,
  count: number,
  change: Change,
  freed: Freed[],
): void {
  const { geometry: { l2 }, clusters } = state;
  for (let i = 0; i < count; i++, place.index++) {
    const isKept = change === "zero" || typeof change === "object";
    // Data shared with a snapshot must not be lost.
    const isShared = change === "punch" && !state.hasDataFile &&
      !l2.isCopied(place.slice.view, place.index);
    if (!isKept && !isShared) noteFreed(state, place, freed);
    const table = clusters.changing(place);
    if (typeof change === "object") {
      l2.setZeroPart(table, place.index, change.from, change.to);
    } else if (change === "zero" || change === "punch") {
      l2.setZero(table, place.index);
    } else l2.clear(table, place.index, change === "unmapZero");
  }
}

/**
 * Make part of a cluster, whole subclusters, read as zeroes.
 *
 * @param onlyEmpty Leave it unchanged if it holds data.
 * @returns whether it reads as zeroes now: part of a compressed cluster cannot.
 */
async function zeroSubclusters(
  state: Qcow2State,
  start: number,
  end: number,
  onlyEmpty = false,
): Promise<boolean> {
  const { geometry, clusters } = state;
  const clusterStart = geometry.clusterStart(start);
  const part = { from: start - clusterStart, to: end - clusterStart };
  let isZero = true;
  const clusterEnd = clusterStart + geometry.clusterSize;
  await changeEntries(state, clusterStart, clusterEnd, "request", (kind) => {
    if (kind === "zero" || kind === "zeroAllocated") return "keep";
    // Its table is in memory by now.
    const holdsData = onlyEmpty &&
      clusters.lookup(start, end - start)?.kind === "normal";
    if (kind !== "compressed" && !holdsData) return part;
    isZero = false;
    return "keep";
  });
  return isZero;
}

/**
 * Make whole clusters read as zeroes.
 *
 * @param onlyEmpty Leave clusters that hold data unchanged.
 * @returns whether all of them read as zeroes now.
 * @throws {BlockError} ENOTSUP for version 2 with a backing file, which has no
 * zero clusters.
 */
async function zeroClusters(
  state: Qcow2State,
  start: number,
  end: number,
  { unmap = false }: ZeroFlags = {},
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
    if (state.behaviour.keepsDiscarded) return keptChange(kind, unmap);
    switch (kind) {
      case "zero":
        return "keep";
      case "unallocated":
      case "partlyZero":
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

/** How a cluster that stays allocated becomes zero. */
function keptChange(kind: WholeKind, unmap: boolean): Change {
  switch (kind) {
    case "zero":
    case "zeroAllocated":
      return "keep";
    case "compressed":
      return "unmapZero";
    case "normal":
      return unmap ? "punch" : "zero";
    case "unallocated":
    case "partlyZero":
      return "zero";
  }
}

/**
 * Make a range read as zeroes: whole clusters or subclusters by their entries,
 * and partial ones at its ends if their rest is zero already; otherwise these
 * are written to.
 *
 * @throws {BlockError} ENOTSUP if writing data is not permitted.
 */
export async function zeroGuest(
  state: Qcow2State,
  offset: number,
  length: number,
  flags: ZeroFlags = {},
): Promise<void> {
  const { geometry: { l2: { subclusterSize } }, header } = state;
  const end = offset + length;
  const first = Math.min(roundUp(offset, subclusterSize), end);
  const last = end === header.size ? end : roundDown(end, subclusterSize);
  if (offset < first) await zeroPart(state, offset, first, flags);
  checkSignal(flags.signal);
  if (first < last) await zeroUnits(state, first, last, flags);
  if (Math.max(first, last) < end) {
    await zeroPart(state, Math.max(first, last), end, flags);
  }
}

/** Most bytes written as data where entries cannot mark zeroes. */
const MAX_FALLBACK = 16 * 1024 * 1024;

/**
 * Zero whole clusters, and subclusters before and after them. If one of these
 * is part of a compressed cluster, everything is written as data, as in QEMU.
 */
async function zeroUnits(
  state: Qcow2State,
  start: number,
  end: number,
  flags: ZeroFlags,
): Promise<void> {
  const { geometry } = state;
  if (!geometry.l2.isExtended) {
    return void await zeroClusters(state, start, end, flags);
  }
  while (start < end) {
    const most = geometry.clusterStart(start + MAX_FALLBACK);
    const stop = Math.min(end, most);
    if (!await zeroByEntries(state, start, stop, flags)) {
      await zeroData(state, start, stop, flags);
    }
    start = stop;
  }
}

/** Whether a range of whole subclusters could be zeroed by its entries. */
async function zeroByEntries(
  state: Qcow2State,
  start: number,
  end: number,
  flags: ZeroFlags,
): Promise<boolean> {
  const { geometry, header } = state;
  const first = Math.min(geometry.clusterEnd(start), end);
  // The end of the disk ends its cluster.
  const last = end === header.size ? end : geometry.clusterStart(end);
  if (start < first && !await zeroSubclusters(state, start, first)) {
    return false;
  }
  if (first < last) await zeroClusters(state, first, last, flags);
  const rest = Math.max(first, last);
  return rest === end || await zeroSubclusters(state, rest, end);
}

/** Zero a part of a cluster or subcluster. */
async function zeroPart(
  state: Qcow2State,
  start: number,
  end: number,
  flags: ZeroFlags,
): Promise<void> {
  const { geometry: { l2 }, header, backing } = state;
  const { subclusterSize } = l2;
  const unitStart = roundDown(start, subclusterSize);
  const unitEnd = Math.min(unitStart + subclusterSize, header.size);
  const canSay = header.version >= 3 || !backing;
  if (
    canSay && await holdsZeroes(state, unitStart, start) &&
    await holdsZeroes(state, end, unitEnd) &&
    await (l2.isExtended
      ? zeroSubclusters(state, unitStart, unitEnd, true)
      : zeroClusters(state, unitStart, unitEnd, flags, true))
  ) return;
  await zeroData(state, start, end, flags);
}

/** Write zeroes as data where entries cannot mark them. */
async function zeroData(
  state: Qcow2State,
  start: number,
  end: number,
  { noFallback, signal }: ZeroFlags,
): Promise<void> {
  if (noFallback) throw new BlockError("ENOTSUP");
  await state.access.writev(start, [zeroes(end - start)], { signal });
}

/** Whether a part of a unit is known to read as zeroes. */
async function holdsZeroes(
  state: Qcow2State,
  start: number,
  end: number,
): Promise<boolean> {
  if (start === end) return true;
  try {
    if (await state.access.readsAsZeroes(start, end)) return true;
  } catch (error) {
    // The damage has been reported; the fallback fails in its own way.
    if (state.unusable) return false;
    throw error;
  }
  const { kind } = await state.clusters.map(start, 1);
  const isLeft = kind === "unallocated" || kind === "unallocatedPlaced";
  if (!isLeft || !state.backing) return false;
  const stop = Math.min(end, state.backing.size);
  for await (const extent of chainExtents(state.backing, start, stop - start)) {
    if (!extent.zero) return false;
  }
  return true;
}

/** Write zeroes as data, except where the disk reads as zeroes already. */
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
 * Free the whole clusters of a range, which then read as zeroes.
 *
 * @throws {BlockError} ENOTSUP for version 2 with a backing file, whose content
 * would show.
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
    const isPlaced = kind !== "unallocated" && kind !== "partlyZero";
    if (!isPlaced && !backing) return "keep";
    return state.behaviour.keepsDiscarded ? keptChange(kind, true) : gone;
  });
}

/** Unmap everything from a cluster on, as if it had never been written. */
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
