/**
 * How much of a write can be done in one way.
 *
 * @module
 */
import type { EntryPlace, Mapping } from "./cluster_map.ts";
import { hasPlace, isOwned } from "./entry_changes.ts";
import type { Geometry } from "./geometry.ts";

/** How the first part of a write can be done, and how much of it. */
export interface WritableRun {
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

/** The run that begins with `first`, the mapping of `offset` at `place`. */
export function writableRun(
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
