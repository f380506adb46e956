/**
 * An extent with a grain directory, which refers to grain tables, which refer
 * to grains.
 *
 * @module
 */
import type { Allocation, Place, Run } from "../../core/block_map.ts";
import { roomInPlace } from "../../core/access.ts";
import {
  allocate,
  divideUp,
  type IoVector,
  padded,
  roundUp,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { Mutex } from "../../core/lock.ts";
import type { BlockNode, ReadFlags } from "../../core/node.ts";
import { GrainReader } from "./compressed.ts";
import type { Extent } from "./extent.ts";
import { directoryEntries, type SparseLayout } from "./layout.ts";
import {
  type ImageTables,
  type Step,
  TablePages,
} from "../../core/table_pages.ts";

/** Meanings of an entry other than an offset in the file. */
const [ABSENT, ZEROED, DAMAGED] = [0, -1, -2];

/** An entry of a hosted extent that stands for zeroes. */
const ZEROED_ENTRY = 1;

/** Bytes of a file that 32-bit entries can address. */
const MAX_FILE = 2 ** 32 * SECTOR_SIZE;

/** Most bytes of compressed grains read at once. */
const MAX_COMPRESSED_RUN = 2 * 1024 * 1024;

/** An extent whose grains are allocated in a file. */
export class SparseExtent implements Extent {
  readonly type: string;
  readonly start: number;
  readonly end: number;
  file: BlockNode;
  readonly grainSize: number;
  readonly layout: SparseLayout;
  readonly #entrySize: number;
  readonly #tableBytes: number;
  readonly #pages: TablePages;
  readonly #step: Step;
  readonly #reader?: GrainReader;
  /** Offset of the next grain. */
  #next: number;
  /** Held while the file grows: concurrent truncations could shrink it. */
  readonly #growing = new Mutex();

  constructor(
    type: string,
    start: number,
    file: BlockNode,
    layout: SparseLayout,
    image: ImageTables,
  ) {
    const { capacity, grainSize, tableEntries, isCompressed } = layout;
    this.type = type;
    this.start = start;
    this.end = start + capacity;
    this.file = file;
    this.grainSize = grainSize;
    this.layout = layout;
    this.#entrySize = layout.kind === "sesparse" ? 8 : 4;
    this.#tableBytes = tableEntries * this.#entrySize;
    this.#pages = new TablePages(file, image);
    this.#step = image.step;
    if (isCompressed) this.#reader = new GrainReader(file, layout, image.step);
    this.#next = this.#endOf(file);
  }

  /** The end of a file's content, rounded up for grains. */
  #endOf({ size }: BlockNode): number {
    const { overhead, isCompressed } = this.layout;
    return roundUp(
      Math.max(size, overhead),
      isCompressed ? SECTOR_SIZE : this.grainSize,
    );
  }

  useFile(file: BlockNode): void {
    this.file = file;
    this.#pages.useFile(file);
    this.#reader?.useFile(file);
    this.#next = Math.max(this.#next, this.#endOf(file));
  }

  /** Load the grain directory. */
  async preload(): Promise<void> {
    const { directory } = this.layout;
    const length = directoryEntries(this.layout) * this.#entrySize;
    await this.#pages.preload(directory, length);
  }

  get isCompressed(): boolean {
    return this.layout.isCompressed;
  }

  /** Offset of the table with a grain's entry; 0 if there is none. */
  #tableOf(grain: number): number | undefined {
    const index = Math.floor(grain / this.layout.tableEntries);
    return this.#tableAt(this.layout.directory + index * this.#entrySize);
  }

  #tableAt(at: number): number | undefined {
    const entry = this.#pages.uint32(at);
    const { areas } = this.layout;
    if (!areas || entry === undefined) {
      return entry && entry * SECTOR_SIZE;
    }
    const high = this.#pages.uint32(at + 4)!;
    if (high === 0 && entry === 0) return ABSENT;
    if (high !== 0x10000000) return DAMAGED;
    return areas.tables + entry * this.#tableBytes;
  }

  /**
   * Offset of a grain, `ABSENT`, `ZEROED` or `DAMAGED`; `undefined` if its
   * entry must be loaded first.
   */
  #placeOf(grain: number): number | undefined {
    const table = this.#tableOf(grain);
    if (table === undefined || table <= 0) return table;
    const { tableEntries, areas, zeroedGrains } = this.layout;
    const at = table + grain % tableEntries * this.#entrySize;
    const entry = this.#pages.uint32(at);
    if (entry === undefined) return undefined;
    if (areas) return this.#seSparsePlace(entry, this.#pages.uint32(at + 4)!);
    if (zeroedGrains && entry === ZEROED_ENTRY) return ZEROED;
    return entry * SECTOR_SIZE;
  }

  #seSparsePlace(low: number, high: number): number {
    switch (high >>> 28) {
      case 0:
        return high === 0 && low === 0 ? ABSENT : DAMAGED;
      case 1:
      case 2:
        return ZEROED;
      case 3: {
        const number = (high >>> 16 & 0xfff) +
          ((high & 0xffff) * 2 ** 32 + low) * 4096;
        const place = this.layout.areas!.grains + number * this.grainSize;
        return Number.isSafeInteger(place) ? place : DAMAGED;
      }
    }
    return DAMAGED;
  }

  /** Load the page that looking up a grain needs. */
  async #load(grain: number): Promise<void> {
    const { directory, tableEntries } = this.layout;
    const index = Math.floor(grain / tableEntries);
    const table = this.#tableOf(grain);
    await this.#pages.load(
      table === undefined
        ? directory + index * this.#entrySize
        : table + grain % tableEntries * this.#entrySize,
    );
  }

  /** As {@linkcode #placeOf}, loading entries as needed. */
  async #findPlace(grain: number): Promise<number> {
    let place: number | undefined;
    while ((place = this.#placeOf(grain)) === undefined) {
      await this.#load(grain);
    }
    return place;
  }

  lookup(offset: number, length: number): Run | undefined {
    const { grainSize, isCompressed } = this;
    const within = offset - this.start;
    const first = Math.floor(within / grainSize);
    const place = this.#placeOf(first);
    if (place === undefined || place === DAMAGED) return undefined;
    const most = isCompressed && place > 0
      ? Math.min(length, Math.max(MAX_COMPRESSED_RUN, grainSize))
      : length;
    const end = divideUp(within + most, grainSize);
    let next = first + 1;
    for (; next < end; next++) {
      const table = this.#tableOf(next);
      if (table === undefined) break;
      if (table === ABSENT && place === ABSENT) {
        const { tableEntries } = this.layout;
        next = (Math.floor(next / tableEntries) + 1) * tableEntries - 1;
        continue;
      }
      const other = this.#placeOf(next);
      const isAlike = place <= 0
        ? other === place
        : isCompressed
        ? other !== undefined && other > 0
        : other === place + (next - first) * grainSize;
      if (!isAlike) break;
    }
    const run = Math.min(most, next * grainSize - within);
    if (place === ABSENT) return { length: run, kind: "unallocated" };
    if (place === ZEROED) return { length: run, kind: "zero" };
    if (isCompressed) return { length: run, kind: "special" };
    return {
      length: run,
      kind: "data",
      child: this.file,
      childOffset: place + within % grainSize,
    };
  }

  async find(offset: number, length: number): Promise<Run> {
    const grain = Math.floor((offset - this.start) / this.grainSize);
    for (;;) {
      const run = this.lookup(offset, length);
      if (run) return run;
      if (await this.#findPlace(grain) === DAMAGED) {
        throw new BlockError("EIO", "A grain table is damaged");
      }
    }
  }

  inPlace(offset: number, length: number): Place | undefined {
    const run = this.lookup(offset, length);
    if (run?.kind !== "data") return undefined;
    // Data never overwrites metadata, whatever an entry says.
    return run.childOffset! < this.#firstGrain ? undefined : run as Place;
  }

  /** Offset of the first grain: after the tables, if the header says so. */
  get #firstGrain(): number {
    const { overhead, descriptor } = this.layout;
    return Math.max(overhead, descriptor.offset + descriptor.length);
  }

  async allocate(offset: number, length: number): Promise<Allocation> {
    const run = await this.find(offset, length);
    if (run.kind === "data") {
      const place = this.inPlace(offset, length);
      if (place) return roomInPlace(offset, place);
      throw new BlockError("EIO", "A grain overlaps the image's metadata");
    }
    const { grainSize, start } = this;
    const { tableEntries } = this.layout;
    const within = offset - start;
    const first = Math.floor(within / grainSize);
    const table = (Math.floor(first / tableEntries) + 1) * tableEntries;
    const last = Math.min(divideUp(within + run.length, grainSize), table);
    const bytes = (last - first) * grainSize;
    const childOffset = this.#takeRoom(bytes);
    const isZero = childOffset >= this.file.size;
    const giveBack = () => {
      if (this.#next === childOffset + bytes) this.#next = childOffset;
    };
    try {
      await this.#grow(childOffset + bytes);
    } catch (error) {
      giveBack();
      throw error;
    }
    return {
      start: start + first * grainSize,
      // The last grain may be shorter, if another extent follows.
      length: Math.min(bytes, this.end - start - first * grainSize),
      child: this.file,
      childOffset,
      isZero,
      replaces: false,
      commit: async () => {
        for (let grain = first; grain < last; grain++) {
          const at = childOffset + (grain - first) * grainSize;
          await this.#setEntry(grain, at / SECTOR_SIZE);
        }
        if (this.#pages.isFull) await this.flush();
      },
      // deno-lint-ignore require-await -- the interface is asynchronous
      abort: async () => giveBack(),
    };
  }

  /** @throws {BlockError} EFBIG if no entry can address it. */
  #takeRoom(bytes: number): number {
    const at = this.#next;
    if (at + bytes > MAX_FILE) {
      throw new BlockError(
        "EFBIG",
        "A VMDK extent cannot have grains beyond 2 TiB of its file",
      );
    }
    this.#next += bytes;
    return at;
  }

  /**
   * Grow the file to whole grains, which other programs expect, even if their
   * end is never written. The file is extended before anything is written
   * there: doing it later could cut off what others have written beyond.
   */
  async #grow(end: number): Promise<void> {
    if (this.file.size >= end) return;
    using _ = await this.#growing.lock();
    if (this.file.size < end) await this.file.truncate!(end);
  }

  async #setEntry(grain: number, value: number): Promise<void> {
    const { tableEntries, directory, redundant } = this.layout;
    const index = Math.floor(grain / tableEntries);
    const table = await this.#tableToWrite(directory, index);
    const copied = redundant === 0
      ? undefined
      : await this.#tableToWrite(redundant, index);
    const within = grain % tableEntries * 4;
    const at = table + within;
    while (this.#pages.uint32(at) === undefined) await this.#pages.load(at);
    this.#pages.setEntry(at, value, copied && copied + within);
  }

  /**
   * Offset of a table. Some writers leave out tables that are not needed yet.
   */
  async #tableToWrite(directory: number, index: number): Promise<number> {
    const at = directory + index * 4;
    let table = await this.#pages.find(at) * SECTOR_SIZE;
    if (table === 0) {
      using _ = await this.#growing.lock();
      table = await this.#pages.find(at) * SECTOR_SIZE ||
        await this.#newTable(at);
    }
    const { descriptor } = this.layout;
    const isSound = table >= descriptor.offset + descriptor.length &&
      table + this.#tableBytes <= this.file.size;
    if (isSound) return table;
    throw new BlockError("EIO", "A grain table has no place in its file");
  }

  /** Allocate a table, and let the directory refer to it. */
  async #newTable(at: number): Promise<number> {
    const bytes = roundUp(this.#tableBytes, SECTOR_SIZE);
    // Keep what follows aligned to grains.
    const unit = this.isCompressed ? SECTOR_SIZE : this.grainSize;
    const table = this.#takeRoom(roundUp(bytes, unit));
    await this.file.writev!(table, [allocate(bytes)]);
    while (this.#pages.uint32(at) === undefined) await this.#pages.load(at);
    this.#pages.setDirectoryEntry(at, table / SECTOR_SIZE);
    return table;
  }

  get zeroGrains() {
    const { zeroedGrains, isCompressed } = this.layout;
    return zeroedGrains && !isCompressed ? this.#zeroGrains : undefined;
  }

  /** Freed grains are not reused: there is no free list. */
  async #zeroGrains(offset: number, length: number): Promise<void> {
    const first = (offset - this.start) / this.grainSize;
    const end = divideUp(offset + length - this.start, this.grainSize);
    for (let grain = first; grain < end; grain++) {
      if (await this.#findPlace(grain) === ZEROED) continue;
      await this.#setEntry(grain, ZEROED_ENTRY);
    }
    if (this.#pages.isFull) await this.flush();
  }

  async readCompressed(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const { grainSize } = this;
    const within = offset - this.start;
    await this.#reader!.read(within, iov, async (grain) => {
      const place = await this.#findPlace(grain);
      // All grains of this run are allocated.
      if (place <= 0) throw new BlockError("EIO");
      return { place, size: Math.min(grainSize, this.#sizeFrom(grain)) };
    }, flags);
  }

  #sizeFrom(grain: number): number {
    return this.end - this.start - grain * this.grainSize;
  }

  /** Whether any grain of a range is allocated already. */
  async hasGrains(offset: number, length: number): Promise<boolean> {
    const first = Math.floor((offset - this.start) / this.grainSize);
    const end = divideUp(offset + length - this.start, this.grainSize);
    for (let grain = first; grain < end; grain++) {
      if (await this.#findPlace(grain) !== ABSENT) return true;
    }
    return false;
  }

  /**
   * Append compressed grains, each after its marker, to the file.
   *
   * @param offset Offset of the first one on the disk.
   */
  async append(offset: number, grains: readonly Uint8Array[]): Promise<void> {
    const first = (offset - this.start) / this.grainSize;
    const places: number[] = [];
    const parts: Uint8Array[] = [];
    let end = this.#next;
    for (const grain of grains) {
      places.push(end);
      parts.push(...padded(grain, SECTOR_SIZE));
      end += roundUp(grain.length, SECTOR_SIZE);
    }
    const start = this.#takeRoom(end - this.#next);
    await this.#step("write_compressed", this.file);
    await this.file.writev!(start, parts);
    for (const [index, place] of places.entries()) {
      await this.#setEntry(first + index, place / SECTOR_SIZE);
    }
    if (this.#pages.isFull) await this.flush();
  }

  flush(): Promise<void> {
    return this.#pages.flush();
  }

  /**
   * Visit all grains.
   *
   * @param found Called for each grain that is allocated or damaged.
   */
  async eachGrain(
    found: (grain: number, place: number | undefined) => void,
  ): Promise<void> {
    const { tableEntries, capacity } = this.layout;
    const grains = divideUp(capacity, this.grainSize);
    for (let index = 0; index < directoryEntries(this.layout); index++) {
      const first = index * tableEntries;
      let table: number | undefined;
      while ((table = this.#tableOf(first)) === undefined) {
        await this.#load(first);
      }
      if (table === ABSENT) continue;
      const end = Math.min(grains, first + tableEntries);
      for (let grain = first; grain < end; grain++) {
        const place = this.#placeOf(grain) ?? await this.#findPlace(grain);
        if (place === DAMAGED) found(grain, undefined);
        else if (place > 0) found(grain, place);
      }
    }
  }
}
