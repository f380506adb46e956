/**
 * The bits of one bitmap, in pages that are read on demand. Runs of zeroes or
 * ones take no memory, however large the disk.
 *
 * Bits are counted from the start of the disk; bit 0 of a byte comes first.
 * (Specification: "Bitmap data".)
 *
 * @module
 */
import { allocate } from "../../../core/bytes.ts";
import { ALL_ONES, ALL_ZEROES, type BitmapTable } from "./table.ts";

/** Most bytes of a page; a cluster is a whole number of pages. */
const MAX_PAGE_SIZE = 4096;
/** A page of any size that is all zeroes, never written to. */
const ZEROES = new Uint8Array(MAX_PAGE_SIZE);
/** A page of any size that is all ones, never written to. */
const ONES = new Uint8Array(MAX_PAGE_SIZE).fill(0xff);

/** Where the bits are stored. */
export interface ContentSource {
  readonly clusterSize: number;
  /** Fill `target` from the file. */
  read(offset: number, target: Uint8Array): Promise<void>;
}

/** Bits in a row that are set. */
export interface BitRun {
  start: number;
  /** Index past the last one. */
  end: number;
}

/** The bits of a bitmap. */
export class BitmapContent {
  readonly #source: ContentSource;
  readonly #pageSize: number;
  readonly #pagesPerCluster: number;
  #bits: number;
  /** The table that applies where there is no page. */
  #table: BitmapTable;
  readonly #pages = new Map<number, Uint8Array>();
  /** Clusters that differ from the table. */
  readonly #changed = new Set<number>();
  /** Whether the table differs from the one in the file. */
  #isCleared = false;
  /** The page used last, if it is not one of `#pages`. */
  #latest?: { index: number; bytes: Uint8Array };

  /** @param table May have fewer clusters than `bits` need. */
  constructor(source: ContentSource, bits: number, table: BitmapTable) {
    this.#source = source;
    this.#pageSize = Math.min(source.clusterSize, MAX_PAGE_SIZE);
    this.#pagesPerCluster = source.clusterSize / this.#pageSize;
    this.#bits = bits;
    this.#table = table;
  }

  /** Clusters that the bits need. */
  get clusters(): number {
    return Math.ceil(this.#bits / 8 / this.#source.clusterSize);
  }

  get #pageBits(): number {
    return this.#pageSize * 8;
  }

  /** The table's entry of a cluster. */
  #stored(cluster: number): number {
    return this.#table[cluster] ?? ALL_ZEROES;
  }

  /** A page, if it is in memory. */
  #page(index: number): Uint8Array | undefined {
    const page = this.#pages.get(index);
    if (page) return page;
    const stored = this.#stored(Math.floor(index / this.#pagesPerCluster));
    if (stored === ALL_ZEROES) return ZEROES;
    return stored === ALL_ONES ? ONES : undefined;
  }

  async #readPage(index: number): Promise<Uint8Array> {
    const cluster = Math.floor(index / this.#pagesPerCluster);
    const within = (index % this.#pagesPerCluster) * this.#pageSize;
    const bytes = allocate(this.#pageSize);
    await this.#source.read(this.#stored(cluster) + within, bytes);
    return bytes;
  }

  /**
   * Whether all bits of a range are set; `undefined` if pages must be read
   * first.
   */
  covers(start: number, end: number): boolean | undefined {
    const { start: first, end: past } = this.#pagesOf(start, end);
    for (let index = first; index < past; index++) {
      const page = this.#page(index);
      if (!page) return undefined;
      if (page === ONES) continue;
      const { from, to } = this.#within(index, start, end);
      if (findBit(page, from, to, false) < to) return false;
    }
    return true;
  }

  /** Load the pages of a range that will be set in part. */
  async load(start: number, end: number): Promise<void> {
    const { start: first, end: past } = this.#pagesOf(start, end);
    for (let index = first; index < past; index++) {
      if (this.#page(index)) continue;
      const { from, to } = this.#within(index, start, end);
      if (to - from === this.#pageBits) continue;
      const bytes = await this.#readPage(index);
      // Another caller may have loaded and changed it meanwhile.
      if (!this.#page(index)) this.#pages.set(index, bytes);
    }
  }

  /**
   * Set the bits of a range.
   *
   * @returns whether that was possible; if not, pages must be loaded first.
   */
  set(start: number, end: number): boolean {
    const { start: first, end: past } = this.#pagesOf(start, end);
    for (let index = first; index < past; index++) {
      const { from, to } = this.#within(index, start, end);
      if (!this.#setInPage(index, from, to)) return false;
    }
    return true;
  }

  #setInPage(index: number, from: number, to: number): boolean {
    let page = this.#page(index);
    if (page === ONES) return true;
    const isWhole = to - from === this.#pageBits;
    if (!isWhole) {
      if (!page) return false;
      if (findBit(page, from, to, false) === to) return true;
      if (page === ZEROES) page = allocate(this.#pageSize);
      setBits(page, from, to);
    }
    // A sequential writer leaves no page behind.
    const isFull = isWhole || to === this.#pageBits &&
        findBit(page!, 0, to, false) === to;
    this.#change(index, isFull ? ONES : page!);
    return true;
  }

  #change(index: number, page: Uint8Array): void {
    this.#pages.set(index, page);
    this.#changed.add(Math.floor(index / this.#pagesPerCluster));
  }

  /** Clear all bits. */
  clear(): void {
    this.#forget();
    this.#table = new Float64Array(0);
    this.#isCleared = true;
  }

  /** Whether the bits differ from those in the file. */
  get isChanged(): boolean {
    return this.#isCleared || this.#changed.size > 0;
  }

  #forget(): void {
    this.#pages.clear();
    this.#changed.clear();
    this.#latest = undefined;
  }

  /** Change the number of bits; new ones are clear. */
  async resize(bits: number): Promise<void> {
    const kept = Math.min(bits, this.#bits);
    const pagesPerCluster = this.#pagesPerCluster;
    const cluster = Math.floor(kept / 8 / this.#source.clusterSize);
    const last = Math.floor(kept / this.#pageBits);
    const page = this.#page(last) ?? await this.#readPage(last);
    const end = (cluster + 1) * pagesPerCluster;
    for (const index of this.#pages.keys()) {
      if (index >= end) this.#pages.delete(index);
    }
    for (const index of this.#changed) {
      if (index > cluster) this.#changed.delete(index);
    }
    // Bits past the end must not reappear when it grows again.
    const cut = allocate(this.#pageSize);
    cut.set(page.subarray(0, this.#pageSize));
    clearBits(cut, kept % this.#pageBits);
    this.#change(last, cut);
    for (let index = last + 1; index < end; index++) {
      this.#change(index, ZEROES);
    }
    this.#table = this.#table.slice(0, cluster + 1);
    this.#latest = undefined;
    this.#bits = bits;
  }

  /** The next run of set bits in `from` to `end`. */
  async nextRun(from: number, end: number): Promise<BitRun | undefined> {
    end = Math.min(end, this.#bits);
    const start = await this.#find(from, end, true);
    if (start >= end) return undefined;
    return { start, end: await this.#find(start, end, false) };
  }

  /** The first bit with a value; `end` if there is none. */
  async #find(start: number, end: number, value: boolean): Promise<number> {
    const uniform = value ? ZEROES : ONES;
    const { start: first, end: past } = this.#pagesOf(start, end);
    for (let index = first; index < past; index++) {
      const page = this.#page(index) ?? await this.#peek(index);
      if (page === uniform) continue;
      const { from, to } = this.#within(index, start, end);
      const found = findBit(page, from, to, value);
      if (found < to) return index * this.#pageBits + found;
    }
    return end;
  }

  /** Read a page without keeping it. */
  async #peek(index: number): Promise<Uint8Array> {
    if (this.#latest?.index !== index) {
      this.#latest = { index, bytes: await this.#readPage(index) };
    }
    return this.#latest.bytes;
  }

  #pagesOf(start: number, end: number): BitRun {
    return {
      start: Math.floor(start / this.#pageBits),
      end: Math.ceil(end / this.#pageBits),
    };
  }

  /** The part of a page that is in a range, as bits of the page. */
  #within(index: number, start: number, end: number) {
    const first = index * this.#pageBits;
    return {
      from: Math.max(0, start - first),
      to: Math.min(this.#pageBits, end - first),
    };
  }

  /** The content of a cluster to be stored, if it differs from the table. */
  async changedCluster(cluster: number): Promise<Uint8Array | undefined> {
    if (!this.#changed.has(cluster)) return undefined;
    const bytes = allocate(this.#source.clusterSize);
    for (let i = 0; i < this.#pagesPerCluster; i++) {
      const index = cluster * this.#pagesPerCluster + i;
      const page = this.#page(index) ?? await this.#readPage(index);
      bytes.set(page.subarray(0, this.#pageSize), i * this.#pageSize);
    }
    return bytes;
  }

  /** The table as it was when bits were last stored or cleared. */
  get table(): BitmapTable {
    return this.#table;
  }

  /** All bits have been stored where this table says. */
  stored(table: BitmapTable): void {
    this.#forget();
    this.#table = table;
    this.#isCleared = false;
  }
}

/** The first bit with a value in a range of a page; `to` if there is none. */
function findBit(
  page: Uint8Array,
  from: number,
  to: number,
  value: boolean,
): number {
  const skipped = value ? 0 : 0xff;
  for (let at = from; at < to;) {
    const byte = page[at >>> 3];
    if (byte === skipped) {
      at = (at & ~7) + 8;
      continue;
    }
    if (((byte >>> (at & 7)) & 1) === Number(value)) return at;
    at++;
  }
  return to;
}

function setBits(page: Uint8Array, from: number, to: number): void {
  while (from < to && (from & 7) !== 0) page[from >>> 3] |= 1 << (from++ & 7);
  const whole = (to - from) >>> 3;
  if (whole > 0) page.fill(0xff, from >>> 3, (from >>> 3) + whole);
  for (from += whole * 8; from < to; from++) {
    page[from >>> 3] |= 1 << (from & 7);
  }
}

/** Clear all bits from one on. */
function clearBits(page: Uint8Array, from: number): void {
  const whole = (from + 7) >>> 3;
  page.fill(0, whole);
  if ((from & 7) !== 0) page[whole - 1] &= (1 << (from & 7)) - 1;
}
