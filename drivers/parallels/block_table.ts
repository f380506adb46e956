/**
 * The block allocation table (BAT): where each cluster lies, in sectors or in
 * clusters.
 *
 * Changes wait in memory for a flush, which is when they are promised to be
 * durable. **Write order**: the data, then the table.
 *
 * @module
 */
import {
  type Allocation,
  type BlockMap,
  type Place,
  roomInPlace,
  type Run,
} from "../../core/block_map.ts";
import { allocate, divideUp, roundUp } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { Mutex } from "../../core/lock.ts";
import type { BlockNode } from "../../core/node.ts";
import { PagedTable } from "../../core/paged_table.ts";
import { ENTRY_SIZE, HEADER_SIZE, type ParallelsHeader } from "./header.ts";

/**
 * Bytes of the table that are written at once. The table begins behind the
 * header: larger units could reach into the sector behind it.
 */
const UNIT = 64;
/** Bytes of the table that are looked at together. */
const SCAN_BYTES = 1024 * 1024;

/** The block allocation table. */
export class BlockTable implements BlockMap {
  readonly unit: number;
  #file: BlockNode;
  readonly #header: ParallelsHeader;
  readonly #table: PagedTable;
  /** The end of the last cluster. */
  #next: number;
  /** Whether all from there on reads as zeroes. */
  #isCut = false;
  readonly #flushing = new Mutex();
  /** Held while the file changes its size: two changes must not cross. */
  readonly #growing = new Mutex();

  constructor(file: BlockNode, header: ParallelsHeader) {
    this.unit = header.clusterSize;
    this.#file = file;
    this.#header = header;
    this.#table = new PagedTable(file, {
      offset: HEADER_SIZE,
      entrySize: ENTRY_SIZE,
      unit: UNIT,
    });
    this.#next = header.dataOffset;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
    this.#table.useFile(file);
  }

  /** Where the data ends. */
  get end(): number {
    return this.#next;
  }

  /**
   * Visit all entries that are not 0, with the place that each leads to, as the
   * file has them.
   */
  async eachEntry(
    visit: (index: number, place: number) => void | Promise<void>,
  ): Promise<void> {
    const { entries, entryUnit } = this.#header;
    // Where there is nothing of a table, it is empty.
    const inFile = Math.max(0, this.#file.size - HEADER_SIZE);
    const length = Math.min(entries * ENTRY_SIZE, inFile - inFile % ENTRY_SIZE);
    for (let done = 0; done < length; done += SCAN_BYTES) {
      const bytes = allocate(Math.min(SCAN_BYTES, length - done));
      await this.#file.readv(HEADER_SIZE + done, [bytes]);
      const view = new DataView(bytes.buffer, bytes.byteOffset);
      for (let at = 0; at < bytes.length; at += ENTRY_SIZE) {
        const entry = view.getUint32(at, true);
        if (entry === 0) continue;
        const visited = visit((done + at) / ENTRY_SIZE, entry * entryUnit);
        if (visited) await visited;
      }
    }
  }

  /** Find the end of the last cluster. */
  async examine(): Promise<void> {
    this.#next = this.#header.dataOffset;
    await this.eachEntry((_, place) => {
      if (!this.isPlace(place)) return;
      this.#next = Math.max(this.#next, place + this.unit);
    });
  }

  /**
   * Whether a cluster can lie there. QEMU 11 makes images that have some before
   * what their headers call the start of the data.
   */
  isPlace(place: number): boolean {
    return place >= this.#header.tableEnd && place < this.#file.size;
  }

  /** Where a cluster lies, 0 if nowhere; `undefined` if not loaded yet. */
  #placeOf(index: number): number | undefined {
    const entry = this.#table.page(index)?.getUint32(
      this.#table.at(index),
      true,
    );
    return entry && entry * this.#header.entryUnit;
  }

  lookup(offset: number, length: number): Run | undefined {
    const { unit } = this;
    const first = Math.floor(offset / unit);
    const place = this.#placeOf(first);
    if (place === undefined) return undefined;
    const isData = place !== 0;
    if (isData && !this.isPlace(place)) return undefined;
    const end = divideUp(offset + length, unit);
    let next = first + 1;
    for (; next < end; next++) {
      const other = this.#placeOf(next);
      const expected = isData ? place + (next - first) * unit : 0;
      if (other !== expected || (isData && !this.isPlace(other))) break;
    }
    const run = Math.min(length, next * unit - offset);
    if (!isData) return { length: run, kind: "unallocated" };
    return {
      length: run,
      kind: "data",
      child: this.#file,
      childOffset: place + offset % unit,
    };
  }

  async find(offset: number, length: number): Promise<Run> {
    const index = Math.floor(offset / this.unit);
    for (;;) {
      const run = this.lookup(offset, length);
      if (run) return run;
      if (this.#placeOf(index) !== undefined) throw new BlockError("EIO");
      await this.#table.load(index);
    }
  }

  inPlace(offset: number, length: number): Place | undefined {
    const run = this.lookup(offset, length);
    return run?.kind === "data" ? run as Place : undefined;
  }

  async allocate(offset: number, length: number): Promise<Allocation> {
    const { kind, ...run } = await this.find(offset, length);
    if (kind === "data") return roomInPlace(offset, run as Place);
    const { unit } = this;
    const first = Math.floor(offset / unit);
    const count = divideUp(offset + run.length, unit) - first;
    const place = await this.reserve(count * unit);
    return {
      start: first * unit,
      length: count * unit,
      child: this.#file,
      childOffset: place,
      isZero: true,
      replaces: false,
      commit: async () => {
        for (let i = 0; i < count; i++) {
          await this.setPlace(first + i, place + i * unit);
        }
      },
      // There may be something now: others expect zeroes.
      abort: () => Promise.resolve(),
    };
  }

  /**
   * Take space at the end of the data, where the file ends then, before
   * anything is written there.
   */
  async reserve(length: number): Promise<number> {
    const place = this.#next;
    const end = place + length;
    if ((end - this.unit) / this.#header.entryUnit >= 2 ** 32) {
      throw new BlockError("EFBIG");
    }
    this.#next = end;
    try {
      using _ = await this.#growing.lock();
      if (!this.#isCut) await this.#cut(place);
      if (this.#file.size < end) await this.#file.truncate!(end);
    } catch (error) {
      if (this.#next === end) this.#next = place;
      throw error;
    }
    return place;
  }

  /** Cut off what lies behind the last cluster: it may not be zero. */
  async #cut(end: number): Promise<void> {
    if (this.#file.size > end) await this.#file.truncate!(end);
    this.#isCut = true;
  }

  /** Map a cluster to a place, or to none if that is 0. */
  async setPlace(index: number, place: number): Promise<void> {
    while (!this.#table.page(index)) await this.#table.load(index);
    this.#table.page(index)!.setUint32(
      this.#table.at(index),
      place / this.#header.entryUnit,
      true,
    );
    this.#table.changed(index);
  }

  /** Make all changes durable. */
  async flush(): Promise<void> {
    using _ = await this.#flushing.lock();
    const file = this.#file;
    if (!this.#table.isDirty) return await file.flush?.();
    await this.#table.writeChanges(async (changes) => {
      await file.flush?.();
      let at = 0;
      let iov: Uint8Array[] = [];
      for (const { offset, bytes } of changes) {
        if (iov.length > 0 && offset !== at + iov.length * UNIT) {
          await file.writev!(at, iov);
          iov = [];
        }
        if (iov.length === 0) at = offset;
        iov.push(bytes);
      }
      await file.writev!(at, iov);
      await file.flush?.();
    });
  }

  /** Cut off what is behind the last cluster, and write the rest of it. */
  async trim(): Promise<void> {
    using _ = await this.#growing.lock();
    const end = roundUp(this.#next, this.#header.entryUnit);
    if (this.#file.size !== end) await this.#file.truncate!(end);
  }
}
