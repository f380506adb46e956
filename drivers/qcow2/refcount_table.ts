/**
 * Reading and changing refcounts: the refcount table and its blocks.
 * (Specification: "Host cluster management".)
 *
 * All methods but the constructor require the image's metadata lock.
 *
 * @module
 */
import { divideUp, viewOf } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import type { Behaviour } from "./behaviour.ts";
import {
  bytesOf,
  ENTRY_SIZE,
  entryToHex,
  hex,
  MAX_REFCOUNT_TABLE_BYTES,
  visitOffsets,
  writeUint64,
} from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { Header } from "./header.ts";
import type { OverlapGuard } from "./overlap.ts";
import { addToRefcounts, readRefcount } from "./refcount_layout.ts";
import type { CachedTable, TableCache } from "./table_cache.ts";

/** What the refcounts need of their image. */
export interface RefcountHost {
  readonly file: BlockNode;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly refcountCache: TableCache;
  readonly l2Cache: TableCache;
  readonly overlap: OverlapGuard;
  readonly behaviour: Behaviour;
  /** Whether refcounts on the disk must never be too low. */
  readonly accurateRefcounts: boolean;
  /** Announce a step that is about to be done. */
  event(name: string): Promise<void> | void;
  /** Change the header in memory and durably in the file, or not at all. */
  changeHeader(changes: Partial<Header>): Promise<void>;
  /** Report damage; always rejects. */
  corrupt(message: string, fatal?: boolean): Promise<never>;
}

/** The refcount table, and through the cache its blocks. */
export abstract class RefcountTable {
  protected readonly host: RefcountHost;
  /** The table as it is in the file. */
  #table: DataView = viewOf(new Uint8Array());
  /** Indices of clusters that are refcount blocks; determined on first use. */
  #blocks?: Set<number>;

  constructor(host: RefcountHost) {
    this.host = host;
  }

  /** Switch to another refcount table, which the file holds already. */
  replaceTable(bytes: Uint8Array): void {
    this.#blocks = undefined;
    this.#table = viewOf(bytes);
  }

  /** The bytes of the table, as in the file. */
  protected get tableBytes(): Uint8Array {
    return bytesOf(this.#table);
  }

  /** An entry of the table in the file has changed: 0, or a block's offset. */
  protected setBlockOffset(tableIndex: number, offset: number): void {
    const { clusterSize } = this.host.geometry;
    const old = this.blockOffset(tableIndex);
    if (old !== 0) this.#blocks?.delete(old / clusterSize);
    if (offset !== 0) this.#blocks?.add(offset / clusterSize);
    writeUint64(this.#table, tableIndex * ENTRY_SIZE, offset);
  }

  /** Entries that the refcount table has room for. */
  get tableSize(): number {
    return this.#table.byteLength / ENTRY_SIZE;
  }

  /** Whether the cluster with that index is a refcount block. */
  isBlock(clusterIndex: number): boolean {
    return (this.#blocks ??= this.#findBlocks()).has(clusterIndex);
  }

  #findBlocks(): Set<number> {
    const blocks = new Set<number>();
    const { clusterSize } = this.host.geometry;
    visitOffsets(
      this.tableBytes,
      (offset) => blocks.add(Math.floor(offset / clusterSize)),
    );
    return blocks;
  }

  /**
   * The block of a table entry, valid until the next `await`; `undefined` if
   * there is none.
   */
  async block(tableIndex: number): Promise<DataView | undefined> {
    return (await this.loadBlock(tableIndex))?.view;
  }

  /** Offset of the block of a table entry; 0 if there is none. */
  blockOffset(tableIndex: number): number {
    if (tableIndex >= this.tableSize) return 0;
    const at = tableIndex * ENTRY_SIZE;
    const low = this.#table.getUint32(at + 4);
    return this.#table.getUint32(at) * 2 ** 32 + (low - low % 512);
  }

  /** An entry of the table with its reserved bits, for messages. */
  protected entryText(tableIndex: number): string {
    const at = tableIndex * ENTRY_SIZE;
    const low = (this.#table.getUint32(at + 4) & ~0x1ff) >>> 0;
    return `0x${entryToHex(this.#table.getUint32(at), low)}`;
  }

  /** The refcount of a cluster if it is cached. */
  peek(clusterIndex: number): number | undefined {
    const { geometry, refcountCache } = this.host;
    const { refcountOrder, refcountBlockEntries: entries } = geometry;
    const offset = this.blockOffset(Math.floor(clusterIndex / entries));
    const block = offset === 0 ? undefined : refcountCache.peek(offset);
    return block &&
      readRefcount(block.view, refcountOrder, clusterIndex % entries);
  }

  /**
   * The refcount of a cluster, by its index. If damage is not `fatal` to the
   * caller, it is only reported.
   */
  async get(clusterIndex: number, fatal = true): Promise<number> {
    const { geometry } = this.host;
    const entries = geometry.refcountBlockEntries;
    const tableIndex = Math.floor(clusterIndex / entries);
    const block = await this.loadBlock(tableIndex, fatal);
    if (!block) return 0;
    const { refcountOrder } = geometry;
    return readRefcount(block.view, refcountOrder, clusterIndex % entries);
  }

  /** The refcount block of a table entry, if there is one. */
  protected async loadBlock(
    tableIndex: number,
    fatal = true,
  ): Promise<CachedTable | undefined> {
    const offset = this.blockOffset(tableIndex);
    if (offset === 0) return undefined;
    const known = this.host.refcountCache.peek(offset);
    if (known) return known;
    if (!this.host.geometry.isAligned(offset)) {
      await this.host.corrupt(
        `Refblock offset ${this.entryText(tableIndex)} unaligned ` +
          `(reftable index: ${hex(tableIndex)})`,
        fatal,
      );
    }
    if (offset >= 2 ** 53) throw new BlockError("EIO");
    return await this.host.refcountCache.load(offset);
  }

  /** The end of the last cluster that is in use, in bytes. */
  async endOfUse(): Promise<number> {
    const { geometry, file } = this.host;
    const { clusterSize, refcountOrder, refcountBlockEntries } = geometry;
    let end = Math.min(
      geometry.clustersFor(file.size),
      this.tableSize * refcountBlockEntries,
    );
    while (end > 0) {
      // Clusters without a block are skipped at once: a damaged offset may have
      // made the file enormous.
      const tableIndex = Math.floor((end - 1) / refcountBlockEntries);
      const start = tableIndex * refcountBlockEntries;
      const block = await this.loadBlock(tableIndex);
      for (; block && end > start; end--) {
        const entry = end - 1 - start;
        if (readRefcount(block.view, refcountOrder, entry) !== 0) {
          return end * clusterSize;
        }
      }
      end = start;
    }
    return await this.host.corrupt(
      "There are no references in the refcount table.",
    );
  }

  /** Add `delta` (1 or -1) to the refcount of each cluster of a range. */
  async add(offset: number, length: number, delta: 1 | -1): Promise<void> {
    const { clusterSize } = this.host.geometry;
    const start = Math.floor(offset / clusterSize);
    const end = divideUp(offset + length, clusterSize);
    await this.addClusters(start, end - start, delta);
  }

  protected async addClusters(
    start: number,
    count: number,
    delta: number,
  ): Promise<void> {
    let done = 0;
    try {
      while (done < count) {
        done += await this.#addInBlock(start + done, count - done, delta);
      }
    } catch (error) {
      // All or nothing: undo what was done.
      if (done > 0) await this.addClusters(start, done, -delta);
      throw error;
    }
  }

  /** Change the refcounts that are in the same block as the first. */
  async #addInBlock(
    start: number,
    count: number,
    delta: number,
  ): Promise<number> {
    const { geometry, refcountCache } = this.host;
    const { refcountOrder, refcountBlockEntries, refcountMax } = geometry;
    const tableIndex = Math.floor(start / refcountBlockEntries);
    // QEMU announces both steps even if the block is cached.
    await this.host.event("refblock_alloc");
    if (this.blockOffset(tableIndex) !== 0) {
      await this.host.event("refblock_load");
    }
    const block = await this.loadBlock(tableIndex);
    if (!block) {
      // Only damage refers to a cluster without a block: allocating one makes
      // its block first.
      const isTooFar = tableIndex >= MAX_REFCOUNT_TABLE_BYTES / ENTRY_SIZE;
      throw new BlockError(isTooFar ? "EFBIG" : "EAGAIN");
    }
    const { view } = block;
    // Even if nothing changes: writing it may show that it is no block at all.
    refcountCache.markDirty(block);
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
      throw this.#outOfRange(start + stop - first, delta);
    }
    if (delta < 0) this.noteDecrease(view, start, first, end);
    return end - first;
  }

  /**
   * Refcounts `first` to `end` of a block were decreased; the first is that of
   * cluster `start`.
   */
  protected abstract noteDecrease(
    view: DataView,
    start: number,
    first: number,
    end: number,
  ): void;

  #outOfRange(clusterIndex: number, delta: number): BlockError {
    if (delta < 0) return new BlockError("EINVAL");
    const { clusterSize, refcountBits } = this.host.geometry;
    return new BlockError(
      "EINVAL",
      `The refcount of the cluster at ${hex(clusterIndex * clusterSize)} ` +
        `cannot grow: ${refcountBits} bits hold no more`,
    );
  }
}
