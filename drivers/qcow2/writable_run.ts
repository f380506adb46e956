/**
 * How far a write can go in one way.
 *
 * @module
 */
import type { EntryPlace, Mapping } from "./cluster_map.ts";
import { hasPlace, isOwned } from "./entry_changes.ts";
import type { Geometry } from "./geometry.ts";
import type { ClusterKind } from "./l2_entry.ts";

/** How the first part of a write can be done, and how far. */
export interface WritableRun {
  readonly kind: "inPlace" | "zeroInPlace" | "allocate";
  /** Bytes. */
  readonly length: number;
  /** What its last cluster is now. */
  readonly last: ClusterKind;
  /** Whether clusters are replaced that are not the image's alone. */
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
  let last = first.kind;
  let hasZeroes = first.kind !== "normal";
  let replaces = !owned && hasPlace(first.kind);
  for (; count < most; count++) {
    const index = place.index + count;
    const kind = l2.kind(view, index);
    if (isOwned(l2.isCopied(view, index), kind) !== owned) break;
    if (owned) {
      expected += clusterSize;
      if (l2.offset(view, index) !== expected) break;
      if (kind !== "normal") hasZeroes = true;
    } else if (hasPlace(kind)) replaces = true;
    last = kind;
  }
  return {
    kind: !owned ? "allocate" : hasZeroes ? "zeroInPlace" : "inPlace",
    length: Math.min(length, count * clusterSize - offsetInCluster),
    last,
    replaces,
  };
}
