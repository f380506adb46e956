/**
 * Tables in two levels, such as L1 and L2 tables or grain directories and grain
 * tables, in pages of their file that are read when they are wanted. Here, those
 * of the upper level are *directories*.
 *
 * Changes wait in memory for a flush, which is when they are promised to be
 * durable. **Write order**: the data; then the tables that lead to it, and
 * their copies; then the directories that lead to new tables.
 *
 * @module
 */
import { allocate, roundDown, SECTOR_SIZE } from "./bytes.ts";
import { Mutex } from "./lock.ts";
import type { BlockNode } from "./node.ts";
import { readPadded } from "./requests.ts";

const PAGE_SIZE = 16 * 1024;
/** Pages of all files of an image, unless more have changed. */
const MAX_PAGES = 1024;

interface Page {
  readonly owner: Map<number, Page>;
  readonly index: number;
  readonly view: DataView;
  /** Sectors that differ from the file, or are being written. */
  pins: number;
}

/** Tells that a step is about to be done in a file, by QEMU's name for it. */
export type Step = (name: string, file: BlockNode) => void | Promise<void>;

/** What the tables of all files of an image have in common. */
export class ImageTables {
  readonly step: Step;
  readonly #pages = new Set<Page>();

  constructor(step: Step) {
    this.step = step;
  }

  /** One more was read: make room for it. */
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

  /** It is in use no longer. */
  remove(page: Page): void {
    this.#pages.delete(page);
  }
}

/** What sectors of tables are to be written, and where their copies are. */
type Changes = Map<number, number | undefined>;

/** Most changed sectors that wait for a flush. */
const MAX_CHANGES = 2048;

/** The tables of one file. Offsets are in bytes, entries aligned. */
export class TablePages {
  #file: BlockNode;
  readonly #image: ImageTables;
  readonly #isLittleEndian: boolean;
  /** By index, in the order in which they were read. */
  readonly #pages = new Map<number, Page>();
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

  /** Whether there is something to be written. */
  get isDirty(): boolean {
    return this.#tables.size > 0 || this.#directories.size > 0;
  }

  /** Whether so much has changed that it had better be written. */
  get isFull(): boolean {
    return this.#tables.size >= MAX_CHANGES;
  }

  /** A number of 32 bits; `undefined` if its page is to be loaded before. */
  uint32(at: number): number | undefined {
    const page = this.#pages.get(Math.floor(at / PAGE_SIZE));
    return page?.view.getUint32(at % PAGE_SIZE, this.#isLittleEndian);
  }

  /** Load the page in which an entry is. */
  async load(at: number): Promise<void> {
    const index = Math.floor(at / PAGE_SIZE);
    const bytes = allocate(PAGE_SIZE);
    await this.#image.step("l2_load", this.#file);
    await readPadded(this.#file, index * PAGE_SIZE, [bytes]);
    // Another one may have been faster, and have changed it since.
    if (this.#pages.has(index)) return;
    const view = new DataView(bytes.buffer, bytes.byteOffset, PAGE_SIZE);
    const page = { owner: this.#pages, index, view, pins: 0 };
    this.#image.add(page);
    this.#pages.set(index, page);
  }

  /** As {@linkcode uint32}, loading it. */
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
   * @param copy Where the same entry is in the copy of its table, if it has one.
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

  /** Make all that was written durable. */
  async flush(): Promise<void> {
    using _ = await this.#flushing.lock();
    const file = this.#file;
    // What is changed from here on leads to data that is not durable yet.
    const [tables, directories] = [this.#tables, this.#directories];
    this.#tables = new Map();
    this.#directories = new Map();
    const tableWrites = this.#writesOf(tables);
    const directoryWrites = this.#writesOf(directories);
    try {
      await file.flush?.();
      if (tableWrites.length === 0 && directoryWrites.length === 0) return;
      await this.#image.step("l2_update", file);
      for (const { at, iov } of tableWrites) await file.writev!(at, iov);
      if (directoryWrites.length > 0) {
        await file.flush?.();
        for (const { at, iov } of directoryWrites) await file.writev!(at, iov);
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

  /** Forget all of it, also changes: the file has been written anew. */
  forget(): void {
    for (const page of this.#pages.values()) this.#image.remove(page);
    this.#pages.clear();
    this.#tables.clear();
    this.#directories.clear();
  }

  #pageOf(sector: number): Page {
    return this.#pages.get(Math.floor(sector / PAGE_SIZE))!;
  }

  /** What could not be written is still to be. */
  #restore(now: Changes, before: Changes): void {
    for (const [sector, copy] of before) {
      if (now.has(sector)) this.#pageOf(sector).pins--;
      else now.set(sector, copy);
    }
  }

  /** Copies of changed sectors, neighbours together, and where they go. */
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
