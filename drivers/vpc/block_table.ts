/**
 * The block allocation table of a dynamic VHD image. An entry is the sector at
 * which a block begins, with the bitmap of its sectors.
 *
 * What a bitmap does not claim reads as zeroes; of a differencing image, as its
 * parent.
 *
 * Changes wait in memory for a flush, which is when they are promised to be
 * durable. **Write order**: data, bitmaps of new blocks, and the footer behind
 * them; then, when those are durable, the table and other bitmaps. Until then
 * the image has no footer at its end, or one with blocks behind it that nothing
 * refers to; the copy at its start is never written.
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
import {
  allocate,
  divideUp,
  roundDown,
  roundUp,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import { Mutex } from "../../core/lock.ts";
import type { BlockNode } from "../../core/node.ts";
import { PagedTable } from "../../core/paged_table.ts";
import { readPadded } from "../../core/requests.ts";
import {
  DYNAMIC_HEADER_SIZE,
  type DynamicHeader,
  type Footer,
  FOOTER_SIZE,
  isSound,
  truncated,
  TYPE,
  UNALLOCATED,
} from "./footer.ts";
import { SectorBitmaps } from "./sector_bitmaps.ts";

const ENTRY_SIZE = 4;
/** Bytes of the table that are read at once. */
const SCAN_BYTES = 1024 * 1024;

/** The block allocation table. */
export class BlockTable implements BlockMap {
  readonly unit: number;
  #file: BlockNode;
  readonly #footer: Footer;
  readonly #header: DynamicHeader;
  readonly #table: PagedTable;
  readonly #bitmaps: SectorBitmaps;
  /** Where the next block begins, which is where the footer belongs. */
  #next = 0;
  /** Where the footer is. */
  #footerAt = 0;
  readonly #flushing = new Mutex();
  /** Held while the footer is overwritten, or the file grows. */
  readonly #end = new Mutex();

  constructor(file: BlockNode, footer: Footer, header: DynamicHeader) {
    this.unit = header.blockSize;
    this.#file = file;
    this.#footer = footer;
    this.#header = header;
    this.#table = new PagedTable(file, {
      offset: header.tableOffset,
      entrySize: ENTRY_SIZE,
      unit: SECTOR_SIZE,
    });
    this.#bitmaps = new SectorBitmaps(file, header);
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
    this.#table.useFile(file);
    this.#bitmaps.useFile(file);
  }

  /**
   * Look at all entries, and find the end of the last block.
   *
   * @throws {BlockError} EINVAL if a block lies where none can be.
   */
  async examine(): Promise<void> {
    const { tableOffset, entries } = this.#header;
    const length = entries * ENTRY_SIZE;
    let end = roundUp(tableOffset + length, SECTOR_SIZE);
    const bytes = allocate(Math.min(SCAN_BYTES, length));
    for (let done = 0; done < length; done += bytes.length) {
      const part = bytes.subarray(0, Math.min(bytes.length, length - done));
      await readPadded(this.#file, tableOffset + done, [part]);
      const view = new DataView(part.buffer, part.byteOffset, part.length);
      for (let at = 0; at < part.length; at += ENTRY_SIZE) {
        const entry = view.getUint32(at);
        if (entry === UNALLOCATED) continue;
        const index = (done + at) / ENTRY_SIZE;
        end = Math.max(end, this.#checkedEnd(index, entry));
      }
    }
    const fileEnd = roundUp(this.#file.size, SECTOR_SIZE);
    if (end > fileEnd) throw truncated();
    this.#next = fileEnd;
    if (fileEnd - FOOTER_SIZE < end) return;
    const last = allocate(FOOTER_SIZE);
    await readPadded(this.#file, fileEnd - FOOTER_SIZE, [last]);
    if (!isSound(last)) return;
    this.#next = this.#footerAt = fileEnd - FOOTER_SIZE;
  }

  /** The end of a block, which must not overlap metadata. */
  #checkedEnd(index: number, entry: number): number {
    const { tableOffset, entries, blockSize } = this.#header;
    const start = entry * SECTOR_SIZE;
    const end = start + this.#bitmaps.size + blockSize;
    const headerAt = Number(this.#footer.dataOffset);
    const overlaps = (offset: number, length: number) =>
      start < offset + length && offset < end;
    if (
      overlaps(0, FOOTER_SIZE) || overlaps(headerAt, DYNAMIC_HEADER_SIZE) ||
      overlaps(tableOffset, entries * ENTRY_SIZE)
    ) {
      throw invalid(
        `block ${index} of the VHD image lies over its headers`,
      );
    }
    return end;
  }

  /** An entry; `undefined` if its page must be loaded first. */
  #entry(index: number): number | undefined {
    return this.#table.page(index)?.getUint32(this.#table.at(index));
  }

  lookup(offset: number, length: number): Run | undefined {
    const { blockSize } = this.#header;
    const index = Math.floor(offset / blockSize);
    const entry = this.#entry(index);
    if (entry === undefined) return undefined;
    if (entry === UNALLOCATED) {
      const end = divideUp(offset + length, blockSize);
      let next = index + 1;
      while (next < end && this.#entry(next) === UNALLOCATED) next++;
      return this.#nothing(Math.min(length, next * blockSize - offset));
    }
    const inBlock = offset % blockSize;
    const first = Math.floor(inBlock / SECTOR_SIZE);
    const last = Math.min(blockSize, inBlock + length);
    const most = divideUp(last, SECTOR_SIZE) - first;
    const sectors = this.#bitmaps.run(index, first, most);
    if (!sectors) return undefined;
    const end = (first + sectors.count) * SECTOR_SIZE;
    const run = Math.min(length, end - inBlock);
    if (!sectors.isHere) return this.#nothing(run);
    return {
      length: run,
      kind: "data",
      child: this.#file,
      childOffset: entry * SECTOR_SIZE + this.#bitmaps.size + inBlock,
    };
  }

  #nothing(length: number): Run {
    const isLeft = this.#footer.type === TYPE.DIFFERENCING;
    return { length, kind: isLeft ? "unallocated" : "zero" };
  }

  async find(offset: number, length: number): Promise<Run> {
    let run: Run | undefined;
    while (!(run = this.lookup(offset, length))) await this.#load(offset);
    return run;
  }

  /** Load the page of the table for an offset. */
  async #load(offset: number): Promise<void> {
    const index = Math.floor(offset / this.#header.blockSize);
    const entry = this.#entry(index);
    if (entry === undefined) await this.#table.load(index);
    else if (entry !== UNALLOCATED) {
      await this.#bitmaps.load(index, entry * SECTOR_SIZE);
    }
  }

  inPlace(offset: number, length: number): Place | undefined {
    const run = this.lookup(offset, length);
    return run?.kind === "data" ? run as Place : undefined;
  }

  async allocate(offset: number, length: number): Promise<Allocation> {
    const { kind, ...place } = await this.find(offset, length);
    if (kind === "data") return roomInPlace(offset, place as Place);
    const index = Math.floor(offset / this.#header.blockSize);
    const entry = this.#entry(index);
    return entry === undefined || entry === UNALLOCATED
      ? await this.#newBlock(index)
      : this.#newSectors(index, entry, offset, place.length);
  }

  /** Allocate sectors of a block that is in the file already. */
  #newSectors(
    index: number,
    entry: number,
    offset: number,
    length: number,
  ): Allocation {
    const { blockSize } = this.#header;
    const start = roundDown(offset, SECTOR_SIZE);
    const end = roundUp(offset + length, SECTOR_SIZE);
    const inBlock = start % blockSize;
    return {
      start,
      length: end - start,
      child: this.#file,
      childOffset: entry * SECTOR_SIZE + this.#bitmaps.size + inBlock,
      isZero: false,
      replaces: false,
      commit: async () => {
        // It may have been evicted since.
        while (!this.lookup(start, 1)) await this.#load(start);
        const [first, count] = [inBlock, end - start].map((bytes) =>
          bytes / SECTOR_SIZE
        );
        this.#bitmaps.set(index, entry * SECTOR_SIZE, first, count);
      },
      abort: () => Promise.resolve(),
    };
  }

  async #newBlock(index: number): Promise<Allocation> {
    const { blockSize } = this.#header;
    const block = this.#next;
    if (block / SECTOR_SIZE >= UNALLOCATED) throw new BlockError("EFBIG");
    const childOffset = block + this.#bitmaps.size;
    this.#next = childOffset + blockSize;
    await this.#grow(childOffset + blockSize);
    return {
      start: index * blockSize,
      length: blockSize,
      child: this.#file,
      childOffset,
      // Of what was there, only the footer, which is where the bitmap goes.
      isZero: true,
      replaces: false,
      commit: () => this.#commit(index, block),
      // The next time that the image is opened, it can be used.
      abort: () => Promise.resolve(),
    };
  }

  async #commit(index: number, block: number): Promise<void> {
    const bitmap = allocate(this.#bitmaps.size).fill(0xff);
    {
      using _ = await this.#end.lock();
      await this.#file.writev!(block, [bitmap]);
    }
    while (this.#entry(index) === undefined) await this.#table.load(index);
    this.#table.page(index)!.setUint32(
      this.#table.at(index),
      block / SECTOR_SIZE,
    );
    this.#table.changed(index);
    this.#bitmaps.fill(index);
  }

  /**
   * Grow the file to whole blocks, before anything is written there: later, it
   * might cut off what others have written behind.
   */
  async #grow(end: number): Promise<void> {
    using _ = await this.#end.lock();
    if (this.#file.size < end) await this.#file.truncate!(end);
  }

  /** Make all that was written durable. */
  async flush(): Promise<void> {
    using _ = await this.#flushing.lock();
    if (!this.#table.isDirty && !this.#bitmaps.isDirty) {
      return await this.#file.flush?.();
    }
    await this.#writeFooter();
    await this.#table.writeChanges((units) =>
      this.#bitmaps.writeChanges(async (bitmaps) => {
        await this.#file.flush?.();
        for (const { offset, bytes } of [...units, ...bitmaps]) {
          await this.#file.writev!(offset, [bytes]);
        }
        await this.#file.flush?.();
      })
    );
  }

  async #writeFooter(): Promise<void> {
    using _ = await this.#end.lock();
    if (this.#footerAt === this.#next) return;
    const at = this.#next;
    await this.#file.writev!(at, [this.#footer.bytes]);
    this.#footerAt = at;
  }
}

/** Write the table of a new image. */
export async function writeNewTable(
  file: BlockNode,
  offset: number,
  entries: number,
): Promise<void> {
  const length = roundUp(entries * ENTRY_SIZE, SECTOR_SIZE);
  const bytes = allocate(Math.min(SCAN_BYTES, length)).fill(0xff);
  for (let done = 0; done < length; done += bytes.length) {
    const part = bytes.subarray(0, Math.min(bytes.length, length - done));
    await file.writev!(offset + done, [part]);
  }
}
