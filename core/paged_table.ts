/**
 * Tables of images that map a disk in large blocks: one array of entries, read
 * in pages when it is wanted. Changed entries wait in memory until whoever keeps
 * the table writes them, in the order that its format asks for.
 *
 * @module
 */
import { allocate, roundUp, viewOf } from "./bytes.ts";
import type { BlockNode } from "./node.ts";
import { readPadded } from "./requests.ts";

const PAGE_BYTES = 64 * 1024;
/** Bytes of a table that are read or written as a whole. */
const PIECE_BYTES = 1024 * 1024;
/** Pages that are kept, unless more have changed. */
const MAX_PAGES = 256;

/** Where a table lies. */
export interface TableLayout {
  /** Its first byte in the file. */
  readonly offset: number;
  /** Bytes of an entry, a power of two. */
  readonly entrySize: number;
  /** Bytes that are written at once, a power of two up to 64 KiB. */
  readonly unit: number;
}

/** A part of a table that differs from the file. */
export interface ChangedUnit {
  /** Its first byte in the file. */
  readonly offset: number;
  /** A copy of what it is to become. */
  readonly bytes: Uint8Array;
}

/** A table in a file. */
export class PagedTable {
  #file: BlockNode;
  readonly #layout: TableLayout;
  readonly #pageEntries: number;
  /** By index, in the order in which they were read. */
  readonly #pages = new Map<number, DataView>();
  /** Units that differ from the file, by index. */
  #dirty = new Set<number>();
  /** Those that are being written: read anew, they would be old. */
  #writing = new Set<number>();

  constructor(file: BlockNode, layout: TableLayout) {
    this.#file = file;
    this.#layout = layout;
    this.#pageEntries = PAGE_BYTES / layout.entrySize;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
  }

  /** Whether there is something to be written. */
  get isDirty(): boolean {
    return this.#dirty.size > 0;
  }

  /** The page with an entry; `undefined` if it is to be loaded before. */
  page(index: number): DataView | undefined {
    return this.#pages.get(Math.floor(index / this.#pageEntries));
  }

  /** Where in its page an entry lies. */
  at(index: number): number {
    return index % this.#pageEntries * this.#layout.entrySize;
  }

  /** Load the page with an entry. */
  async load(index: number): Promise<void> {
    const number = Math.floor(index / this.#pageEntries);
    const bytes = allocate(PAGE_BYTES);
    const start = this.#layout.offset + number * PAGE_BYTES;
    await readPadded(this.#file, start, [bytes]);
    // Another one may have been faster, and have changed it since.
    if (this.#pages.has(number)) return;
    this.#makeRoom();
    this.#pages.set(number, new DataView(bytes.buffer, bytes.byteOffset));
  }

  #makeRoom(): void {
    if (this.#pages.size < MAX_PAGES) return;
    const units = PAGE_BYTES / this.#layout.unit;
    const changed = new Set<number>();
    for (const set of [this.#dirty, this.#writing]) {
      for (const unit of set) changed.add(Math.floor(unit / units));
    }
    for (const index of this.#pages.keys()) {
      if (changed.has(index)) continue;
      this.#pages.delete(index);
      return;
    }
  }

  /** An entry whose page is in memory has been changed there. */
  changed(index: number): void {
    const { entrySize, unit } = this.#layout;
    this.#dirty.add(Math.floor(index * entrySize / unit));
  }

  /**
   * Have what has changed until now written. Copies are handed out, so that no
   * later change gets in, whose data may not be durable yet. Where `write`
   * fails, they count as changed again.
   *
   * One call at a time.
   */
  async writeChanges(
    write: (changes: readonly ChangedUnit[]) => Promise<void>,
  ): Promise<void> {
    this.#writing = this.#dirty;
    this.#dirty = new Set();
    try {
      const units = [...this.#writing].sort((a, b) => a - b);
      await write(units.map((unit) => this.#copyOf(unit)));
    } catch (error) {
      for (const unit of this.#writing) this.#dirty.add(unit);
      throw error;
    } finally {
      this.#writing = new Set();
    }
  }

  #copyOf(number: number): ChangedUnit {
    const { offset, unit } = this.#layout;
    const at = number * unit;
    const page = this.#pages.get(Math.floor(at / PAGE_BYTES))!;
    const start = page.byteOffset + at % PAGE_BYTES;
    const bytes = new Uint8Array(page.buffer, start, unit).slice();
    return { offset: offset + at, bytes };
  }
}

/** Where all of a table lies, in bytes. */
export interface TableExtent {
  readonly offset: number;
  readonly length: number;
  readonly entrySize: number;
}

/**
 * Visit the entries that the file has, each with its place in `view`. An image
 * may claim any number of others past the end of its file, which are zero.
 */
export async function readEntries(
  file: BlockNode,
  { offset, length: claimed, entrySize }: TableExtent,
  visit: (view: DataView, at: number, index: number) => void | Promise<void>,
): Promise<void> {
  const stored = Math.max(0, roundUp(file.size - offset, entrySize));
  const length = Math.min(claimed, stored);
  const bytes = allocate(Math.min(PIECE_BYTES, length));
  for (let done = 0; done < length; done += bytes.length) {
    const piece = bytes.subarray(0, Math.min(bytes.length, length - done));
    await readPadded(file, offset + done, [piece]);
    const view = viewOf(piece);
    for (let at = 0; at < piece.length; at += entrySize) {
      const visited = visit(view, at, (done + at) / entrySize);
      if (visited) await visited;
    }
  }
}

/** Write a new table, whose entries `put` sets. */
export async function writeEntries(
  file: BlockNode,
  { offset, length, entrySize }: TableExtent,
  put: (view: DataView, at: number, index: number) => void,
): Promise<void> {
  for (let done = 0; done < length; done += PIECE_BYTES) {
    const bytes = allocate(Math.min(PIECE_BYTES, length - done));
    const view = viewOf(bytes);
    for (let at = 0; at < bytes.length; at += entrySize) {
      put(view, at, (done + at) / entrySize);
    }
    await file.writev!(offset + done, [bytes]);
  }
}
