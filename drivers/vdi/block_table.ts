/**
 * The block map of a VDI image, in pages that are loaded on demand.
 *
 * Changes stay in memory until a flush, which has to make them durable. **Write
 * order**: the data; then the header, whose block count gives the next free
 * number (a count that is too high wastes space, one that is too low would
 * allocate a block twice); then the map.
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
import { allocate, divideUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { Mutex } from "../../core/lock.ts";
import type { BlockNode } from "../../core/node.ts";
import { PagedTable } from "../../core/paged_table.ts";
import {
  BLOCK_SIZE,
  DISCARDED,
  ENTRY_SIZE,
  setBlocksAllocated,
  TYPE,
  UNALLOCATED,
  type VdiHeader,
} from "./header.ts";

/** Bytes of a new map that are written at once. */
const CHUNK_BYTES = 64 * 1024;

/** The block map. */
export class BlockTable implements BlockMap {
  readonly unit = BLOCK_SIZE;
  #file: BlockNode;
  readonly #header: VdiHeader;
  readonly #table: PagedTable;
  /** The number of the next block. */
  #next: number;
  /** Lower numbers whose allocation was aborted. */
  readonly #spare: number[] = [];
  readonly #flushing = new Mutex();
  /** Held while the file grows: concurrent truncations could shrink it. */
  readonly #growing = new Mutex();

  constructor(file: BlockNode, header: VdiHeader) {
    this.#file = file;
    this.#header = header;
    this.#table = new PagedTable(file, {
      offset: header.mapOffset,
      entrySize: ENTRY_SIZE,
      unit: SECTOR_SIZE,
    });
    this.#next = header.blocksAllocated;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
    this.#table.useFile(file);
  }

  /** An entry of the map; `undefined` if its page must be loaded first. */
  entry(index: number): number | undefined {
    return this.#table.page(index)?.getUint32(this.#table.at(index), true);
  }

  lookup(offset: number, length: number): Run | undefined {
    const { dataOffset } = this.#header;
    const first = Math.floor(offset / BLOCK_SIZE);
    const block = this.entry(first);
    if (block === undefined) return undefined;
    const end = divideUp(offset + length, BLOCK_SIZE);
    const isData = hasPlace(block);
    let next = first + 1;
    for (; next < end; next++) {
      const other = this.entry(next);
      if (other === undefined || hasPlace(other) !== isData) break;
      if (isData && other !== block + next - first) break;
    }
    const run = Math.min(length, next * BLOCK_SIZE - offset);
    if (!isData) return { length: run, kind: "zero" };
    return {
      length: run,
      kind: "data",
      child: this.#file,
      childOffset: dataOffset + block * BLOCK_SIZE + offset % BLOCK_SIZE,
    };
  }

  async find(offset: number, length: number): Promise<Run> {
    let run: Run | undefined;
    while (!(run = this.lookup(offset, length))) await this.load(offset);
    return run;
  }

  inPlace(offset: number, length: number): Place | undefined {
    const run = this.lookup(offset, length);
    return run?.kind === "data" ? run as Place : undefined;
  }

  mayHaveHoles(): boolean {
    return this.#header.type === TYPE.STATIC;
  }

  /** Load the page of the map for an offset. */
  load(offset: number): Promise<void> {
    return this.#table.load(Math.floor(offset / BLOCK_SIZE));
  }

  async allocate(offset: number, length: number): Promise<Allocation> {
    const { kind, ...place } = await this.find(offset, length);
    if (kind === "data") return roomInPlace(offset, place as Place);
    return await this.#newBlocks(offset, place.length);
  }

  async #newBlocks(offset: number, length: number): Promise<Allocation> {
    const { dataOffset } = this.#header;
    const first = Math.floor(offset / BLOCK_SIZE);
    const spare = this.#spare.pop();
    const count = spare === undefined
      ? divideUp(offset + length, BLOCK_SIZE) - first
      : 1;
    const block = spare ?? this.#next;
    if (spare === undefined) this.#next += count;
    const start = first * BLOCK_SIZE;
    const childOffset = dataOffset + block * BLOCK_SIZE;
    const isZero = childOffset >= this.#file.size;
    const giveBack = () => {
      for (let i = count; i-- > 0;) this.#spare.push(block + i);
    };
    try {
      await this.#grow(childOffset + count * BLOCK_SIZE);
    } catch (error) {
      giveBack();
      throw error;
    }
    return {
      start,
      length: count * BLOCK_SIZE,
      child: this.#file,
      childOffset,
      isZero,
      replaces: false,
      commit: () => this.#commit(first, block, count),
      // deno-lint-ignore require-await -- the interface is asynchronous
      abort: async () => giveBack(),
    };
  }

  async #commit(first: number, block: number, count: number): Promise<void> {
    for (let i = 0; i < count; i++) {
      while (this.entry(first + i) === undefined) {
        await this.load((first + i) * BLOCK_SIZE);
      }
      this.#setEntry(first + i, block + i);
    }
    const used = Math.max(this.#header.blocksAllocated, block + count);
    setBlocksAllocated(this.#header, used);
  }

  /**
   * Grow the file to whole blocks, which other programs expect, even if their
   * end is never written. That comes before anything is written there: later,
   * it might cut off what others have written behind.
   */
  async #grow(end: number): Promise<void> {
    using _ = await this.#growing.lock();
    if (this.#file.size < end) await this.#file.truncate!(end);
  }

  #setEntry(index: number, block: number): void {
    this.#table.page(index)!.setUint32(this.#table.at(index), block, true);
    this.#table.changed(index);
  }

  /** Make all changes durable. */
  async flush(): Promise<void> {
    using _ = await this.#flushing.lock();
    const file = this.#file;
    if (!this.#table.isDirty) return await file.flush?.();
    await this.#table.writeChanges(async (changes) => {
      await file.flush?.();
      await file.writev!(0, [this.#header.bytes]);
      await file.flush?.();
      for (const { offset, bytes } of changes) {
        await file.writev!(offset, [bytes]);
      }
      await file.flush?.();
    });
  }
}

/** Whether a block is allocated in the file. */
export function hasPlace(entry: number): boolean {
  return entry !== UNALLOCATED && entry !== DISCARDED;
}

/** Write the block map of a new image. */
export async function writeNewTable(
  file: BlockNode,
  { mapOffset, dataOffset, blocks, type }: VdiHeader,
): Promise<void> {
  const length = dataOffset - mapOffset;
  for (let at = 0; at < length; at += CHUNK_BYTES) {
    const bytes = allocate(Math.min(CHUNK_BYTES, length - at));
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    const first = at / ENTRY_SIZE;
    const end = Math.min(first + bytes.length / ENTRY_SIZE, blocks);
    for (let index = first; index < end; index++) {
      const entry = type === TYPE.STATIC ? index : UNALLOCATED;
      view.setUint32((index - first) * ENTRY_SIZE, entry, true);
    }
    await file.writev!(mapOffset + at, [bytes]);
  }
}
