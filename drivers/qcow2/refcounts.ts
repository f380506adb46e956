/**
 * Taking free host clusters and giving them up, and making room for their
 * refcounts. (Specification: "Host cluster management".)
 *
 * All methods but the constructor belong to the holder of the image's metadata
 * lock.
 *
 * @module
 */
import { allocate, divideUp, viewOf } from "../../core/bytes.ts";
import { asBlockError, BlockError, reasonOf } from "../../core/errors.ts";
import { isZero } from "../../core/runtime.ts";
import type { FreeReason } from "./behaviour.ts";
import {
  ENTRY_SIZE,
  hex,
  MAX_REFCOUNT_TABLE_BYTES,
  writeUint64,
} from "./format.ts";
import type { Geometry } from "./geometry.ts";
import {
  addToRefcounts,
  findRefcount,
  growthLayout,
  readRefcount,
  writeRefcount,
} from "./refcount_layout.ts";
import { RefcountTable } from "./refcount_table.ts";
import type { CachedTable } from "./table_cache.ts";

/** Clusters in a row, by their indices. */
interface ClusterRange {
  start: number;
  /** Past the last one. */
  end: number;
}

/** Ranges to be discarded that are kept in memory at most. */
const MAX_DISCARDS = 1024;

/** The refcounts of an image, and the search for free clusters. */
export class Refcounts extends RefcountTable {
  /** No cluster below this index is free. */
  #firstFree = 0;
  /**
   * Clusters, as a range of indices, whose last reference may still be on the
   * disk. Before one is used again, the L2 tables are made durable: else,
   * after a power cut, the old reference would show the new content.
   */
  #recentlyFreed: ClusterRange = { start: Infinity, end: 0 };
  /**
   * Of these clusters, those whose space the file is to have back. Not before
   * the last reference is gone from the disk: a file system may punch a hole
   * durably long before it writes the L2 table.
   */
  #discards: ClusterRange[] = [];
  /** Where the next compressed cluster may start; 0 if nowhere. */
  #freeByte = 0;

  override replaceTable(bytes: Uint8Array): void {
    super.replaceTable(bytes);
    this.#firstFree = 0;
    this.#freeByte = 0;
    this.#recentlyFreed = { start: Infinity, end: 0 };
    this.#discards = [];
  }

  /**
   * Durably give up the blocks that count nothing, or only themselves. For the
   * metadata lock's holder, when no entry in the file refers to what is free. That
   * blocks which are left count those that were dropped is a leak at worst.
   *
   * @returns whether there were any: others may have counted only those.
   */
  async dropEmptyBlocks(): Promise<boolean> {
    const { geometry, file, header, refcountCache } = this.host;
    const { clusterSize, refcountBlockEntries } = geometry;
    const table = this.tableBytes.slice();
    const dropped: [tableIndex: number, cluster: number][] = [];
    for (let index = 0; index < this.tableSize; index++) {
      const block = await this.loadBlock(index);
      if (!block || !countsNothing(block, geometry, index)) continue;
      const cluster = block.offset / clusterSize;
      if (this.blockOffset(Math.floor(cluster / refcountBlockEntries)) === 0) {
        await this.host.corrupt(
          `Refblock at ${hex(block.offset)} is not covered by the refcount ` +
            "structures",
        );
      }
      const countedBy = Math.floor(cluster / refcountBlockEntries);
      const count = await this.get(cluster);
      if (count !== 1) {
        await this.host.corrupt(
          `Invalid refcount: refblock offset ${
            hex(this.blockOffset(countedBy))
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
      this.setBlockOffset(index, 0);
      refcountCache.forget(cluster * clusterSize, clusterSize);
      // The count of one that counted itself is gone with it.
      const countedBy = Math.floor(cluster / refcountBlockEntries);
      const isCounted = countedBy !== index && await this.get(cluster) > 0;
      if (isCounted) await this.addClusters(cluster, 1, -1);
      else this.#noteFree(cluster);
    }
    return true;
  }

  /**
   * Find `count` free clusters in a row and take them; at once if their
   * refcounts are in memory.
   *
   * @returns the offset of the first.
   */
  allocate(count: number): number | Promise<number> {
    return this.#allocateCached(count) ?? this.#allocateLater(count);
  }

  /** Take the first free clusters, if they are in one block and in a row. */
  #allocateCached(count: number): number | undefined {
    const { geometry, refcountCache, file } = this.host;
    const { refcountOrder: order, refcountBlockEntries, clusterSize } =
      geometry;
    // A debugger below may have to wait at each step.
    if (file.debug) return undefined;
    const first = this.#firstFree % refcountBlockEntries;
    const blockStart = this.#firstFree - first;
    const offset = this.blockOffset(blockStart / refcountBlockEntries);
    const block = offset === 0 ? undefined : refcountCache.peek(offset);
    if (!block) return undefined;
    const { view } = block;
    const end = refcountBlockEntries;
    const from = findRefcount(view, order, first, end, true);
    const to = from + count;
    if (to > end || findRefcount(view, order, from, to, false) < to) {
      return undefined;
    }
    const start = blockStart + from;
    const freed = this.#recentlyFreed;
    if (start < freed.end && start + count > freed.start) return undefined;
    for (const step of ["cluster_alloc", "refblock_alloc", "refblock_load"]) {
      this.host.event(step);
    }
    addToRefcounts(view, order, from, to, 1, geometry.refcountMax);
    refcountCache.markDirty(block);
    this.#firstFree = start + count;
    return start * clusterSize;
  }

  async #allocateLater(count: number): Promise<number> {
    const { clusterSize } = this.host.geometry;
    await this.host.event("cluster_alloc");
    const start = await this.#reserve(count);
    await this.addClusters(start, count, 1);
    this.#firstFree = Math.max(this.#firstFree, start + count);
    return start * clusterSize;
  }

  /**
   * Find room for `length` bytes of a compressed cluster, in the rest of the
   * host cluster that holds the last one if they fit there; at once if the
   * refcounts are in memory.
   *
   * @returns the offset of the first byte.
   */
  allocateBytes(length: number): number | Promise<number> {
    return this.#allocateBytesCached(length) ??
      this.#allocateBytesLater(length);
  }

  #allocateBytesCached(length: number): number | undefined {
    const { geometry, refcountCache, file } = this.host;
    const { clusterSize, refcountOrder, refcountBlockEntries } = geometry;
    const last = this.#freeByte;
    // A debugger below may have to wait at each step.
    if (file.debug || last === 0) return undefined;
    const index = Math.floor(last / clusterSize);
    const count = this.peek(index);
    if (count === undefined || count >= geometry.refcountMax) return undefined;
    const room = clusterSize - last % clusterSize;
    let offset = last;
    if (room < length) {
      const fresh = this.#allocateCached(1);
      if (fresh === undefined) return undefined;
      if (last + room !== fresh) offset = fresh;
    }
    this.host.event("cluster_alloc_bytes");
    if (offset === last) {
      this.host.event("refblock_alloc");
      this.host.event("refblock_load");
      const first = index % refcountBlockEntries;
      const block = refcountCache.peek(
        this.blockOffset(Math.floor(index / refcountBlockEntries)),
      )!;
      const { view } = block;
      const { refcountMax } = geometry;
      addToRefcounts(view, refcountOrder, first, first + 1, 1, refcountMax);
      refcountCache.markDirty(block);
    }
    this.#noteBytes(offset + length);
    return offset;
  }

  /** The next compressed cluster may start at `end`, unless that begins one. */
  #noteBytes(end: number): void {
    this.#freeByte = this.host.geometry.offsetInCluster(end) === 0 ? 0 : end;
  }

  async #allocateBytesLater(length: number): Promise<number> {
    const { geometry } = this.host;
    const { clusterSize } = geometry;
    await this.host.event("cluster_alloc_bytes");
    let offset = this.#freeByte;
    if (this.#firstFree === 0 && await this.#findFree(1) === 0) {
      await this.host.corrupt(
        "Preventing invalid allocation of compressed cluster at offset 0",
      );
    }
    if (offset > 0) {
      const index = Math.floor(offset / clusterSize);
      if (await this.get(index) >= geometry.refcountMax) offset = 0;
    }
    const room = offset > 0 ? clusterSize - offset % clusterSize : 0;
    if (room < length) {
      const fresh = await this.allocate(1);
      // Bytes may run on from the last cluster into the new one.
      if (offset > 0 && room > 0 && offset + room === fresh) {
        await this.addClusters(Math.floor(offset / clusterSize), 1, 1);
      } else {
        offset = fresh;
      }
    } else {
      await this.addClusters(Math.floor(offset / clusterSize), 1, 1);
    }
    this.#noteBytes(offset + length);
    return offset;
  }

  /**
   * Give up one reference to each cluster that the bytes touch. What referred
   * to them must have been changed in the L2 cache or written to the file
   * before: so there is nothing to go back to where the refcounts are damaged,
   * and what cannot be given up is only reported. The change need not be
   * durable: nothing below relies on that before the L2 cache, and with it the
   * file, has been flushed.
   *
   * @param step Bytes that are given up as a whole, or not at all.
   */
  async free(
    offset: number,
    length: number,
    reason: FreeReason = "other",
    step: number = length,
  ): Promise<void> {
    if (length === 0) return;
    await this.host.event("cluster_free");
    try {
      await this.release(offset, length, reason);
    } catch (error) {
      const { code } = asBlockError(error);
      const isDamage = code === "EINVAL" || code === "EAGAIN";
      if (isDamage && step < length) {
        for (let at = offset; at < offset + length; at += step) {
          await this.free(at, step, reason);
        }
        return;
      }
      const why = reasonOf(error);
      this.host.behaviour.report(`qcow2_free_clusters failed: ${why}`);
    }
  }

  /**
   * As {@linkcode free}, where damage is a reason to stop.
   *
   * @throws {BlockError} EINVAL if a refcount is zero already.
   */
  async release(
    offset: number,
    length: number,
    reason: FreeReason,
  ): Promise<void> {
    const { clusterSize } = this.host.geometry;
    const start = Math.floor(offset / clusterSize);
    const end = divideUp(offset + length, clusterSize);
    if (this.host.accurateRefcounts) {
      await this.host.refcountCache.dependOn(this.host.l2Cache);
    }
    if (this.#lacksBlock(start, end)) {
      // Only damage refers to what nothing counts. QEMU counts it from here on.
      await this.host.l2Cache.flush();
      if (await this.#findFree(1) === 0) await this.#refuseBlock();
      await this.#makeBlocks(start, end - start);
      throw new BlockError("EAGAIN");
    }
    await this.addClusters(start, end - start, -1);
    if (this.host.behaviour.passDiscard[reason] && this.host.file.discard) {
      await this.#noteDiscard(start, end);
    }
  }

  async #noteDiscard(start: number, end: number): Promise<void> {
    const last = this.#discards.at(-1);
    if (last?.end === start) last.end = end;
    else this.#discards.push({ start, end });
    if (this.#discards.length < MAX_DISCARDS) return;
    await this.host.l2Cache.flush();
    await this.settle();
  }

  /**
   * No reference to a freed cluster is left on the disk: the space of those
   * that are free is given back, and they may be used again at once.
   */
  settle(): void | Promise<void> {
    this.#recentlyFreed = { start: Infinity, end: 0 };
    if (this.#discards.length > 0) return this.#passDiscards();
  }

  async #passDiscards(): Promise<void> {
    for (const { start, end } of this.#discards.splice(0)) {
      // Only a wish: that it fails does no harm.
      await this.#passDiscard(start, end).catch(() => {});
    }
  }

  #refuseBlock(): Promise<never> {
    return this.host.corrupt(
      "Preventing invalid allocation of refcount block at offset 0",
    );
  }

  /** Whether there is room for a block that would count some of the clusters. */
  #lacksBlock(start: number, end: number): boolean {
    const { refcountBlockEntries } = this.host.geometry;
    const last = Math.floor((end - 1) / refcountBlockEntries);
    let index = Math.floor(start / refcountBlockEntries);
    for (; index <= last && index < this.tableSize; index++) {
      if (this.blockOffset(index) === 0) return true;
    }
    return false;
  }

  async #passDiscard(start: number, end: number): Promise<void> {
    const { file, geometry } = this.host;
    const { clusterSize } = geometry;
    let first = start;
    for (let at = start; at <= end; at++) {
      if (at < end && (this.peek(at) ?? await this.get(at)) === 0) continue;
      const offset = first * clusterSize;
      const length = Math.min(at * clusterSize, file.size) - offset;
      if (length > 0) await file.discard!(offset, length);
      first = at + 1;
    }
  }

  /** The index of the first of `count` free clusters in a row, made ready. */
  async #reserve(count: number): Promise<number> {
    for (;;) {
      const start = await this.#findFree(count);
      const { clusterSize } = this.host.geometry;
      if ((start + count) * clusterSize > 2 ** 53) {
        throw new BlockError("EFBIG");
      }
      if (await this.#prepare(start, count)) return start;
      // A refcount block was made, perhaps just there: look again.
    }
  }

  /**
   * Whether free clusters can be taken at once. If they lack a refcount block,
   * it is made, past them, as QEMU does; then the answer is false.
   */
  async #prepare(start: number, count: number): Promise<boolean> {
    if (await this.#makeBlocks(start, count)) return false;
    const { start: freed, end } = this.#recentlyFreed;
    if (start < end && start + count > freed) {
      await this.host.l2Cache.flush();
      await this.settle();
    }
    return true;
  }

  /** The index of the first of `count` free clusters in a row from there on. */
  async #findFree(count: number, from = 0): Promise<number> {
    const { geometry } = this.host;
    const { refcountOrder, refcountBlockEntries } = geometry;
    let found = 0;
    let at = Math.max(from, this.#firstFree);
    while (found < count) {
      const tableIndex = Math.floor(at / refcountBlockEntries);
      const blockEnd = (tableIndex + 1) * refcountBlockEntries;
      const block = await this.loadBlock(tableIndex);
      if (!block) {
        found += blockEnd - at;
        at = blockEnd;
        continue;
      }
      const start = blockEnd - refcountBlockEntries;
      const next = (free: boolean, end: number) =>
        start +
        findRefcount(block.view, refcountOrder, at - start, end - start, free);
      while (at < blockEnd && found < count) {
        if (found === 0) {
          const free = next(true, blockEnd);
          // The start of the search moves on only past what is not free.
          if (this.#firstFree === at) this.#firstFree = free;
          at = free;
        }
        const end = Math.min(blockEnd, at + count - found);
        const taken = next(false, end);
        found = taken < end ? 0 : found + taken - at;
        at = taken;
      }
    }
    return at - found;
  }

  protected override noteDecrease(
    view: DataView,
    start: number,
    first: number,
    end: number,
  ): void {
    const { refcountOrder: order } = this.host.geometry;
    const next = (from: number) => findRefcount(view, order, from, end, true);
    let index = next(first);
    if (index === end) return;
    for (; index < end; index = next(index + 1)) {
      this.#noteFree(start + index - first);
    }
    this.#forgetTables(start, end - first);
  }

  #noteFree(clusterIndex: number): void {
    this.#firstFree = Math.min(this.#firstFree, clusterIndex);
    const freed = this.#recentlyFreed;
    freed.start = Math.min(freed.start, clusterIndex);
    freed.end = Math.max(freed.end, clusterIndex + 1);
    const { clusterSize } = this.host.geometry;
    if (Math.floor(this.#freeByte / clusterSize) === clusterIndex) {
      this.#freeByte = 0;
    }
  }

  /** Freed clusters may have been tables: what the caches hold is void. */
  #forgetTables(start: number, count: number): void {
    const { geometry, l2Cache, refcountCache } = this.host;
    const { clusterSize } = geometry;
    for (const cache of [l2Cache, refcountCache]) {
      cache.forget(start * clusterSize, count * clusterSize);
    }
  }

  /**
   * Make the refcount blocks of a range of clusters.
   *
   * @returns whether any was missing.
   */
  async #makeBlocks(start: number, count: number): Promise<boolean> {
    const { refcountBlockEntries } = this.host.geometry;
    const first = Math.floor(start / refcountBlockEntries);
    const last = Math.floor((start + count - 1) / refcountBlockEntries);
    let missing = false;
    for (let index = first; index <= last && index < this.tableSize; index++) {
      while (this.blockOffset(index) === 0) {
        await this.#makeBlock(index, start + count);
        missing = true;
      }
    }
    if (missing || last < this.tableSize) return missing;
    await this.#growTable(start + count);
    return true;
  }

  /**
   * Make one refcount block. Its own cluster is the first free one that is not
   * before `from`; the block may be the one that counts itself.
   */
  async #makeBlock(tableIndex: number, from: number): Promise<void> {
    const { geometry, refcountCache, file } = this.host;
    const { clusterSize, refcountBlockEntries, refcountOrder } = geometry;
    await this.host.event("refblock_alloc");
    const cluster = await this.#findFree(1, from);
    if (cluster === 0) await this.#refuseBlock();
    const countedBy = Math.floor(cluster / refcountBlockEntries);
    if (countedBy !== tableIndex) {
      if (this.blockOffset(countedBy) === 0) {
        return countedBy >= this.tableSize
          ? await this.#growTable(cluster + 1)
          : await this.#makeBlock(countedBy, from);
      }
      await this.#prepare(cluster, 1);
      await this.addClusters(cluster, 1, 1);
    }
    const offset = cluster * clusterSize;
    const block = await refcountCache.loadEmpty(offset);
    if (countedBy === tableIndex) {
      const index = cluster % refcountBlockEntries;
      writeRefcount(block.view, refcountOrder, index, 1);
    }
    // The block, and the count of its cluster, before what refers to it.
    await this.host.event("refblock_alloc_write");
    await refcountCache.flush();
    await this.host.event("refblock_alloc_hookup");
    const at = tableIndex * ENTRY_SIZE;
    const entry = allocate(ENTRY_SIZE);
    writeUint64(viewOf(entry), 0, offset);
    // Whoever refers to what it counts has the cache flushed before, and so
    // the file, the table included.
    await file.writev!(this.host.header.refcountTableOffset + at, [entry]);
    this.setBlockOffset(tableIndex, offset);
  }

  /**
   * Replace the table by a larger one, for clusters up to `end`.
   * The new table, and the blocks that count its clusters and their own, lie
   * past all that the old table can count; a new header makes them valid in
   * one step.
   */
  async #growTable(end: number): Promise<void> {
    const { geometry, file, header, refcountCache } = this.host;
    const { clusterSize, refcountBlockEntries, refcountOrder, refcountMax } =
      geometry;
    const old = {
      offset: header.refcountTableOffset,
      clusters: header.refcountTableClusters,
      entries: this.tableSize,
    };
    await this.host.event("reftable_grow");
    const layout = growthLayout(geometry, old.entries, end);
    const { start, blocks, tableClusters } = layout;
    const tableBytes = tableClusters * clusterSize;
    if (tableBytes > MAX_REFCOUNT_TABLE_BYTES) throw new BlockError("EFBIG");
    const table = allocate(tableBytes);
    table.set(this.tableBytes);
    const taken = blocks + tableClusters;
    await this.host.overlap.check(start * clusterSize, taken * clusterSize);
    await this.host.event("refblock_alloc_write_blocks");
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
    await this.host.event("refblock_alloc_write_table");
    await file.writev!(tableOffset, [table]);
    await refcountCache.flush();
    await this.host.event("refblock_alloc_switch_table");
    await this.host.changeHeader({
      refcountTableOffset: tableOffset,
      refcountTableClusters: tableClusters,
    });
    super.replaceTable(table);
    await this.addClusters(old.offset / clusterSize, old.clusters, -1);
  }
}

/** Whether all refcounts in a block are zero, but for that of itself. */
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
