/**
 * Changing what clusters are mapped to without writing data: zeroes, discard,
 * and cutting off.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import type { HeldRange } from "../../core/lock.ts";
import { type ClusterKind, ENTRY_SIZE, ZERO } from "./format.ts";
import type { FreeReason, Qcow2State } from "./state.ts";
import {
  type Freed,
  giveUp,
  noteFreed,
  orderL2AfterData,
  readsAsZeroes,
  writeGuest,
} from "./write.ts";
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
  const { geometry, ranges, clusters } = state;
  for (let at = start; at < end;) {
    let blocker: HeldRange | undefined;
    const freed: Freed[] = [];
    {
      using _ = await state.metadata.lock();
      state.checkUsable();
      const mapping = await clusters.mapLocked(at, end - at);
      const change = decide(mapping.kind);
      if (change === "keep") {
        at += mapping.length;
        continue;
      }
      await orderL2AfterData(state);
      const place = await clusters.entryForWrite(at);
      const count = Math.min(
        geometry.clustersFor(mapping.length),
        clusters.entriesLeft(place),
      );
      const stop = at + count * geometry.clusterSize;
      blocker = ranges.conflict(at, stop, true);
      if (!blocker) {
        for (let i = 0; i < count; i++, place.index++) {
          const entry = place.index * ENTRY_SIZE;
          if (change === "zero") {
            const high = place.slice.view.getUint32(entry);
            const low = place.slice.view.getUint32(entry + 4);
            clusters.setEntry(place, high, low | ZERO);
          } else {
            noteFreed(state, place, freed);
            clusters.setEntry(place, 0, change === "unmapZero" ? ZERO : 0);
          }
        }
        at = Math.min(stop, end);
      }
    }
    if (blocker) await blocker.released;
    else await giveUp(state, freed, reason);
  }
}

/**
 * Make whole clusters read as zeroes.
 *
 * @throws {BlockError} ENOTSUP for version 2 with a backing file, which has no
 * way to say it.
 */
async function zeroClusters(
  state: Qcow2State,
  start: number,
  end: number,
  unmap: boolean,
): Promise<void> {
  if (state.header.version < 3) {
    if (state.backing) throw new BlockError("ENOTSUP");
    return await changeEntries(
      state,
      start,
      end,
      "request",
      (kind) => kind === "unallocated" ? "keep" : "unmap",
    );
  }
  await changeEntries(state, start, end, "request", (kind) => {
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
}

/**
 * Make a range read as zeroes: whole clusters by their entries, the parts of
 * clusters at its ends as data unless they are zeroes already.
 */
export async function zeroGuest(
  state: Qcow2State,
  offset: number,
  length: number,
  unmap: boolean,
): Promise<void> {
  const { geometry, header } = state;
  const end = offset + length;
  const first = geometry.clusterEnd(offset);
  const last = end === header.size ? end : geometry.clusterStart(end);
  if (first >= last) {
    return await zeroParts(state, offset, end);
  }
  await zeroParts(state, offset, first);
  await zeroClusters(state, first, last, unmap);
  await zeroParts(state, last, end);
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
    if (!await readsAsZeroes(state, start)) {
      await writeGuest(state, start, [zeroes(stop - start)]);
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
