/**
 * Refcount arithmetic: entries of a block, and the layout of a larger table.
 * (Specification: "Host cluster management".)
 *
 * @module
 */
import { allocate, divideUp, roundUp, viewOf } from "../../core/bytes.ts";
import { ENTRY_SIZE, readUint64, writeUint64 } from "./format.ts";
import type { Geometry } from "./geometry.ts";

/** Read the refcount at `index` of a block; inexact for 2^53 and more. */
export function readRefcount(
  view: DataView,
  order: number,
  index: number,
): number {
  switch (order) {
    case 3:
      return view.getUint8(index);
    case 4:
      return view.getUint16(index * 2);
    case 5:
      return view.getUint32(index * 4);
    case 6:
      return readUint64(view, index * 8);
  }
  const bits = 1 << order;
  const at = index << order;
  return (view.getUint8(at >> 3) >> (at & 7)) & ((1 << bits) - 1);
}

/** Write the refcount at `index` of a block. */
export function writeRefcount(
  view: DataView,
  order: number,
  index: number,
  value: number,
): void {
  switch (order) {
    case 3:
      return view.setUint8(index, value);
    case 4:
      return view.setUint16(index * 2, value);
    case 5:
      return view.setUint32(index * 4, value);
    case 6:
      return writeUint64(view, index * 8, value);
  }
  const mask = (1 << (1 << order)) - 1;
  const at = index << order;
  const byte = view.getUint8(at >> 3);
  const shift = at & 7;
  view.setUint8(at >> 3, (byte & ~(mask << shift)) | (value << shift));
}

/**
 * Add `delta` to the refcounts of a block from `from` up to `end`.
 *
 * @param max The greatest value that fits.
 * @returns `end`, or the index of the first one that would overflow; those
 * before it have been changed.
 */
export function addToRefcounts(
  view: DataView,
  order: number,
  from: number,
  end: number,
  delta: number,
  max: number,
): number {
  if (order === 4) return addToUsual(view, from, end, delta, max);
  for (let index = from; index < end; index++) {
    const value = readRefcount(view, order, index) + delta;
    if (value >= 2 ** 53) {
      // Inexact only in damaged images, which must not get worse.
      const exact = view.getBigUint64(index * 8) + BigInt(delta);
      if (exact >= 2n ** 64n) return index;
      view.setBigUint64(index * 8, exact);
      continue;
    }
    if (value < 0 || value > max) return index;
    writeRefcount(view, order, index, value);
  }
  return end;
}

/** The same for refcounts of 16 bits, of which a large disk has millions. */
function addToUsual(
  view: DataView,
  from: number,
  end: number,
  delta: number,
  max: number,
): number {
  for (let index = from; index < end; index++) {
    const value = view.getUint16(index * 2) + delta;
    if (value < 0 || value > max) return index;
    view.setUint16(index * 2, value);
  }
  return end;
}

/**
 * The index of the first refcount of a block, from `from` up to `end`, that is
 * zero (`free`) or not zero; `end` if there is none. Those of the usual width
 * are compared in place, whatever the byte order: a large disk has millions.
 */
export function findRefcount(
  view: DataView,
  order: number,
  from: number,
  end: number,
  free: boolean,
): number {
  let index = from;
  if (order === 4) {
    const counts = new Uint16Array(view.buffer, view.byteOffset, end);
    while (index < end && (counts[index] === 0) !== free) index++;
    return index;
  }
  while (index < end && (readRefcount(view, order, index) === 0) !== free) {
    index++;
  }
  return index;
}

/**
 * The refcount table and its only block, in clusters 1 and 2 of a new image;
 * they count the first `count` clusters.
 */
export function firstRefcounts(
  { clusterSize, refcountOrder, refcountMax }: Geometry,
  count: number,
): [table: Uint8Array, block: Uint8Array] {
  const table = allocate(clusterSize);
  writeUint64(viewOf(table), 0, 2 * clusterSize);
  const block = allocate(clusterSize);
  addToRefcounts(viewOf(block), refcountOrder, 0, count, 1, refcountMax);
  return [table, block];
}

/** The size of refcounts that count `clusters` and themselves. */
export function refcountsFor(
  geometry: Geometry,
  clusters: number,
): { blocks: number; tableClusters: number } {
  let blocks = 0;
  let tableClusters = 0;
  for (;;) {
    const needed = divideUp(
      clusters + blocks + tableClusters,
      geometry.refcountBlockEntries,
    );
    if (needed === blocks) return { blocks, tableClusters };
    blocks = needed;
    tableClusters = geometry.clustersFor(blocks * ENTRY_SIZE);
  }
}

/** The layout of a larger refcount table. */
interface GrowthLayout {
  /** The cluster where the new blocks begin; the table follows them. */
  start: number;
  /**
   * Number of new blocks: from the end of the old table to those that count the
   * new.
   */
  blocks: number;
  tableClusters: number;
}

/**
 * The layout of a table that counts the clusters up to `end` and itself, past
 * them and past all that the `entries` of the old table count. It is half as
 * large again as needed, so that it seldom grows; it gets blocks for as many
 * clusters as in QEMU.
 */
export function growthLayout(
  geometry: Geometry,
  entries: number,
  end: number,
): GrowthLayout {
  const { clusterSize, refcountBlockEntries } = geometry;
  const counted = Math.max(end, entries * refcountBlockEntries);
  const start = roundUp(counted, refcountBlockEntries);
  const spare = divideUp(refcountsFor(geometry, start).tableClusters, 2);
  const { blocks } = refcountsFor(geometry, start + spare);
  const tableEntries = roundUp(
    Math.ceil(blocks * 1.5),
    clusterSize / ENTRY_SIZE,
  );
  const tableClusters = tableEntries * ENTRY_SIZE / clusterSize;
  return { start, blocks: blocks - entries, tableClusters };
}
