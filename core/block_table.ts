/**
 * The map of a format with one table, whose entries say where the blocks of the
 * disk lie. New blocks go to the end of the file.
 *
 * Changes of the table stay in memory until a flush, since nothing is promised to
 * be durable before one.
 *
 * @module
 */
import {
  type Allocation,
  type BlockMap,
  type Place,
  placeOfData,
  roomInPlace,
  type Run,
} from "./block_map.ts";
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
 * What a block is that does not simply lie at some place of the file: read from
 * the backing file, zero, only partly present, or where no block can be.
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
  /** Where the image lies. */
  protected file: BlockNode;
  /** The entries. */
  protected readonly table: PagedTable;
  /** Where new blocks go. */
  protected readonly space: FileEnd;
  readonly #flushing = new Mutex();

  /**
   * @param next Where the first new block goes.
   * @param limit The end of what the format can address. Default: none.
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
   * Where a block lies, or what of `BLOCK` it is; `undefined` if its entry must
   * be loaded first.
   */
  protected abstract placeOf(block: number): number | undefined;

  /** Change the entry of a block, which is in memory. */
  protected abstract setPlace(block: number, place: number): void;

  /** Write what has changed, after the data it leads to. */
  protected abstract write(changes: readonly ChangedUnit[]): Promise<void>;

  /** The entry of a block. */
  protected entryOf(block: number): number {
    return block;
  }

  /** The error for a damaged block. */
  protected damaged(_block: number): BlockError {
    return new BlockError("EIO");
  }

  /** As {@linkcode lookup}, in a block that is only partly present. */
  protected lookupPartial?(
    block: number,
    offset: number,
    length: number,
  ): Run | undefined;

  /** Load what `lookupPartial` needs to know of a block. */
  protected loadPartial?(block: number): Promise<void>;

  /** Whether changes wait to be written. */
  protected get isDirty(): boolean {
    return this.table.isDirty;
  }

  /** The first run at an offset, if its entry is in memory and sound. */
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

  /** As {@linkcode lookup}, loading what is missing. */
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

  /** Where the first part of a write can go at once. */
  inPlace(offset: number, length: number): Place | undefined {
    return placeOfData(this.lookup(offset, length));
  }

  /** Space for the first part of a write. */
  async allocate(offset: number, length: number): Promise<Allocation> {
    const run = await this.find(offset, length);
    const place = placeOfData(run);
    if (place) return roomInPlace(offset, place);
    return await this.makeRoom(offset, run.length);
  }

  /** Space for a range that is mapped in one way, though not to data. */
  protected makeRoom(
    offset: number,
    length: number,
  ): Allocation | Promise<Allocation> {
    const first = Math.floor(offset / this.unit);
    return this.newBlocks(first, divideUp(offset + length, this.unit) - first);
  }

  /** Space for whole blocks, at the end of the file. */
  protected async newBlocks(first: number, count: number): Promise<Allocation> {
    const place = await this.space.take(count * this.unit);
    return this.roomAt(first, count, place);
  }

  /** Space for whole blocks, at a place that has been taken for them. */
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
      // The space is lost: it may hold data by now, and must not be taken
      // again for space that reads as zeroes.
      abort: () => Promise.resolve(),
    };
  }

  /** Map a block to a place. */
  async map(block: number, place: number): Promise<void> {
    const entry = this.entryOf(block);
    while (!this.table.page(entry)) await this.table.load(entry);
    this.setPlace(block, place);
    this.table.changed(entry);
  }

  /** Make all that was written durable. */
  async flush(): Promise<void> {
    using _ = await this.#flushing.lock();
    await this.endFile();
    if (!this.isDirty) return await this.file.flush?.();
    await this.table.writeChanges((changes) => this.write(changes));
  }

  /** Make the file end as it has to. */
  protected endFile(): Promise<void> {
    return this.space.trim();
  }
}
