/**
 * Allocating and freeing refcount blocks, and growing the table that refers to
 * them. (Specification: "Host cluster management".) Loaded on demand: a block
 * counts the clusters of gigabytes.
 *
 * @module
 */
import { allocate, viewOf } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { isZero } from "../../core/runtime.ts";
import {
  ENTRY_SIZE,
  hex,
  MAX_REFCOUNT_TABLE_BYTES,
  writeUint64,
} from "./format.ts";
import type { Geometry } from "./geometry.ts";
import {
  addToRefcounts,
  growthLayout,
  readRefcount,
  writeRefcount,
} from "./refcount_layout.ts";
import type { RefcountHost } from "./refcount_table.ts";
import type { CachedTable } from "./table_cache.ts";

/** What blocks and table need of the refcounts they belong to. */
export interface RefcountBlocks {
  readonly host: RefcountHost;
  /** The table, as in the file. */
  table(): Uint8Array;
  blockOffset(tableIndex: number): number;
  setBlockOffset(tableIndex: number, offset: number): void;
  loadBlock(tableIndex: number): Promise<CachedTable | undefined>;
  /** The refcount of a cluster, by its index. */
  get(clusterIndex: number): Promise<number>;
  addClusters(start: number, count: number, delta: number): Promise<void>;
  /** The first free cluster from `from` on, by its index. */
  findFree(from: number): Promise<number>;
  /** Make a free cluster ready to be allocated. */
  prepare(clusterIndex: number): Promise<unknown>;
  noteFree(clusterIndex: number): void;
  /** Refuse to allocate a block at offset 0. */
  refuseBlock(): Promise<never>;
  /** Switch to a larger table, which the file holds already. */
  replaceTable(bytes: Uint8Array): void;
}

/**
 * Durably free the blocks that count nothing, or only themselves. No entry in
 * the file may refer to free clusters. Remaining blocks may still count
 * dropped ones, which is a leak at worst.
 *
 * @returns whether there were any: others may have counted only those.
 */
export async function dropEmptyBlocks(
  refcounts: RefcountBlocks,
): Promise<boolean> {
  const { host } = refcounts;
  const { geometry, file, header, refcountCache } = host;
  const { clusterSize, refcountBlockEntries } = geometry;
  const table = refcounts.table().slice();
  const dropped: [tableIndex: number, cluster: number][] = [];
  for (let index = 0; index < sizeOf(refcounts); index++) {
    const block = await refcounts.loadBlock(index);
    if (!block || !countsNothing(block, geometry, index)) continue;
    const cluster = block.offset / clusterSize;
    if (
      refcounts.blockOffset(Math.floor(cluster / refcountBlockEntries)) === 0
    ) {
      await host.corrupt(
        `Refblock at ${hex(block.offset)} is not covered by the refcount ` +
          "structures",
      );
    }
    const countedBy = Math.floor(cluster / refcountBlockEntries);
    const count = await refcounts.get(cluster);
    if (count !== 1) {
      await host.corrupt(
        `Invalid refcount: refblock offset ${
          hex(refcounts.blockOffset(countedBy))
        }, reftable index ${countedBy}, block offset ${
          hex(block.offset)
        }, refcount ${hex(count)}`,
      );
    }
    dropped.push([index, cluster]);
    table.fill(0, index * ENTRY_SIZE, (index + 1) * ENTRY_SIZE);
  }
  if (dropped.length === 0) return false;
  await file.writev!(header.refcountTableOffset, [table]);
  await file.flush?.();
  for (const [index, cluster] of dropped) {
    refcounts.setBlockOffset(index, 0);
    refcountCache.forget(cluster * clusterSize, clusterSize);
    // A block that counted itself takes that refcount with it.
    const countedBy = Math.floor(cluster / refcountBlockEntries);
    const isCounted = countedBy !== index && await refcounts.get(cluster) > 0;
    if (isCounted) await refcounts.addClusters(cluster, 1, -1);
    else refcounts.noteFree(cluster);
  }
  return true;
}

/**
 * Allocate one refcount block, in the first free cluster from `from` on; it
 * may be the block that counts itself.
 */
export async function makeBlock(
  refcounts: RefcountBlocks,
  tableIndex: number,
  from: number,
): Promise<void> {
  const { host } = refcounts;
  const { geometry, refcountCache, file } = host;
  const { clusterSize, refcountBlockEntries, refcountOrder } = geometry;
  await host.event("refblock_alloc");
  const cluster = await refcounts.findFree(from);
  if (cluster === 0) await refcounts.refuseBlock();
  const countedBy = Math.floor(cluster / refcountBlockEntries);
  if (countedBy !== tableIndex) {
    if (refcounts.blockOffset(countedBy) === 0) {
      return countedBy >= sizeOf(refcounts)
        ? await growTable(refcounts, cluster + 1)
        : await makeBlock(refcounts, countedBy, from);
    }
    await refcounts.prepare(cluster);
    await refcounts.addClusters(cluster, 1, 1);
  }
  const offset = cluster * clusterSize;
  const block = await refcountCache.loadEmpty(offset);
  if (countedBy === tableIndex) {
    const index = cluster % refcountBlockEntries;
    writeRefcount(block.view, refcountOrder, index, 1);
  }
  // The block and its own refcount must be written before it is referred to.
  await host.event("refblock_alloc_write");
  await refcountCache.flush();
  await host.event("refblock_alloc_hookup");
  const at = tableIndex * ENTRY_SIZE;
  const entry = allocate(ENTRY_SIZE);
  writeUint64(viewOf(entry), 0, offset);
  // Whoever refers to the clusters it counts has the cache flushed before,
  // and with it the file, including this entry.
  await file.writev!(host.header.refcountTableOffset + at, [entry]);
  refcounts.setBlockOffset(tableIndex, offset);
}

/**
 * Replace the table by a larger one, for clusters up to `end`. The new table
 * and the blocks for its clusters and their own are past everything that the
 * old table can count; a new header switches to them in one step.
 */
export async function growTable(
  refcounts: RefcountBlocks,
  end: number,
): Promise<void> {
  const { host } = refcounts;
  const { geometry, file, header, refcountCache } = host;
  const { clusterSize, refcountBlockEntries, refcountOrder, refcountMax } =
    geometry;
  const old = {
    offset: header.refcountTableOffset,
    clusters: header.refcountTableClusters,
    entries: sizeOf(refcounts),
  };
  await host.event("reftable_grow");
  const layout = growthLayout(geometry, old.entries, end);
  const { start, blocks, tableClusters } = layout;
  const tableBytes = tableClusters * clusterSize;
  if (tableBytes > MAX_REFCOUNT_TABLE_BYTES) throw new BlockError("EFBIG");
  const table = allocate(tableBytes);
  table.set(refcounts.table());
  const taken = blocks + tableClusters;
  await host.overlap.check(start * clusterSize, taken * clusterSize);
  await host.event("refblock_alloc_write_blocks");
  for (let block = 0; block < blocks; block++) {
    const bytes = allocate(clusterSize);
    const first = (old.entries + block) * refcountBlockEntries;
    const from = Math.max(0, start - first);
    const to = Math.min(start + taken - first, refcountBlockEntries);
    addToRefcounts(viewOf(bytes), refcountOrder, from, to, 1, refcountMax);
    const offset = (start + block) * clusterSize;
    await file.writev!(offset, [bytes]);
    writeUint64(viewOf(table), (old.entries + block) * ENTRY_SIZE, offset);
  }
  const tableOffset = (start + blocks) * clusterSize;
  await host.event("refblock_alloc_write_table");
  await file.writev!(tableOffset, [table]);
  await refcountCache.flush();
  await host.event("refblock_alloc_switch_table");
  await host.changeHeader({
    refcountTableOffset: tableOffset,
    refcountTableClusters: tableClusters,
  });
  refcounts.replaceTable(table);
  await refcounts.addClusters(old.offset / clusterSize, old.clusters, -1);
}

/** Entries that the table has room for. */
function sizeOf(refcounts: RefcountBlocks): number {
  return refcounts.table().length / ENTRY_SIZE;
}

/** Whether all refcounts in a block are zero, except perhaps its own. */
function countsNothing(
  { offset, view, bytes }: CachedTable,
  geometry: Geometry,
  index: number,
): boolean {
  const { refcountOrder, refcountBlockEntries, clusterSize } = geometry;
  const own = offset / clusterSize - index * refcountBlockEntries;
  if (own < 0 || own >= refcountBlockEntries) return isZero(bytes);
  const count = readRefcount(view, refcountOrder, own);
  writeRefcount(view, refcountOrder, own, 0);
  const isEmpty = isZero(bytes);
  writeRefcount(view, refcountOrder, own, count);
  return isEmpty;
}
