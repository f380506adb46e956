/**
 * Refcounts as stored in the file, for check and repair: the tables may be
 * damaged, so nothing is refused here; what cannot be read is reported as such.
 * (Specification: "Host cluster management".)
 *
 * @module
 */
import { allocate, viewOf } from "../../core/bytes.ts";
import { ENTRY_SIZE, entryToHex, readUint64 } from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { Header } from "./header.ts";
import { readRefcount } from "./refcount_layout.ts";

/** Most bytes of refcount blocks kept in memory. */
const CACHE_BYTES = 32 * 1024 * 1024;

/** A refcount as text, exact at any width. */
export function refcountText(
  block: DataView,
  order: number,
  index: number,
): string {
  const wide = order === 6;
  const value = wide
    ? block.getBigUint64(index * 8)
    : readRefcount(block, order, index);
  return value.toString();
}

/** What the stored refcounts need of their check. */
export interface StoredRefcountsHost {
  readonly header: Header;
  readonly geometry: Geometry;
  /** Fill `target` from the file; zeroes past its end. */
  read(offset: number, target: Uint8Array): Promise<void>;
  /** Write a refcount block, unless other metadata lies there. */
  write(
    offset: number,
    bytes: Uint8Array,
    kind: "refcount block",
  ): Promise<void>;
  /** Report damage; the driver must not write any more. */
  signalCorruption(message: string): Promise<void>;
}

/** The refcount table and its blocks. */
export class StoredRefcounts {
  readonly #run: StoredRefcountsHost;
  #table: DataView = viewOf(new Uint8Array());
  readonly #blocks = new Map<number, DataView | null>();
  readonly #dirty = new Set<number>();
  /** A buffer for a block that is not kept. */
  #readThrough?: Uint8Array;
  /** Stands for every block that does not exist. */
  readonly #zeroes: DataView;
  readonly #maxBlocks: number;

  constructor(run: StoredRefcountsHost) {
    this.#run = run;
    const { clusterSize } = run.geometry;
    this.#zeroes = viewOf(allocate(clusterSize));
    this.#maxBlocks = Math.max(4, CACHE_BYTES / clusterSize);
  }

  /**
   * Read the refcount table that the header refers to; nothing may be dirty.
   */
  async load(): Promise<void> {
    const { header, geometry } = this.#run;
    this.#blocks.clear();
    const length = header.refcountTableClusters * geometry.clusterSize;
    const table = allocate(length);
    await this.#run.read(header.refcountTableOffset, table);
    this.#table = viewOf(table);
  }

  /** Entries of the refcount table. */
  get tableSize(): number {
    return this.#table.byteLength / ENTRY_SIZE;
  }

  /** An entry of the table, as halves. */
  entry(index: number): { high: number; low: number } {
    const at = index * ENTRY_SIZE;
    return {
      high: this.#table.getUint32(at),
      low: this.#table.getUint32(at + 4),
    };
  }

  /** Offset of the block of an entry; 0 if there is none. */
  blockOffset(index: number): number {
    if (index >= this.tableSize) return 0;
    const offset = readUint64(this.#table, index * ENTRY_SIZE);
    return offset - offset % 512;
  }

  /** Whether the block of an entry is at the start of a cluster. */
  isAligned(index: number): boolean {
    // The lower half suffices: a damaged offset may be too large for a number.
    const { low } = this.entry(index);
    return this.#run.geometry.isAligned(low - low % 512);
  }

  /**
   * The block of an entry: null if it cannot be read, `undefined` if it must be
   * loaded first.
   */
  peek(index: number): DataView | null | undefined {
    if (this.blockOffset(index) === 0) return this.#zeroes;
    return this.#blocks.get(index);
  }

  /** Whether an entry has no block. */
  isAbsent(index: number): boolean {
    return this.blockOffset(index) === 0;
  }

  /**
   * As {@linkcode block}, but valid only until the next call: for walks through
   * all blocks, which need not all be kept.
   */
  async blockOnce(index: number): Promise<DataView | null> {
    const known = this.peek(index);
    if (known !== undefined) return known;
    this.#readThrough ??= allocate(this.#run.geometry.clusterSize);
    return await this.#read(index, this.#readThrough);
  }

  /** The block of an entry, or null if it cannot be read. */
  async block(index: number): Promise<DataView | null> {
    const known = this.peek(index);
    if (known !== undefined) return known;
    const { clusterSize } = this.#run.geometry;
    const block = await this.#read(index, allocate(clusterSize));
    for (const oldest of this.#blocks.keys()) {
      if (this.#blocks.size < this.#maxBlocks) break;
      if (this.#dirty.has(oldest)) await this.#write(oldest);
      this.#blocks.delete(oldest);
    }
    this.#blocks.set(index, block);
    return block;
  }

  async #read(index: number, block: Uint8Array): Promise<DataView | null> {
    const offset = this.blockOffset(index);
    if (!this.isAligned(index)) {
      const { high, low } = this.entry(index);
      const text = `0x${entryToHex(high, (low & ~0x1ff) >>> 0)}`;
      const at = index === 0 ? "0" : `0x${index.toString(16)}`;
      await this.#run.signalCorruption(
        `Refblock offset ${text} unaligned (reftable index: ${at})`,
      );
      return null;
    }
    try {
      await this.#run.read(offset, block);
      return viewOf(block);
    } catch {
      return null;
    }
  }

  /** A block was changed; it is written eventually. */
  markDirty(index: number): void {
    this.#dirty.add(index);
  }

  /** Write all blocks that were changed. */
  async flush(): Promise<void> {
    for (const index of this.#dirty) await this.#write(index);
  }

  async #write(index: number): Promise<void> {
    this.#dirty.delete(index);
    const view = this.#blocks.get(index);
    if (!view) return;
    const bytes = new Uint8Array(
      view.buffer,
      view.byteOffset,
      view.byteLength,
    );
    await this.#run.write(this.blockOffset(index), bytes, "refcount block");
  }

  /**
   * The refcount of a cluster, also as text; `undefined` if it cannot be read.
   */
  async get(
    cluster: number,
  ): Promise<{ value: number; text: string } | undefined> {
    const { refcountBlockEntries, refcountOrder } = this.#run.geometry;
    const view = await this.block(Math.floor(cluster / refcountBlockEntries));
    if (view === null) return undefined;
    const index = cluster % refcountBlockEntries;
    return {
      value: readRefcount(view, refcountOrder, index),
      text: refcountText(view, refcountOrder, index),
    };
  }
}
