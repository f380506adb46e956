/**
 * Allocating and freeing host clusters, and growing the refcount structure.
 * (Specification: "Host cluster management".)
 *
 * All methods but the constructor require the image's metadata lock.
 *
 * @module
 */
import { divideUp } from "../../core/bytes.ts";
import { asBlockError, BlockError, reasonOf } from "../../core/errors.ts";
import type { FreeReason } from "./behaviour.ts";
import { addToRefcounts, findRefcount } from "./refcount_layout.ts";
import type { RefcountBlocks } from "./refcount_blocks.ts";
import { RefcountTable } from "./refcount_table.ts";

/** A range of cluster indices. */
interface ClusterRange {
  start: number;
  /** Index past the last one. */
  end: number;
}

/** Most ranges to be discarded that are kept in memory. */
const MAX_DISCARDS = 1024;

const loadBlocks = () => import("./refcount_blocks.ts");

/** The refcounts of an image, and its allocator. */
export class Refcounts extends RefcountTable {
  /** No cluster below this index is free. */
  #firstFree = 0;
  /**
   * Range of clusters whose last reference may still be on the disk. Before one
   * of them is reused, the L2 tables are made durable: otherwise the old
   * reference would show the new content after a power cut.
   */
  #recentlyFreed: ClusterRange = { start: Infinity, end: 0 };
  /**
   * Those of them to be discarded, once their last reference is gone from the
   * disk: a file system may punch a hole durably long before it writes the L2
   * table.
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
   * Allocate `count` free clusters in a row; without waiting if their refcounts
   * are cached.
   *
   * @returns the host offset of the first.
   */
  allocate(count: number): number | Promise<number> {
    return this.#allocateCached(count) ?? this.#allocateLater(count);
  }

  /**
   * Allocate the first free clusters, if they are consecutive and in one block.
   */
  #allocateCached(count: number): number | undefined {
    const { geometry, refcountCache, file } = this.host;
    const { refcountOrder: order, refcountBlockEntries, clusterSize } =
      geometry;
    // A debug filter may suspend each step.
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
   * Allocate `length` bytes for a compressed cluster, in the rest of the host
   * cluster that holds the last one if possible; without waiting if the
   * refcounts are cached.
   *
   * @returns the host offset of the first byte.
   */
  allocateBytes(length: number): number | Promise<number> {
    return this.#allocateBytesCached(length) ??
      this.#allocateBytesLater(length);
  }

  #allocateBytesCached(length: number): number | undefined {
    const { geometry, refcountCache, file } = this.host;
    const { clusterSize, refcountOrder, refcountBlockEntries } = geometry;
    const last = this.#freeByte;
    // A debug filter may suspend each step.
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

  /**
   * The next compressed cluster may start at `end`, unless that begins a
   * cluster.
   */
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
      // Data may extend from the last cluster into the new one.
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
   * Drop one reference to each cluster that the bytes touch. What referred to
   * them must have been changed in the L2 cache or in the file before, so that
   * nothing can be undone: if refcounts are damaged, that is only reported. The
   * change need not be durable: nothing here relies on it before the L2 cache,
   * and with it the file, has been flushed.
   *
   * @param step Bytes that are freed as a whole, or not at all.
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
   * As {@linkcode free}, but fails on damage.
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
      // Only damage refers to clusters without a block. QEMU allocates one for
      // them.
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
   * No references to freed clusters are left on the disk: they may be discarded
   * and reused.
   */
  settle(): void | Promise<void> {
    this.#recentlyFreed = { start: Infinity, end: 0 };
    if (this.#discards.length > 0) return this.#passDiscards();
  }

  async #passDiscards(): Promise<void> {
    for (const { start, end } of this.#discards.splice(0)) {
      // A discard is only a hint: a failure does no harm.
      await this.#passDiscard(start, end).catch(() => {});
    }
  }

  #refuseBlock(): Promise<never> {
    return this.host.corrupt(
      "Preventing invalid allocation of refcount block at offset 0",
    );
  }

  /**
   * Whether some of the clusters have no refcount block, but could have one.
   */
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

  /**
   * Find `count` free clusters in a row whose refcount blocks exist; returns
   * the index of the first.
   */
  async #reserve(count: number): Promise<number> {
    for (;;) {
      const start = await this.#findFree(count);
      const { clusterSize } = this.host.geometry;
      if ((start + count) * clusterSize > 2 ** 53) {
        throw new BlockError("EFBIG");
      }
      if (await this.#prepare(start, count)) return start;
      // A refcount block was allocated, perhaps just there: search again.
    }
  }

  /**
   * Whether free clusters can be allocated at once. If they lack a refcount
   * block, one is allocated after them, as in QEMU, and the answer is false.
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

  /** The index of the first of `count` free clusters in a row. */
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
          // The start of the search moves only past clusters in use.
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

  /** Freed clusters may have been tables: drop them from the caches. */
  #forgetTables(start: number, count: number): void {
    const { geometry, l2Cache, refcountCache } = this.host;
    const { clusterSize } = geometry;
    for (const cache of [l2Cache, refcountCache]) {
      cache.forget(start * clusterSize, count * clusterSize);
    }
  }

  /**
   * Allocate the refcount blocks of a range of clusters.
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
        const { makeBlock } = await loadBlocks();
        await makeBlock(this.#blocks, index, start + count);
        missing = true;
      }
    }
    if (missing || last < this.tableSize) return missing;
    const { growTable } = await loadBlocks();
    await growTable(this.#blocks, start + count);
    return true;
  }

  /**
   * Durably free the blocks that count nothing, or only themselves. No entry in
   * the file may refer to free clusters. Remaining blocks may still count
   * dropped ones, which is a leak at worst.
   *
   * @returns whether there were any: others may have counted only those.
   */
  async dropEmptyBlocks(): Promise<boolean> {
    return await (await loadBlocks()).dropEmptyBlocks(this.#blocks);
  }

  get #blocks(): RefcountBlocks {
    return {
      host: this.host,
      table: () => this.tableBytes,
      blockOffset: (index) => this.blockOffset(index),
      setBlockOffset: (index, offset) => this.setBlockOffset(index, offset),
      loadBlock: (index) => this.loadBlock(index),
      get: (cluster) => this.get(cluster),
      addClusters: (start, count, delta) =>
        this.addClusters(start, count, delta),
      findFree: (from) => this.#findFree(1, from),
      prepare: (cluster) => this.#prepare(cluster, 1),
      noteFree: (cluster) => this.#noteFree(cluster),
      refuseBlock: () => this.#refuseBlock(),
      replaceTable: (bytes) => super.replaceTable(bytes),
    };
  }
}
