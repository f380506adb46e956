/**
 * Two-level tables, such as L1 and L2 tables or grain directories and grain
 * tables, in pages of their file that are read on demand. The upper level is
 * called *directories* here.
 *
 * Changes stay in memory until a flush, which makes them durable. **Write
 * order**: the data, and the space of new tables; then the tables that refer to
 * the data, their copies, and the directories that refer to new tables. The
 * order of the latter does not matter: space that the file was extended by reads
 * as zeroes, which is a table without entries.
 *
 * @module
 */
import { allocate, divideUp, roundDown, SECTOR_SIZE } from "./bytes.ts";
import { Mutex } from "./lock.ts";
import type { BlockNode } from "./node.ts";
import { readPadded } from "./requests.ts";
import { SharedLoads } from "./shared_loads.ts";

const PAGE_SIZE = 16 * 1024;
/** Pages kept in memory for all files of an image, unless more have changed. */
const MAX_PAGES = 1024;
/** Those that directories may fill when an image is opened. */
const MAX_PRELOADED = 256;

interface Page {
  readonly owner: Map<number, Page>;
  readonly index: number;
  readonly view: DataView;
  /** Number of its sectors that differ from the file, or are being written. */
  pins: number;
}

/**
 * Announces a step that is about to be done in a file, by QEMU's name for it.
 */
export type Step = (name: string, file: BlockNode) => void | Promise<void>;

/** The shared page budget of all files of an image. */
export class ImageTables {
  readonly step: Step;
  readonly #pages = new Set<Page>();

  constructor(step: Step) {
    this.step = step;
  }

  /** Pages that may be loaded before they are needed. */
  get room(): number {
    return Math.max(0, MAX_PRELOADED - this.#pages.size);
  }

  /** A page was loaded: make room for it. */
  add(page: Page): void {
    if (this.#pages.size >= MAX_PAGES) {
      for (const old of this.#pages) {
        if (old.pins > 0) continue;
        old.owner.delete(old.index);
        this.#pages.delete(old);
        break;
      }
    }
    this.#pages.add(page);
  }

  /** A page is not in use any more. */
  remove(page: Page): void {
    this.#pages.delete(page);
  }
}

/** Offsets of changed sectors, and where their copies are. */
type Changes = Map<number, number | undefined>;

/** Most changed sectors before a flush is due. */
const MAX_CHANGES = 2048;

/** The tables of one file. Offsets are in bytes, entries aligned. */
export class TablePages {
  #file: BlockNode;
  readonly #image: ImageTables;
  readonly #isLittleEndian: boolean;
  /** By index, in the order of loading. */
  readonly #pages = new Map<number, Page>();
  readonly #loads = new SharedLoads();
  #tables: Changes = new Map();
  #directories: Changes = new Map();
  readonly #flushing = new Mutex();

  constructor(file: BlockNode, image: ImageTables, isLittleEndian = true) {
    this.#file = file;
    this.#image = image;
    this.#isLittleEndian = isLittleEndian;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
  }

  /** Whether there are changes to be written. */
  get isDirty(): boolean {
    return this.#tables.size > 0 || this.#directories.size > 0;
  }

  /** Whether enough has changed that a flush is due. */
  get isFull(): boolean {
    return this.#tables.size >= MAX_CHANGES;
  }

  /** A 32-bit entry; `undefined` if its page must be loaded first. */
  uint32(at: number): number | undefined {
    const page = this.#pages.get(Math.floor(at / PAGE_SIZE));
    return page?.view.getUint32(at % PAGE_SIZE, this.#isLittleEndian);
  }

  /**
   * Load a directory, before it is needed, as far as the budget allows: then a
   * lookup waits for a table only.
   */
  async preload(at: number, length: number): Promise<void> {
    const first = Math.floor(at / PAGE_SIZE);
    const end = Math.min(at + length, this.#file.size);
    const count = Math.min(
      divideUp(end, PAGE_SIZE) - first,
      this.#image.room,
    );
    if (count <= 0) return;
    const pages = Array.from({ length: count }, () => allocate(PAGE_SIZE));
    await readPadded(this.#file, first * PAGE_SIZE, pages);
    for (const [i, bytes] of pages.entries()) this.#keep(first + i, bytes);
  }

  /** Load the page of an entry. */
  load(at: number): Promise<void> {
    const index = Math.floor(at / PAGE_SIZE);
    return this.#loads.run(
      index,
      () => this.#read(index),
      (bytes) => this.#keep(index, bytes),
    );
  }

  async #read(index: number): Promise<Uint8Array> {
    const bytes = allocate(PAGE_SIZE);
    await this.#image.step("l2_load", this.#file);
    await readPadded(this.#file, index * PAGE_SIZE, [bytes]);
    return bytes;
  }

  #keep(index: number, bytes: Uint8Array): void {
    // It may have been loaded and changed meanwhile.
    if (this.#pages.has(index)) return;
    const view = new DataView(bytes.buffer, bytes.byteOffset, PAGE_SIZE);
    const page = { owner: this.#pages, index, view, pins: 0 };
    this.#image.add(page);
    this.#pages.set(index, page);
  }

  /** As {@linkcode uint32}, loading the page. */
  async find(at: number): Promise<number> {
    for (;;) {
      const value = this.uint32(at);
      if (value !== undefined) return value;
      await this.load(at);
    }
  }

  /**
   * Change an entry whose page is loaded.
   *
   * @param copy Offset of the entry in the copy of its table, if there is one.
   */
  setEntry(at: number, value: number, copy?: number): void {
    this.#set(this.#tables, at, value, copy);
  }

  /** As {@linkcode setEntry}, in a directory. */
  setDirectoryEntry(at: number, value: number): void {
    this.#set(this.#directories, at, value, undefined);
  }

  #set(changes: Changes, at: number, value: number, copy?: number): void {
    const page = this.#pages.get(Math.floor(at / PAGE_SIZE))!;
    page.view.setUint32(at % PAGE_SIZE, value, this.#isLittleEndian);
    const sector = roundDown(at, SECTOR_SIZE);
    if (!changes.has(sector)) page.pins++;
    changes.set(sector, copy === undefined ? copy : copy - (at - sector));
  }

  /** Make all changes durable. */
  async flush(): Promise<void> {
    using _ = await this.#flushing.lock();
    const file = this.#file;
    // Later changes refer to data that is not durable yet.
    const [tables, directories] = [this.#tables, this.#directories];
    this.#tables = new Map();
    this.#directories = new Map();
    const tableWrites = this.#writesOf(tables);
    const directoryWrites = this.#writesOf(directories);
    try {
      await file.flush?.();
      if (tableWrites.length === 0 && directoryWrites.length === 0) return;
      await this.#image.step("l2_update", file);
      for (const { at, iov } of [...tableWrites, ...directoryWrites]) {
        await file.writev!(at, iov);
      }
      await file.flush?.();
    } catch (error) {
      this.#restore(this.#tables, tables);
      this.#restore(this.#directories, directories);
      throw error;
    }
    for (const sector of [...tables.keys(), ...directories.keys()]) {
      this.#pageOf(sector).pins--;
    }
  }

  /** Drop all pages, changes included: the file has been rewritten. */
  forget(): void {
    for (const page of this.#pages.values()) this.#image.remove(page);
    this.#pages.clear();
    this.#loads.forget();
    this.#tables.clear();
    this.#directories.clear();
  }

  #pageOf(sector: number): Page {
    return this.#pages.get(Math.floor(sector / PAGE_SIZE))!;
  }

  /** Put changes back that could not be written. */
  #restore(now: Changes, before: Changes): void {
    for (const [sector, copy] of before) {
      if (now.has(sector)) this.#pageOf(sector).pins--;
      else now.set(sector, copy);
    }
  }

  /** Copies of changed sectors, adjacent ones together, and their offsets. */
  #writesOf(changes: Changes): { at: number; iov: Uint8Array[] }[] {
    const places: [at: number, from: number][] = [];
    for (const [sector, copy] of changes) {
      places.push([sector, sector]);
      if (copy !== undefined) places.push([copy, sector]);
    }
    places.sort(([a], [b]) => a - b);
    const writes: { at: number; iov: Uint8Array[] }[] = [];
    for (const [at, from] of places) {
      const { buffer, byteOffset } = this.#pageOf(from).view;
      const start = byteOffset + from % PAGE_SIZE;
      const bytes = new Uint8Array(buffer, start, SECTOR_SIZE).slice();
      const last = writes.at(-1);
      if (last && last.at + last.iov.length * SECTOR_SIZE === at) {
        last.iov.push(bytes);
      } else writes.push({ at, iov: [bytes] });
    }
    return writes;
  }
}
