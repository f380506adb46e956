/**
 * Reference counts of host clusters, and finding free ones. (Specification:
 * "Host cluster management".)
 *
 * All methods but the constructor belong to the holder of the image's metadata
 * lock.
 *
 * @module
 */
import { allocate, divideUp } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import { isZero } from "../../core/runtime.ts";
import {
  bytesOf,
  ENTRY_SIZE,
  entryOffset,
  type Geometry,
  hex,
  MAX_REFCOUNT_TABLE_BYTES,
  viewOf,
  writeUint64,
} from "./format.ts";
import type { Header } from "./header.ts";
import type { OverlapGuard } from "./overlap.ts";
import {
  addToRefcounts,
  findRefcount,
  growthLayout,
  readRefcount,
  writeRefcount,
} from "./refcount_layout.ts";
import type { Behaviour, FreeReason } from "./state.ts";
import type { CachedTable, TableCache } from "./table_cache.ts";

/** What the refcounts need of the image they belong to. */
export interface RefcountHost {
  readonly file: BlockNode;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly refcountCache: TableCache;
  readonly l2Cache: TableCache;
  readonly overlap: OverlapGuard;
  readonly behaviour: Behaviour;
  /** Whether the refcounts on the disk must never be too low. */
  readonly accurateRefcounts: boolean;
  /** Tell that a step is about to be done. */
  event(name: string): Promise<void> | void;
  /** Change the header, in memory and durably in the file, or not at all. */
  changeHeader(changes: Partial<Header>): Promise<void>;
  /** Report damage: never answers. */
  corrupt(message: string): Promise<never>;
}

/** The refcount table, its blocks, and the search for free clusters. */
export class Refcounts {
  readonly #host: RefcountHost;
  /** The refcount table as it is in the file. */
  #table: DataView = viewOf(new Uint8Array());
  /** No cluster below this index is free. */
  #firstFree = 0;
  /**
   * Clusters, as a range of indices, whose last reference may still be on the
   * disk. Before one is used again, the L2 tables are made durable: else,
   * after a power cut, the old reference would show the new content.
   */
  #recentlyFreed = { start: Infinity, end: 0 };
  /** Clusters that are refcount blocks, by index; found at the first use. */
  #blocks?: Set<number>;
  /** Where the next compressed cluster may start; 0 if nowhere. */
  #freeByte = 0;

  constructor(host: RefcountHost) {
    this.#host = host;
  }

  /** Read the refcount table. */
  async load(): Promise<void> {
    const { file, header, geometry } = this.#host;
    const length = header.refcountTableClusters * geometry.clusterSize;
    const bytes = allocate(length);
    if (length > 0) await this.#host.event("reftable_load");
    if (length > 0) await file.readv(header.refcountTableOffset, [bytes]);
    this.replaceTable(bytes);
  }

  /** Go on with another refcount table, which the file holds already. */
  replaceTable(bytes: Uint8Array): void {
    this.#blocks = undefined;
    this.#table = viewOf(bytes);
    this.#firstFree = 0;
    this.#freeByte = 0;
    this.#recentlyFreed = { start: Infinity, end: 0 };
  }

  /** Entries that the refcount table has room for. */
  get tableSize(): number {
    return this.#table.byteLength / ENTRY_SIZE;
  }

  /** Whether the cluster with that index is a refcount block. */
  isBlock(clusterIndex: number): boolean {
    if (!this.#blocks) {
      this.#blocks = new Set();
      const { clusterSize } = this.#host.geometry;
      for (let index = 0; index < this.tableSize; index++) {
        const offset = this.blockOffset(index);
        if (offset !== 0) this.#blocks.add(Math.floor(offset / clusterSize));
      }
    }
    return this.#blocks.has(clusterIndex);
  }

  /**
   * The block of an entry of the table, to be looked at until the next `await`;
   * `undefined` if there is none.
   */
  async block(tableIndex: number): Promise<DataView | undefined> {
    return (await this.#loadBlock(tableIndex))?.view;
  }

  /** Where the block of an entry of the table lies; 0 if there is none. */
  blockOffset(tableIndex: number): number {
    if (tableIndex >= this.tableSize) return 0;
    const at = tableIndex * ENTRY_SIZE;
    return entryOffset(
      this.#table.getUint32(at),
      this.#table.getUint32(at + 4),
    );
  }

  /** The refcount of a cluster if it is in memory. */
  peek(clusterIndex: number): number | undefined {
    const { geometry, refcountCache } = this.#host;
    const { refcountOrder, refcountBlockEntries: entries } = geometry;
    const offset = this.blockOffset(Math.floor(clusterIndex / entries));
    const block = offset === 0 ? undefined : refcountCache.peek(offset);
    return block &&
      readRefcount(block.view, refcountOrder, clusterIndex % entries);
  }

  /** The refcount of the cluster with that index in the file. */
  async get(clusterIndex: number): Promise<number> {
    const { geometry } = this.#host;
    const entries = geometry.refcountBlockEntries;
    const block = await this.#loadBlock(Math.floor(clusterIndex / entries));
    if (!block) return 0;
    const { refcountOrder } = geometry;
    return readRefcount(block.view, refcountOrder, clusterIndex % entries);
  }

  /**
   * Give up the blocks that count nothing, or only themselves. For the metadata
   * lock's holder, when all refcounts are durable.
   *
   * @returns whether there were any: others may have counted only those.
   */
  async dropEmptyBlocks(): Promise<boolean> {
    const { geometry, file, header, refcountCache } = this.#host;
    const { clusterSize, refcountBlockEntries } = geometry;
    const table = bytesOf(this.#table).slice();
    const dropped: [tableIndex: number, cluster: number][] = [];
    for (let index = 0; index < this.tableSize; index++) {
      const block = await this.#loadBlock(index);
      if (!block || !this.#countsNothing(block, index)) continue;
      const cluster = block.offset / clusterSize;
      if (this.blockOffset(Math.floor(cluster / refcountBlockEntries)) === 0) {
        await this.#host.corrupt(
          `Refblock at ${hex(block.offset)} is not covered by the refcount ` +
            "structures",
        );
      }
      dropped.push([index, cluster]);
      table.fill(0, index * ENTRY_SIZE, (index + 1) * ENTRY_SIZE);
    }
    if (dropped.length === 0) return false;
    await file.writev!(header.refcountTableOffset, [table]);
    await file.flush?.();
    this.#table = viewOf(table);
    for (const [index, cluster] of dropped) {
      this.#blocks?.delete(cluster);
      refcountCache.forget(cluster * clusterSize, clusterSize);
      // The count of one that counted itself is gone with it.
      const countedBy = Math.floor(cluster / refcountBlockEntries);
      const isCounted = countedBy !== index && await this.get(cluster) > 0;
      if (isCounted) await this.#add(cluster, 1, -1);
      else this.#noteFree(cluster);
    }
    return true;
  }

  /** Whether all refcounts in a block are zero, but for that of itself. */
  #countsNothing({ offset, view, bytes }: CachedTable, index: number): boolean {
    const { refcountOrder, refcountBlockEntries, clusterSize } =
      this.#host.geometry;
    const own = offset / clusterSize - index * refcountBlockEntries;
    if (own < 0 || own >= refcountBlockEntries) return isZero(bytes);
    const count = readRefcount(view, refcountOrder, own);
    writeRefcount(view, refcountOrder, own, 0);
    const isEmpty = isZero(bytes);
    writeRefcount(view, refcountOrder, own, count);
    return isEmpty;
  }

  /** The end of the last cluster that is in use, in bytes. */
  async endOfUse(): Promise<number> {
    const { geometry, file } = this.#host;
    const { clusterSize, refcountOrder, refcountBlockEntries } = geometry;
    let end = Math.min(
      geometry.clustersFor(file.size),
      this.tableSize * refcountBlockEntries,
    );
    while (end > 0) {
      // What no block counts is passed over at once: a damaged offset may have
      // made the file large beyond measure.
      const tableIndex = Math.floor((end - 1) / refcountBlockEntries);
      const start = tableIndex * refcountBlockEntries;
      const block = await this.#loadBlock(tableIndex);
      for (; block && end > start; end--) {
        const entry = end - 1 - start;
        if (readRefcount(block.view, refcountOrder, entry) !== 0) {
          return end * clusterSize;
        }
      }
      end = start;
    }
    return await this.#host.corrupt(
      "There are no references in the refcount table.",
    );
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
    const { geometry, refcountCache, file } = this.#host;
    const { refcountOrder: order, refcountBlockEntries, clusterSize } =
      geometry;
    // A debugger below may have to wait at each step.
    if (file.debugEvent) return undefined;
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
      this.#host.event(step);
    }
    addToRefcounts(view, order, from, to, 1, geometry.refcountMax);
    refcountCache.markDirty(block);
    this.#firstFree = start + count;
    return start * clusterSize;
  }

  async #allocateLater(count: number): Promise<number> {
    const { clusterSize } = this.#host.geometry;
    await this.#host.event("cluster_alloc");
    const start = await this.#reserve(count);
    await this.#add(start, count, 1);
    this.#firstFree = Math.max(this.#firstFree, start + count);
    return start * clusterSize;
  }

  /**
   * Find room for `length` bytes of a compressed cluster, in the rest of the
   * host cluster that holds the last one if they fit there.
   *
   * @returns the offset of the first byte.
   */
  async allocateBytes(length: number): Promise<number> {
    const { geometry } = this.#host;
    const { clusterSize } = geometry;
    await this.#host.event("cluster_alloc_bytes");
    let offset = this.#freeByte;
    if (offset > 0) {
      const index = Math.floor(offset / clusterSize);
      if (await this.get(index) >= geometry.refcountMax) offset = 0;
    }
    const room = offset > 0 ? clusterSize - offset % clusterSize : 0;
    if (room < length) {
      const fresh = await this.allocate(1);
      // Bytes may run on from the last cluster into the new one.
      if (offset > 0 && room > 0 && offset + room === fresh) {
        await this.#add(Math.floor(offset / clusterSize), 1, 1);
      } else {
        offset = fresh;
      }
    } else {
      await this.#add(Math.floor(offset / clusterSize), 1, 1);
    }
    const end = offset + length;
    this.#freeByte = geometry.offsetInCluster(end) === 0 ? 0 : end;
    return offset;
  }

  /**
   * Give up one reference to each cluster that the bytes touch. What referred
   * to them must have been changed in the L2 cache or the file before.
   */
  async free(
    offset: number,
    length: number,
    reason: FreeReason = "other",
  ): Promise<void> {
    if (length === 0) return;
    const { clusterSize } = this.#host.geometry;
    await this.#host.event("cluster_free");
    if (offset === 0) {
      await this.#host.corrupt(`Cannot free unaligned cluster ${hex(offset)}`);
    }
    const start = Math.floor(offset / clusterSize);
    const end = divideUp(offset + length, clusterSize);
    if (this.#host.accurateRefcounts) {
      await this.#host.refcountCache.dependOn(this.#host.l2Cache);
    }
    await this.#add(start, end - start, -1);
    if (this.#host.behaviour.passDiscard[reason]) {
      await this.#passDiscard(start, end);
    }
  }

  /** Give the space of free clusters back to the file, if it can take it. */
  async #passDiscard(start: number, end: number): Promise<void> {
    const { file, geometry } = this.#host;
    if (!file.discard) return;
    const { clusterSize } = geometry;
    let first = start;
    for (let at = start; at <= end; at++) {
      if (at < end && (this.peek(at) ?? await this.get(at)) === 0) continue;
      const offset = first * clusterSize;
      const length = Math.min(at * clusterSize, file.size) - offset;
      // Only a wish: that it fails does no harm.
      if (length > 0) await file.discard(offset, length).catch(() => {});
      first = at + 1;
    }
  }

  /** Add `delta` (1 or -1) to the refcount of each cluster of a range. */
  async add(offset: number, length: number, delta: 1 | -1): Promise<void> {
    const { clusterSize } = this.#host.geometry;
    const start = Math.floor(offset / clusterSize);
    const end = divideUp(offset + length, clusterSize);
    await this.#add(start, end - start, delta);
  }

  /** The L2 tables are durable: freed clusters may be used again at once. */
  settled(): void {
    this.#recentlyFreed = { start: Infinity, end: 0 };
  }

  /** The index of the first of `count` free clusters in a row, made ready. */
  async #reserve(count: number): Promise<number> {
    for (;;) {
      const start = await this.#findFree(count);
      const { clusterSize } = this.#host.geometry;
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
      await this.#host.l2Cache.flush();
      this.settled();
    }
    return true;
  }

  /** The index of the first of `count` free clusters in a row from there on. */
  async #findFree(count: number, from = 0): Promise<number> {
    const { geometry } = this.#host;
    const { refcountOrder, refcountBlockEntries } = geometry;
    let found = 0;
    let at = Math.max(from, this.#firstFree);
    while (found < count) {
      const tableIndex = Math.floor(at / refcountBlockEntries);
      const blockEnd = (tableIndex + 1) * refcountBlockEntries;
      const block = await this.#loadBlock(tableIndex);
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

  /** The refcount block of an entry of the table, if there is one. */
  async #loadBlock(tableIndex: number): Promise<CachedTable | undefined> {
    const offset = this.blockOffset(tableIndex);
    if (offset === 0) return undefined;
    const known = this.#host.refcountCache.peek(offset);
    if (known) return known;
    if (!this.#host.geometry.isAligned(offset)) {
      await this.#host.corrupt(
        `Refblock offset ${hex(offset)} unaligned (reftable index: ${
          hex(tableIndex)
        })`,
      );
    }
    return await this.#host.refcountCache.load(offset);
  }

  async #add(start: number, count: number, delta: number): Promise<void> {
    let done = 0;
    try {
      while (done < count) {
        done += await this.#addInBlock(start + done, count - done, delta);
      }
    } catch (error) {
      // All or nothing: give back what was done.
      if (done > 0) await this.#add(start, done, -delta);
      throw error;
    }
  }

  /** Change the refcounts that lie in the block of the first. */
  async #addInBlock(
    start: number,
    count: number,
    delta: number,
  ): Promise<number> {
    const { geometry, refcountCache } = this.#host;
    const { refcountOrder, refcountBlockEntries, refcountMax } = geometry;
    const tableIndex = Math.floor(start / refcountBlockEntries);
    // QEMU tells of both also where the block is in memory already.
    await this.#host.event("refblock_alloc");
    if (this.blockOffset(tableIndex) !== 0) {
      await this.#host.event("refblock_load");
    }
    const block = await this.#loadBlock(tableIndex);
    if (!block) {
      if (delta < 0) return await this.#refuse(start);
      // Only damage refers to a cluster that nothing counts: whoever takes one
      // makes its block first.
      const isTooFar = tableIndex >= MAX_REFCOUNT_TABLE_BYTES / ENTRY_SIZE;
      throw new BlockError(isTooFar ? "EFBIG" : "EAGAIN");
    }
    const { view } = block;
    const first = start % refcountBlockEntries;
    const end = Math.min(first + count, refcountBlockEntries);
    const stop = addToRefcounts(
      view,
      refcountOrder,
      first,
      end,
      delta,
      refcountMax,
    );
    if (stop < end) {
      // Undo this block's part; the caller undoes the others.
      addToRefcounts(view, refcountOrder, first, stop, -delta, refcountMax);
      return await this.#refuse(start + stop - first, delta > 0);
    }
    refcountCache.markDirty(block);
    if (delta < 0) this.#noteFreed(view, start, first, end);
    return end - first;
  }

  /** Some refcounts of a block are less by one; `start` is the first's cluster. */
  #noteFreed(view: DataView, start: number, first: number, end: number): void {
    const { refcountOrder: order } = this.#host.geometry;
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
    const { clusterSize } = this.#host.geometry;
    if (Math.floor(this.#freeByte / clusterSize) === clusterIndex) {
      this.#freeByte = 0;
    }
  }

  /** Freed clusters may have been tables: what the caches hold is void. */
  #forgetTables(start: number, count: number): void {
    const { geometry, l2Cache, refcountCache } = this.#host;
    const { clusterSize } = geometry;
    for (const cache of [l2Cache, refcountCache]) {
      cache.forget(start * clusterSize, count * clusterSize);
    }
  }

  async #refuse(clusterIndex: number, overflow = false): Promise<never> {
    if (overflow) {
      throw new BlockError(
        "EINVAL",
        `The refcount of the cluster at ${
          hex(clusterIndex * this.#host.geometry.clusterSize)
        } cannot grow: ${this.#host.geometry.refcountBits} bits hold no more`,
      );
    }
    return await this.#host.corrupt(
      `Cannot free cluster ${clusterIndex}: its refcount is zero`,
    );
  }

  /**
   * Make the refcount blocks of a range of clusters.
   *
   * @returns whether any was missing.
   */
  async #makeBlocks(start: number, count: number): Promise<boolean> {
    const { refcountBlockEntries } = this.#host.geometry;
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
    const { geometry, refcountCache, file } = this.#host;
    const { clusterSize, refcountBlockEntries, refcountOrder } = geometry;
    await this.#host.event("refblock_alloc");
    const cluster = await this.#findFree(1, from);
    const countedBy = Math.floor(cluster / refcountBlockEntries);
    if (countedBy !== tableIndex) {
      if (this.blockOffset(countedBy) === 0) {
        return countedBy >= this.tableSize
          ? await this.#growTable(cluster + 1)
          : await this.#makeBlock(countedBy, from);
      }
      await this.#prepare(cluster, 1);
      await this.#add(cluster, 1, 1);
    }
    const offset = cluster * clusterSize;
    const block = await refcountCache.loadEmpty(offset);
    if (countedBy === tableIndex) {
      const index = cluster % refcountBlockEntries;
      writeRefcount(block.view, refcountOrder, index, 1);
    }
    // The block, and the count of its cluster, before what refers to it.
    await this.#host.event("refblock_alloc_write");
    await refcountCache.flush();
    await this.#host.event("refblock_alloc_hookup");
    const at = tableIndex * ENTRY_SIZE;
    const entry = allocate(ENTRY_SIZE);
    writeUint64(viewOf(entry), 0, offset);
    await file.writev!(this.#host.header.refcountTableOffset + at, [entry]);
    await file.flush?.();
    writeUint64(this.#table, at, offset);
    this.#blocks?.add(cluster);
  }

  /**
   * Replace the table by a larger one, for clusters up to `end`.
   * The new table, and the blocks that count its clusters and their own, lie
   * past all that the old table can count; a new header makes them valid in
   * one step.
   */
  async #growTable(end: number): Promise<void> {
    const { geometry, file, header, refcountCache } = this.#host;
    const { clusterSize, refcountBlockEntries, refcountOrder } = geometry;
    const old = {
      offset: header.refcountTableOffset,
      clusters: header.refcountTableClusters,
      entries: this.tableSize,
    };
    await this.#host.event("reftable_grow");
    const layout = growthLayout(geometry, old.entries, end);
    const { start, blocks, tableClusters } = layout;
    const tableBytes = tableClusters * clusterSize;
    if (tableBytes > MAX_REFCOUNT_TABLE_BYTES) throw new BlockError("EFBIG");
    const table = allocate(tableBytes);
    table.set(bytesOf(this.#table));
    const taken = blocks + tableClusters;
    await this.#host.overlap.check(start * clusterSize, taken * clusterSize);
    await this.#host.event("refblock_alloc_write_blocks");
    for (let block = 0; block < blocks; block++) {
      const bytes = allocate(clusterSize);
      const first = (old.entries + block) * refcountBlockEntries;
      const from = Math.max(0, start - first);
      const to = Math.min(start + taken - first, refcountBlockEntries);
      for (let index = from; index < to; index++) {
        writeRefcount(viewOf(bytes), refcountOrder, index, 1);
      }
      const offset = (start + block) * clusterSize;
      await file.writev!(offset, [bytes]);
      writeUint64(viewOf(table), (old.entries + block) * ENTRY_SIZE, offset);
    }
    const tableOffset = (start + blocks) * clusterSize;
    await this.#host.event("refblock_alloc_write_table");
    await file.writev!(tableOffset, [table]);
    await refcountCache.flush();
    await this.#host.event("refblock_alloc_switch_table");
    await this.#host.changeHeader({
      refcountTableOffset: tableOffset,
      refcountTableClusters: tableClusters,
    });
    this.#table = viewOf(table);
    this.#blocks = undefined;
    await this.#add(old.offset / clusterSize, old.clusters, -1);
  }
}
