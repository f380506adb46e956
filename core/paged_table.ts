/**
 * Tables of images that map a disk in large blocks: one array of entries, read
 * in pages on demand. Changed entries stay in memory until the owner of the
 * table writes them, in the order that its format requires.
 *
 * @module
 */
import { checkSignal } from "./abort.ts";
import { allocate, roundUp, viewOf } from "./bytes.ts";
import type { BlockNode } from "./node.ts";
import { readPadded } from "./requests.ts";
import { SharedLoads } from "./shared_loads.ts";

const PAGE_BYTES = 64 * 1024;
/** Bytes of a table read or written at once. */
const PIECE_BYTES = 1024 * 1024;
/** Pages kept in memory, unless more have changed. */
const MAX_PAGES = 256;

/** Where a table is. */
export interface TableLayout {
  /** Its offset in the file. */
  readonly offset: number;
  /** Bytes of an entry, a power of two. */
  readonly entrySize: number;
  /** Bytes written at once, a power of two up to 64 KiB. */
  readonly unit: number;
}

/** A part of a table that differs from the file. */
export interface ChangedUnit {
  /** Its offset in the file. */
  readonly offset: number;
  /** A copy of its new content. */
  readonly bytes: Uint8Array;
}

/** A table in a file. */
export class PagedTable {
  #file: BlockNode;
  readonly #layout: TableLayout;
  readonly #pageEntries: number;
  /** By index, in the order of loading. */
  readonly #pages = new Map<number, DataView>();
  readonly #loads = new SharedLoads();
  /** Units that differ from the file, by index. */
  #dirty = new Set<number>();
  /**
   * Those being written: reading them from the file would return old content.
   */
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

  /** Whether there are changes to be written. */
  get isDirty(): boolean {
    return this.#dirty.size > 0;
  }

  /** The page of an entry; `undefined` if it must be loaded first. */
  page(index: number): DataView | undefined {
    return this.#pages.get(Math.floor(index / this.#pageEntries));
  }

  /** The offset of an entry in its page. */
  at(index: number): number {
    return index % this.#pageEntries * this.#layout.entrySize;
  }

  /** Load the page of an entry. */
  load(index: number): Promise<void> {
    const number = Math.floor(index / this.#pageEntries);
    return this.#loads.run(
      number,
      () => this.#read(number),
      (bytes) => this.#keep(number, bytes),
    );
  }

  async #read(number: number): Promise<Uint8Array> {
    const bytes = allocate(PAGE_BYTES);
    const start = this.#layout.offset + number * PAGE_BYTES;
    await readPadded(this.#file, start, [bytes]);
    return bytes;
  }

  #keep(number: number, bytes: Uint8Array): void {
    // It may have been loaded and changed meanwhile.
    if (this.#pages.has(number)) return;
    this.#makeRoom();
    this.#pages.set(number, viewOf(bytes));
  }

  /**
   * Visit the first entries, as {@linkcode readEntries} does. The first call
   * keeps the pages, so that lookups need not read them again.
   */
  async readAll(
    count: number,
    visit: (view: DataView, at: number, index: number) => void | Promise<void>,
    signal?: AbortSignal,
  ): Promise<void> {
    const { offset, entrySize } = this.#layout;
    const length = roundUp(count * entrySize, PAGE_BYTES);
    const table = { offset, length, entrySize };
    const isFirst = this.#pages.size === 0;
    await readEntries(this.#file, table, (view, at, index) => {
      const isPage = at % PAGE_BYTES === 0;
      if (isFirst && isPage && this.#pages.size < MAX_PAGES) {
        this.#keep(index / this.#pageEntries, pageAt(view, at));
      }
      return index < count ? visit(view, at, index) : undefined;
    }, signal);
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

  /** Note that an entry has been changed in its page. */
  changed(index: number): void {
    const { entrySize, unit } = this.#layout;
    this.#dirty.add(Math.floor(index * entrySize / unit));
  }

  /**
   * Write all changes made so far. `write` receives copies, so that no later
   * change gets in, whose data may not be durable yet. If `write` fails, they
   * count as changes again.
   *
   * Only one call at a time.
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

/** A copy of a page in a piece; past the end of the file, it is zero. */
function pageAt(piece: DataView, at: number): Uint8Array {
  const { buffer, byteOffset, byteLength } = piece;
  const bytes = allocate(PAGE_BYTES);
  const length = Math.min(PAGE_BYTES, byteLength - at);
  bytes.set(new Uint8Array(buffer, byteOffset + at, length));
  return bytes;
}

/** The extent of a table, in bytes. */
export interface TableExtent {
  readonly offset: number;
  readonly length: number;
  readonly entrySize: number;
}

/**
 * Visit the entries as stored in the file, each at its offset in `view`. An image
 * may claim any number of others past the end of its file, which are zero.
 */
export async function readEntries(
  file: BlockNode,
  { offset, length: claimed, entrySize }: TableExtent,
  visit: (view: DataView, at: number, index: number) => void | Promise<void>,
  signal?: AbortSignal,
): Promise<void> {
  const stored = Math.max(0, roundUp(file.size - offset, entrySize));
  const length = Math.min(claimed, stored);
  const bytes = allocate(Math.min(PIECE_BYTES, length));
  for (let done = 0; done < length; done += bytes.length) {
    const piece = bytes.subarray(0, Math.min(bytes.length, length - done));
    checkSignal(signal);
    await readPadded(file, offset + done, [piece], { signal });
    const view = viewOf(piece);
    for (let at = 0; at < piece.length; at += entrySize) {
      const visited = visit(view, at, (done + at) / entrySize);
      if (visited) await visited;
    }
  }
}

/** Write a new table, with `put` setting its entries. */
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
