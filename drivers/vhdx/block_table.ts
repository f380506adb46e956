/**
 * The block allocation table of a VHDX image. An entry has the state of a block
 * and where in the file it lies. After as many entries as fill a chunk comes one
 * for a bitmap of the sectors that differencing images have of it.
 *
 * Changes wait in memory for a flush, and then go through the log.
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
import { allocate, divideUp, roundUp, viewOf } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { Mutex } from "../../core/lock.ts";
import type { BlockNode } from "../../core/node.ts";
import { PagedTable } from "../../core/paged_table.ts";
import { readPadded } from "../../core/requests.ts";
import { MIB } from "./headers.ts";
import type { Log } from "./log.ts";
import { LOG_SECTOR } from "./log_entry.ts";
import { type Metadata, SECTOR } from "./metadata.ts";
import { overlap, overlapText, type Regions } from "./regions.ts";
import { SectorBitmaps } from "./sector_bitmaps.ts";

const ENTRY_SIZE = 8;
/** Bytes of the table that are read at once. */
const SCAN_BYTES = MIB;
/** Bits of a bitmap of sectors, which is one block of 1 MiB. */
const CHUNK_SECTORS = 8 * MIB;

/** States of blocks. */
export const STATE = {
  NOT_PRESENT: 0,
  UNDEFINED: 1,
  ZERO: 2,
  UNMAPPED: 3,
  UNMAPPED_V095: 5,
  PRESENT: 6,
  PARTIAL: 7,
} as const;

/** How many blocks a disk has, and how their entries lie. */
export class TableShape {
  /** Blocks of the disk. */
  readonly blocks: number;
  /** Blocks of a chunk: a bitmap's entry comes after as many. */
  readonly ratio: number;
  /** Entries that the table must have. */
  readonly entries: number;

  constructor({ size, blockSize, parent }: Metadata) {
    this.blocks = divideUp(size, blockSize);
    this.ratio = CHUNK_SECTORS * SECTOR / blockSize;
    this.entries = parent
      ? divideUp(this.blocks, this.ratio) * (this.ratio + 1)
      : this.blocks && this.blocks + Math.floor((this.blocks - 1) / this.ratio);
  }

  /** The entry of a block. */
  entryOf(block: number): number {
    return block + Math.floor(block / this.ratio);
  }

  /** The entry of the bitmap that has a block's sectors. */
  bitmapOf(block: number): number {
    return Math.floor(block / this.ratio) * (this.ratio + 1) + this.ratio;
  }

  /** The block of an entry; `undefined` if it is a bitmap's. */
  blockOf(entry: number): number | undefined {
    const inChunk = entry % (this.ratio + 1);
    const chunk = Math.floor(entry / (this.ratio + 1));
    return inChunk === this.ratio ? undefined : chunk * this.ratio + inChunk;
  }
}

/** What the table says of a block. */
type Kind = "data" | "zero" | "unallocated" | "partial" | "damaged";

/** The block allocation table. */
export class BlockTable implements BlockMap {
  readonly unit: number;
  #file: BlockNode;
  readonly #metadata: Metadata;
  readonly #regions: Regions;
  readonly #log: Log;
  readonly #shape: TableShape;
  readonly #table: PagedTable;
  readonly #bitmaps: SectorBitmaps;
  /** Where the next block begins. */
  #next = 0;
  readonly #flushing = new Mutex();
  /** Held while the file grows: concurrent truncations could shrink it. */
  readonly #growing = new Mutex();

  constructor(
    file: BlockNode,
    metadata: Metadata,
    regions: Regions,
    log: Log,
  ) {
    this.unit = metadata.blockSize;
    this.#file = file;
    this.#metadata = metadata;
    this.#regions = regions;
    this.#log = log;
    this.#shape = new TableShape(metadata);
    this.#table = new PagedTable(file, {
      offset: regions.bat.offset,
      entrySize: ENTRY_SIZE,
      unit: LOG_SECTOR,
    });
    this.#bitmaps = new SectorBitmaps(file, metadata.blockSize);
  }

  /** Switch to another file with the same content, with the log and all else. */
  useFile(file: BlockNode): void {
    this.#file = file;
    this.#table.useFile(file);
    this.#bitmaps.useFile(file);
    this.#log.useFile(file);
    // Space behind the last block need not be zero.
    this.#next = Math.max(this.#next, roundUp(file.size, MIB));
  }

  /**
   * Look at all entries, and find the end of the last block.
   *
   * @param report Receives what is wrong with a block, in QEMU's words.
   * @returns how many lie where no block can be.
   */
  async examine(report: (line: string) => void): Promise<number> {
    const length = this.#shape.entries * ENTRY_SIZE;
    const bytes = allocate(Math.min(SCAN_BYTES, length));
    let end = roundUp(this.#file.size, MIB);
    let faults = 0;
    for (let done = 0; done < length; done += bytes.length) {
      const part = bytes.subarray(0, Math.min(bytes.length, length - done));
      await readPadded(this.#file, this.#regions.bat.offset + done, [part]);
      const view = viewOf(part);
      for (let at = 0; at < part.length; at += ENTRY_SIZE) {
        const state = stateAt(view, at);
        const isThere = state === STATE.PRESENT ||
          (state === STATE.PARTIAL && this.#metadata.parent !== undefined);
        if (!isThere) continue;
        const entry = (done + at) / ENTRY_SIZE;
        const block = this.#shape.blockOf(entry);
        if (block === undefined) continue;
        const offset = offsetAt(view, at);
        for (const problem of this.#problemsOf(entry, block, offset)) {
          report(problem);
          faults++;
        }
        end = Math.max(end, offset + this.unit);
      }
    }
    this.#next = Math.max(this.#next, end);
    return faults;
  }

  /** What is wrong with the place of a block. */
  *#problemsOf(
    entry: number,
    block: number,
    offset: number,
  ): Generator<string> {
    const { size: fileSize } = this.#file;
    const { size, blockSize } = this.#metadata;
    if (offset > 2 ** 63 - blockSize) {
      yield `VHDX BAT entry ${entry} offset overflow.`;
    }
    // QEMU made images of which the last block ends with the disk.
    const last = offset + Math.min(blockSize, size - block * blockSize);
    const pastEnd = (what: string, place: bigint) =>
      `VHDX BAT entry ${entry} ${what} offset ${place} points after ` +
      `end of file (${fileSize}). Image has probably been truncated.`;
    if (offset >= fileSize) yield pastEnd("start", BigInt(offset));
    else if (last > fileSize) yield pastEnd("end", BigInt(last) - 1n);
    const place = { offset, length: blockSize };
    const other = [{ offset: 0, length: MIB }, ...this.#regions.all]
      .find((other) => overlap(place, other));
    if (other) yield overlapText(place, other);
  }

  /** A block's entry; `undefined` if its page must be loaded first. */
  #kind(block: number): Kind | undefined {
    const entry = this.#shape.entryOf(block);
    const page = this.#table.page(entry);
    if (!page) return undefined;
    const hasParent = this.#metadata.parent !== undefined;
    switch (stateAt(page, this.#table.at(entry))) {
      case STATE.NOT_PRESENT:
        return hasParent ? "unallocated" : "zero";
      case STATE.UNDEFINED:
      case STATE.ZERO:
      case STATE.UNMAPPED:
      case STATE.UNMAPPED_V095:
        return "zero";
      case STATE.PRESENT:
        return "data";
      case STATE.PARTIAL:
        return hasParent ? "partial" : "damaged";
      default:
        return "damaged";
    }
  }

  /** Where a block lies whose entry is in memory. */
  #offset(block: number): number {
    const entry = this.#shape.entryOf(block);
    return offsetAt(this.#table.page(entry)!, this.#table.at(entry));
  }

  lookup(offset: number, length: number): Run | undefined {
    const { unit } = this;
    const first = Math.floor(offset / unit);
    const kind = this.#kind(first);
    if (kind === undefined || kind === "damaged") return undefined;
    if (kind === "partial") return this.#lookupPartial(first, offset, length);
    const isData = kind === "data";
    const place = isData ? this.#offset(first) : 0;
    const end = divideUp(offset + length, unit);
    let next = first + 1;
    for (; next < end && this.#kind(next) === kind; next++) {
      if (isData && this.#offset(next) !== place + (next - first) * unit) break;
    }
    const run = Math.min(length, next * unit - offset);
    if (!isData) return { length: run, kind };
    const childOffset = place + offset % unit;
    return { length: run, kind, child: this.#file, childOffset };
  }

  #lookupPartial(
    block: number,
    offset: number,
    length: number,
  ): Run | undefined {
    const inBlock = offset % this.unit;
    const most = Math.min(length, this.unit - inBlock);
    const run = this.#bitmaps.run(block, inBlock, most);
    if (!run) return undefined;
    if (!run.isHere) return { length: run.length, kind: "unallocated" };
    return {
      length: run.length,
      kind: "data",
      child: this.#file,
      childOffset: this.#offset(block) + inBlock,
    };
  }

  async find(offset: number, length: number): Promise<Run> {
    let run: Run | undefined;
    while (!(run = this.lookup(offset, length))) await this.#load(offset);
    return run;
  }

  /** Load the page of the table for an offset. */
  async #load(offset: number): Promise<void> {
    const block = Math.floor(offset / this.unit);
    switch (this.#kind(block)) {
      case undefined:
        return await this.#table.load(this.#shape.entryOf(block));
      case "damaged":
        throw new BlockError(
          "EIO",
          `The entry of block ${block} of the VHDX image is damaged`,
        );
      case "partial":
        return await this.#loadBitmap(block);
    }
  }

  async #loadBitmap(block: number): Promise<void> {
    const entry = this.#shape.bitmapOf(block);
    let page: DataView | undefined;
    while (!(page = this.#table.page(entry))) await this.#table.load(entry);
    const at = this.#table.at(entry);
    const offset = offsetAt(page, at);
    const isThere = stateAt(page, at) === STATE.PRESENT && offset >= MIB &&
      offset + MIB <= this.#file.size;
    if (!isThere) {
      throw new BlockError(
        "EIO",
        `The VHDX image lacks the sector bitmap of block ${block}`,
      );
    }
    await this.#bitmaps.load(block, offset, block % this.#shape.ratio);
  }

  inPlace(offset: number, length: number): Place | undefined {
    const run = this.lookup(offset, length);
    return run?.kind === "data" ? run as Place : undefined;
  }

  async allocate(offset: number, length: number): Promise<Allocation> {
    const { kind, ...place } = await this.find(offset, length);
    if (kind === "data") return roomInPlace(offset, place as Place);
    return await this.#newBlocks(offset, place.length);
  }

  async #newBlocks(offset: number, length: number): Promise<Allocation> {
    const { unit } = this;
    const first = Math.floor(offset / unit);
    const count = divideUp(offset + length, unit) - first;
    const childOffset = this.#next;
    this.#next += count * unit;
    await this.#grow(this.#next);
    return {
      start: first * unit,
      length: count * unit,
      child: this.#file,
      childOffset,
      // It is past the end of the file.
      isZero: true,
      replaces: false,
      commit: () => this.#commit(first, count, childOffset),
      // The next time that the image is opened, it can be used.
      abort: () => Promise.resolve(),
    };
  }

  async #commit(first: number, count: number, offset: number): Promise<void> {
    const { unit } = this;
    for (let i = 0; i < count; i++) {
      const entry = this.#shape.entryOf(first + i);
      let page: DataView | undefined;
      while (!(page = this.#table.page(entry))) await this.#table.load(entry);
      putEntry(page, this.#table.at(entry), STATE.PRESENT, offset + i * unit);
      this.#table.changed(entry);
    }
  }

  /**
   * Files of this format have whole blocks. They grow before anything is written
   * there: later, that might cut off what others have written behind.
   */
  async #grow(end: number): Promise<void> {
    using _ = await this.#growing.lock();
    if (this.#file.size < end) await this.#file.truncate!(end);
  }

  /** Make all that was written durable. */
  async flush(): Promise<void> {
    using _ = await this.#flushing.lock();
    if (!this.#table.isDirty) return await this.#file.flush?.();
    await this.#table.writeChanges((changes) => this.#log.write(changes));
  }
}

function stateAt(view: DataView, at: number): number {
  return view.getUint32(at, true) & 7;
}

/** An offset in bytes; one that is not exact is invalid anyway. */
function offsetAt(view: DataView, at: number): number {
  const low = view.getUint32(at, true);
  return view.getUint32(at + 4, true) * 2 ** 32 + (low - low % MIB);
}

function putEntry(
  view: DataView,
  at: number,
  state: number,
  offset: number,
): void {
  view.setUint32(at, offset % 2 ** 32 + state, true);
  view.setUint32(at + 4, Math.floor(offset / 2 ** 32), true);
}

/**
 * Write the table of a new image.
 *
 * @param offset Where it begins.
 * @param state Of all blocks.
 * @param dataOffset Where the first block begins; the others follow.
 */
export async function writeNewTable(
  file: BlockNode,
  offset: number,
  { metadata, state, dataOffset }: {
    metadata: Metadata;
    state: number;
    dataOffset: number;
  },
): Promise<void> {
  if (state === STATE.NOT_PRESENT) return;
  const shape = new TableShape(metadata);
  const length = shape.entries * ENTRY_SIZE;
  for (let done = 0; done < length; done += SCAN_BYTES) {
    const bytes = allocate(Math.min(SCAN_BYTES, length - done));
    const view = viewOf(bytes);
    for (let at = 0; at < bytes.length; at += ENTRY_SIZE) {
      const block = shape.blockOf((done + at) / ENTRY_SIZE);
      if (block === undefined) continue;
      const place = state === STATE.PRESENT
        ? dataOffset + block * metadata.blockSize
        : 0;
      putEntry(view, at, state, place);
    }
    await file.writev!(offset + done, [bytes]);
  }
}
