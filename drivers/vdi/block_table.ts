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
import { readPadded } from "../../core/requests.ts";
import {
  BLOCK_SIZE,
  DISCARDED,
  ENTRY_SIZE,
  setBlocksAllocated,
  TYPE,
  UNALLOCATED,
  type VdiHeader,
} from "./header.ts";

const PAGE_BYTES = 64 * 1024;
const PAGE_ENTRIES = PAGE_BYTES / ENTRY_SIZE;
/** Most pages kept in memory, unless more are dirty. */
const MAX_PAGES = 256;

/** The block map. */
export class BlockTable implements BlockMap {
  readonly unit = BLOCK_SIZE;
  #file: BlockNode;
  readonly #header: VdiHeader;
  /** Pages by index, in the order of loading. */
  readonly #pages = new Map<number, DataView>();
  /** Indices of the map's dirty sectors. */
  #dirty = new Set<number>();
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
    this.#next = header.blocksAllocated;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
  }

  /** An entry of the map; `undefined` if its page must be loaded first. */
  entry(index: number): number | undefined {
    const page = this.#pages.get(Math.floor(index / PAGE_ENTRIES));
    return page?.getUint32(index % PAGE_ENTRIES * ENTRY_SIZE, true);
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
  async load(offset: number): Promise<void> {
    const index = Math.floor(offset / BLOCK_SIZE / PAGE_ENTRIES);
    const bytes = allocate(PAGE_BYTES);
    const start = this.#header.mapOffset + index * PAGE_BYTES;
    await readPadded(this.#file, start, [bytes]);
    // Another request may have loaded, and changed, it meanwhile.
    if (this.#pages.has(index)) return;
    this.#makeRoom();
    this.#pages.set(index, new DataView(bytes.buffer, bytes.byteOffset));
  }

  #makeRoom(): void {
    if (this.#pages.size < MAX_PAGES) return;
    const sectors = PAGE_BYTES / SECTOR_SIZE;
    const changed = new Set<number>();
    for (const sector of this.#dirty) {
      changed.add(Math.floor(sector / sectors));
    }
    for (const index of this.#pages.keys()) {
      if (changed.has(index)) continue;
      this.#pages.delete(index);
      return;
    }
  }

  async allocate(offset: number, length: number): Promise<Allocation> {
    const { kind, ...place } = await this.find(offset, length);
    if (kind === "data") return roomInPlace(offset, place as Place);
    return this.#newBlocks(offset, place.length);
  }

  #newBlocks(offset: number, length: number): Allocation {
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
    return {
      start,
      length: count * BLOCK_SIZE,
      child: this.#file,
      childOffset,
      isZero: childOffset >= this.#file.size,
      replaces: false,
      commit: () => this.#commit(first, block, count),
      abort: () => {
        for (let i = count; i-- > 0;) this.#spare.push(block + i);
        return Promise.resolve();
      },
    };
  }

  async #commit(first: number, block: number, count: number): Promise<void> {
    const end = this.#header.dataOffset + (block + count) * BLOCK_SIZE;
    await this.#grow(end);
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
   * end is never written.
   */
  async #grow(end: number): Promise<void> {
    using _ = await this.#growing.lock();
    if (this.#file.size < end) await this.#file.truncate!(end);
  }

  #setEntry(index: number, block: number): void {
    const page = this.#pages.get(Math.floor(index / PAGE_ENTRIES))!;
    page.setUint32(index % PAGE_ENTRIES * ENTRY_SIZE, block, true);
    this.#dirty.add(Math.floor(index * ENTRY_SIZE / SECTOR_SIZE));
  }

  /** Make all changes durable. */
  async flush(): Promise<void> {
    using _ = await this.#flushing.lock();
    const file = this.#file;
    await file.flush?.();
    if (this.#dirty.size === 0) return;
    const dirty = this.#dirty;
    this.#dirty = new Set();
    try {
      await file.writev!(0, [this.#header.bytes]);
      await file.flush?.();
      for (const sector of dirty) await this.#writeSector(sector);
      await file.flush?.();
    } catch (error) {
      for (const sector of dirty) this.#dirty.add(sector);
      throw error;
    }
  }

  async #writeSector(sector: number): Promise<void> {
    const at = sector * SECTOR_SIZE;
    const { buffer, byteOffset } = this.#pages.get(
      Math.floor(at / PAGE_BYTES),
    )!;
    const start = byteOffset + at % PAGE_BYTES;
    const bytes = new Uint8Array(buffer, start, SECTOR_SIZE).slice();
    await this.#file.writev!(this.#header.mapOffset + at, [bytes]);
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
  for (let at = 0; at < length; at += PAGE_BYTES) {
    const bytes = allocate(Math.min(PAGE_BYTES, length - at));
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
