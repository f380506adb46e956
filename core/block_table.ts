/**
 * The map of a format with one table that maps the disk in blocks. New blocks
 * go to the end of the file.
 *
 * Changes stay in memory until a flush, which makes them durable.
 *
 * @module
 */
import type { Allocation, BlockMap, Place, Run } from "./block_map.ts";
import { placeOfData, roomInPlace } from "./access.ts";
import { divideUp } from "./bytes.ts";
import { BlockError } from "./errors.ts";
import { FileEnd } from "./file_end.ts";
import { Mutex } from "./lock.ts";
import type { BlockNode } from "./node.ts";
import {
  type ChangedUnit,
  PagedTable,
  type TableLayout,
} from "./paged_table.ts";

/**
 * Instead of an offset: a block is read from the backing file, zero, mapped
 * only in part, or damaged.
 */
export const BLOCK = {
  UNALLOCATED: 0,
  ZERO: -1,
  PARTIAL: -2,
  DAMAGED: -3,
} as const;

/** The table of an image. */
export abstract class BlockTable implements BlockMap {
  /** Bytes of a block. */
  readonly unit: number;
  /** The file that holds the image. */
  protected file: BlockNode;
  /** The entries. */
  protected readonly table: PagedTable;
  /** Where new blocks are allocated. */
  protected readonly space: FileEnd;
  readonly #flushing = new Mutex();

  /**
   * @param next Where the first new block goes.
   * @param limit End of the range that the format can address.
   */
  constructor(
    file: BlockNode,
    { unit, layout, next = 0, limit }: {
      unit: number;
      layout: TableLayout;
      next?: number;
      limit?: number;
    },
  ) {
    this.unit = unit;
    this.file = file;
    this.table = new PagedTable(file, layout);
    this.space = new FileEnd(file, next, limit);
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.file = file;
    this.table.useFile(file);
    this.space.useFile(file);
  }

  /**
   * Offset of a block, or one of `BLOCK`; `undefined` if its entry must be
   * loaded first.
   */
  protected abstract placeOf(block: number): number | undefined;

  /** Change the entry of a block, whose page is in memory. */
  protected abstract setPlace(block: number, place: number): void;

  /** Write changes, after the data they refer to. */
  protected abstract write(changes: readonly ChangedUnit[]): Promise<void>;

  /** The entry of a block. */
  protected entryOf(block: number): number {
    return block;
  }

  /** The error for a damaged block. */
  protected damaged(_block: number): BlockError {
    return new BlockError("EIO");
  }

  /** As {@linkcode lookup}, in a block that is mapped only in part. */
  protected lookupPartial?(
    block: number,
    offset: number,
    length: number,
  ): Run | undefined;

  /** Load what {@linkcode lookupPartial} needs for such a block. */
  protected loadPartial?(block: number): Promise<void>;

  /** Whether there are changes to be written. */
  protected get isDirty(): boolean {
    return this.table.isDirty;
  }

  /** The first run at an offset, if its entries are in memory. */
  lookup(offset: number, length: number): Run | undefined {
    const { unit } = this;
    const first = Math.floor(offset / unit);
    const place = this.placeOf(first);
    if (place === undefined || place === BLOCK.DAMAGED) return undefined;
    if (place === BLOCK.PARTIAL) {
      return this.lookupPartial!(first, offset, length);
    }
    const end = divideUp(offset + length, unit);
    let next = first + 1;
    for (; next < end; next++) {
      const expected = place > 0 ? place + (next - first) * unit : place;
      if (this.placeOf(next) !== expected) break;
    }
    const run = Math.min(length, next * unit - offset);
    if (place === BLOCK.ZERO) return { length: run, kind: "zero" };
    if (place === BLOCK.UNALLOCATED) {
      return { length: run, kind: "unallocated" };
    }
    return {
      length: run,
      kind: "data",
      child: this.file,
      childOffset: place + offset % unit,
    };
  }

  /** As {@linkcode lookup}, loading entries as needed. */
  async find(offset: number, length: number): Promise<Run> {
    let run: Run | undefined;
    while (!(run = this.lookup(offset, length))) {
      const block = Math.floor(offset / this.unit);
      const place = this.placeOf(block);
      if (place === BLOCK.DAMAGED) throw this.damaged(block);
      if (place === BLOCK.PARTIAL) await this.loadPartial!(block);
      else await this.table.load(this.entryOf(block));
    }
    return run;
  }

  /** Where the first part of a write can go without an allocation. */
  inPlace(offset: number, length: number): Place | undefined {
    return placeOfData(this.lookup(offset, length));
  }

  /** Allocate space for the first part of a write. */
  async allocate(offset: number, length: number): Promise<Allocation> {
    const run = await this.find(offset, length);
    const place = placeOfData(run);
    if (place) return roomInPlace(offset, place);
    return await this.makeRoom(offset, run.length);
  }

  /** Allocate space for a uniform range that is not mapped to data. */
  protected makeRoom(
    offset: number,
    length: number,
  ): Allocation | Promise<Allocation> {
    const first = Math.floor(offset / this.unit);
    return this.newBlocks(first, divideUp(offset + length, this.unit) - first);
  }

  /** Allocate whole blocks at the end of the file. */
  protected async newBlocks(first: number, count: number): Promise<Allocation> {
    const place = await this.space.take(count * this.unit);
    return this.roomAt(first, count, place);
  }

  /** Use space of the file that already belongs to whole blocks. */
  protected roomAt(first: number, count: number, place: number): Allocation {
    const { unit } = this;
    return {
      start: first * unit,
      length: count * unit,
      child: this.file,
      childOffset: place,
      isZero: this.space.isZeroFrom(place),
      replaces: false,
      commit: async () => {
        for (let i = 0; i < count; i++) {
          await this.map(first + i, place + i * unit);
        }
      },
      // It may hold data now, where others expect zeroes.
      abort: () => Promise.resolve(),
    };
  }

  /** Map a block to an offset. */
  async map(block: number, place: number): Promise<void> {
    const entry = this.entryOf(block);
    while (!this.table.page(entry)) await this.table.load(entry);
    this.setPlace(block, place);
    this.table.changed(entry);
  }

  /** Make all written data durable. */
  async flush(): Promise<void> {
    using _ = await this.#flushing.lock();
    await this.endFile();
    if (!this.isDirty) return await this.file.flush?.();
    await this.table.writeChanges((changes) => this.write(changes));
  }

  /** Pad the file as its format requires. */
  protected endFile(): Promise<void> {
    return this.space.trim();
  }
}
