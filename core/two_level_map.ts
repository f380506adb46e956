/**
 * The map of a format with two-level tables and no allocation bitmap: L1
 * entries refer to L2 tables, L2 entries to clusters, and new clusters go to
 * the end of the file. All entries have 64 bits.
 *
 * **Write order**: see `table_pages.ts`. The space of a new L2 table reads as
 * zeroes, so that only its changed sectors are written.
 *
 * @module
 */
import type { Allocation, BlockMap, Place, Run } from "./block_map.ts";
import { placeOfData, roomInPlace } from "./access.ts";
import { divideUp, roundUp, SECTOR_SIZE } from "./bytes.ts";
import type { BlockError } from "./errors.ts";
import { Mutex } from "./lock.ts";
import type { BlockNode } from "./node.ts";
import { ImageTables, TablePages } from "./table_pages.ts";

/** Bytes of an entry. */
const ENTRY_SIZE = 8;

/** Values of an L2 entry other than an offset. */
export const ENTRY = { ABSENT: 0, ZERO: -1, SPECIAL: -2, DAMAGED: -3 } as const;

/** The layout of a format's tables. Offsets and sizes are in bytes. */
export interface TwoLevelLayout {
  /** Bytes of the disk per entry of an L2 table, a power of two. */
  readonly clusterSize: number;
  /** Offset of the L1 table, a multiple of 8. */
  readonly l1Offset: number;
  readonly l1Entries: number;
  /** Entries of an L2 table, a power of two. */
  readonly tableEntries: number;
  readonly isLittleEndian: boolean;
  /** Bytes at the start of the file that hold no clusters or tables. */
  readonly headerSize: number;
  /** End of the existing tables and clusters. */
  readonly end: number;
  /** L2 tables are aligned to this. */
  readonly tableAlignment: number;
  /** Whether a new L2 table precedes its first cluster in the file. */
  readonly tablesFirst: boolean;
  /** Whether unwritten parts of a new cluster do not read as zeroes. */
  readonly isEncrypted: boolean;
  /** Decode an entry to an offset, or one of `ENTRY`. */
  decode(high: number, low: number): number;
  /** Called before space is allocated, to note that in the header. */
  allocating?(): void | Promise<void>;
  /** The error for an entry with an invalid offset. */
  damaged(): BlockError;
}

/** A run; a special one comes with its entry. */
export interface TwoLevelRun extends Run {
  readonly entry?: { readonly high: number; readonly low: number };
}

/** The tables of an image. */
export class TwoLevelMap implements BlockMap<TwoLevelRun> {
  readonly unit: number;
  readSpecial?: BlockMap<TwoLevelRun>["readSpecial"];
  #file: BlockNode;
  readonly #layout: TwoLevelLayout;
  readonly #pages: TablePages;
  /** End of the space in use. Everything from there on reads as zeroes. */
  #next: number;
  /** Existing clusters and tables are below this. */
  #limit: number;
  /** Held while the file grows: two changes of its size must not overlap. */
  readonly #growing = new Mutex();
  /** Held while an L2 table is added. */
  readonly #adding = new Mutex();

  constructor(
    file: BlockNode,
    layout: TwoLevelLayout,
    event?: (name: string) => void | Promise<void>,
  ) {
    this.unit = layout.clusterSize;
    this.#file = file;
    this.#layout = layout;
    const image = new ImageTables((name) => event?.(name));
    this.#pages = new TablePages(file, image, layout.isLittleEndian);
    this.#limit = layout.end;
    this.#next = Math.max(file.size, layout.end, this.#l1End);
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
    this.#pages.useFile(file);
  }

  /** Load the L1 table, of which a disk of `size` bytes needs the start. */
  async preload(size: number): Promise<void> {
    const { l1Offset, tableEntries } = this.#layout;
    const entries = divideUp(size, this.unit * tableEntries);
    await this.#pages.preload(l1Offset, entries * ENTRY_SIZE);
  }

  /** Whether changes are waiting for a flush. */
  get isDirty(): boolean {
    return this.#pages.isDirty;
  }

  get #l1End(): number {
    const { l1Offset, l1Entries } = this.#layout;
    return l1Offset + l1Entries * ENTRY_SIZE;
  }

  get #tableBytes(): number {
    return this.#layout.tableEntries * ENTRY_SIZE;
  }

  /** Whether a range can hold a cluster or table. */
  isPlace(offset: number, length: number): boolean {
    const { headerSize, l1Offset } = this.#layout;
    return offset >= headerSize && offset < this.#limit &&
      (offset >= this.#l1End || offset + length <= l1Offset);
  }

  #high(at: number): number | undefined {
    return this.#pages.uint32(this.#layout.isLittleEndian ? at + 4 : at);
  }

  #low(at: number): number | undefined {
    return this.#pages.uint32(this.#layout.isLittleEndian ? at : at + 4);
  }

  /** Offset of the L1 entry of a cluster. */
  #l1At(cluster: number): number {
    const { l1Offset, tableEntries } = this.#layout;
    return l1Offset + Math.floor(cluster / tableEntries) * ENTRY_SIZE;
  }

  /**
   * Offset of the L2 table of a cluster, `ABSENT` or `DAMAGED`; `undefined` if
   * the L1 entry must be loaded first.
   */
  #tableOf(cluster: number): number | undefined {
    const at = this.#l1At(cluster);
    const high = this.#high(at);
    if (high === undefined) return undefined;
    const table = high * 2 ** 32 + this.#low(at)!;
    if (table === ENTRY.ABSENT) return table;
    const isSound = table % this.#layout.tableAlignment === 0 &&
      this.isPlace(table, this.#tableBytes) &&
      // Two L1 entries with the same table would lose each other's changes.
      table + this.#tableBytes <= Math.max(this.#limit, this.#next);
    return isSound ? table : ENTRY.DAMAGED;
  }

  #entryAt(table: number, cluster: number): number {
    return table + cluster % this.#layout.tableEntries * ENTRY_SIZE;
  }

  /**
   * Offset of a cluster, or one of `ENTRY`; `undefined` if its entries must be
   * loaded first.
   */
  #placeOf(cluster: number): number | undefined {
    const table = this.#tableOf(cluster);
    if (table === undefined || table <= 0) return table;
    const at = this.#entryAt(table, cluster);
    const high = this.#high(at);
    if (high === undefined) return undefined;
    const place = this.#layout.decode(high, this.#low(at)!);
    const isSound = place <= 0 || this.isPlace(place, this.unit);
    return isSound ? place : ENTRY.DAMAGED;
  }

  lookup(offset: number, length: number): TwoLevelRun | undefined {
    const { unit } = this;
    const first = Math.floor(offset / unit);
    const place = this.#placeOf(first);
    if (place === undefined || place === ENTRY.DAMAGED) return undefined;
    const inCluster = offset % unit;
    if (place === ENTRY.SPECIAL) {
      const at = this.#entryAt(this.#tableOf(first)!, first);
      return {
        length: Math.min(length, unit - inCluster),
        kind: "special",
        entry: { high: this.#high(at)!, low: this.#low(at)! },
      };
    }
    const run = Math.min(
      length,
      this.#runOf(first, place, divideUp(offset + length, unit)) * unit -
        offset,
    );
    if (place === ENTRY.ZERO) return { length: run, kind: "zero" };
    if (place === ENTRY.ABSENT) return { length: run, kind: "unallocated" };
    return {
      length: run,
      kind: "data",
      child: this.#file,
      childOffset: place + inCluster,
    };
  }

  /** End of the run of clusters that are mapped like the first one. */
  #runOf(first: number, place: number, end: number): number {
    const { tableEntries } = this.#layout;
    let next = first + 1;
    if (place === ENTRY.ABSENT && this.#tableOf(first) === ENTRY.ABSENT) {
      next = roundUp(next, tableEntries);
    }
    while (next < end) {
      const expected = place > 0 ? place + (next - first) * this.unit : place;
      if (this.#placeOf(next) !== expected) break;
      const isAbsent = place === ENTRY.ABSENT && next % tableEntries === 0 &&
        this.#tableOf(next) === ENTRY.ABSENT;
      next += isAbsent ? tableEntries : 1;
    }
    return next;
  }

  async find(offset: number, length: number): Promise<TwoLevelRun> {
    const cluster = Math.floor(offset / this.unit);
    for (;;) {
      const run = this.lookup(offset, length);
      if (run) return run;
      await this.#load(cluster);
    }
  }

  /** Load the missing entries of a cluster. */
  async #load(cluster: number): Promise<void> {
    const table = this.#tableOf(cluster);
    if (table === undefined) return await this.#pages.load(this.#l1At(cluster));
    if (table === ENTRY.DAMAGED || this.#placeOf(cluster) === ENTRY.DAMAGED) {
      throw this.#layout.damaged();
    }
    await this.#pages.load(this.#entryAt(table, cluster));
  }

  inPlace(offset: number, length: number): Place | undefined {
    return placeOfData(this.lookup(offset, length));
  }

  async allocate(offset: number, length: number): Promise<Allocation> {
    const run = await this.find(offset, length);
    const present = placeOfData(run);
    if (present) return roomInPlace(offset, present);
    const { unit } = this;
    const { tableEntries, tablesFirst } = this.#layout;
    const first = Math.floor(offset / unit);
    const end = Math.min(
      divideUp(offset + run.length, unit),
      roundUp(first + 1, tableEntries),
    );
    const count = end - first;
    await this.#layout.allocating?.();
    if (tablesFirst && this.#tableOf(first) === ENTRY.ABSENT) {
      await this.#addTable(first);
    }
    const place = await this.reserve(count * unit, unit);
    return {
      start: first * unit,
      length: count * unit,
      child: this.#file,
      childOffset: place,
      isZero: !this.#layout.isEncrypted,
      replaces: false,
      commit: async () => {
        for (let i = 0; i < count; i++) {
          await this.setPlace(first + i, place + i * unit);
        }
        await this.relieve();
      },
      // It may hold data now, where others expect zeroes.
      abort: () => Promise.resolve(),
    };
  }

  /**
   * Allocate space at the end of the file, which is extended before anything is
   * written there: doing it later could cut off what others have written. The
   * file ends with a whole sector, since a device would lose a partial one.
   */
  async reserve(length: number, alignment: number): Promise<number> {
    const place = roundUp(this.#next, alignment);
    const end = place + length;
    this.#next = end;
    try {
      using _ = await this.#growing.lock();
      if (this.#file.size < end) {
        await this.#file.truncate!(roundUp(end, SECTOR_SIZE));
      }
    } catch (error) {
      if (this.#next === end) this.#next = place;
      throw error;
    }
    this.#limit = Math.max(this.#limit, end);
    return place;
  }

  /** Map a cluster, whose range is held, to an offset that has been written. */
  setPlace(cluster: number, place: number): Promise<void> {
    return this.setEntry(cluster, Math.floor(place / 2 ** 32), place >>> 0);
  }

  /** Change the entry of a cluster, whose range is held. */
  async setEntry(cluster: number, high: number, low: number): Promise<void> {
    for (;;) {
      let table = this.#tableOf(cluster);
      if (table === ENTRY.ABSENT) {
        await this.#addTable(cluster);
        table = this.#tableOf(cluster);
      }
      const at = table && this.#entryAt(table, cluster);
      if (at === undefined || this.#high(at) === undefined) {
        await this.#load(cluster);
        continue;
      }
      const [atHigh, atLow] = this.#layout.isLittleEndian
        ? [at + 4, at]
        : [at, at + 4];
      this.#pages.setEntry(atHigh, high);
      this.#pages.setEntry(atLow, low);
      return;
    }
  }

  /** Add the L2 table of a cluster, unless that was done meanwhile. */
  async #addTable(cluster: number): Promise<void> {
    using _ = await this.#adding.lock();
    if (this.#tableOf(cluster) !== ENTRY.ABSENT) return;
    const length = this.#tableBytes;
    const table = await this.reserve(length, this.unit);
    const at = this.#l1At(cluster);
    while (this.#high(at) === undefined) await this.#pages.load(at);
    const { isLittleEndian } = this.#layout;
    const [high, low] = [Math.floor(table / 2 ** 32), table >>> 0];
    this.#pages.setDirectoryEntry(at, isLittleEndian ? low : high);
    this.#pages.setDirectoryEntry(at + 4, isLittleEndian ? high : low);
  }

  /** Flush if many changes are waiting. */
  async relieve(): Promise<void> {
    if (this.#pages.isFull) await this.flush();
  }

  /** Make all changes durable. */
  flush(): Promise<void> {
    return this.#pages.flush();
  }

  /** Unmap all clusters; the file was cut off at `end`. */
  forget(end: number): void {
    this.#pages.forget();
    this.#next = this.#limit = Math.max(end, this.#l1End);
  }
}
