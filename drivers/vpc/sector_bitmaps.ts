/**
 * The bitmaps with which blocks of a VHD image begin: a bit for each sector, from
 * the highest bit of a byte down, which is set if the image holds the sector.
 *
 * @module
 */
import { allocate, SECTOR_SIZE } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import type { DynamicHeader } from "./footer.ts";

/** Bytes of bitmaps that are cached; changed ones are kept in any case. */
const CACHE_BYTES = 4 * 1024 * 1024;
/** Most blocks that are remembered as full. */
const MAX_FULL = 65536;

/** Most new blocks whose bitmaps wait to be written. */
const MAX_NEW = 1024;

/** A bitmap that differs from the file. */
export interface ChangedBitmap {
  /** Its first byte in the file. */
  readonly offset: number;
  /** A copy of what it is to become. */
  readonly bytes: Uint8Array;
}

/** The bitmaps of an image, by the index of their block. */
export class SectorBitmaps {
  /** Bytes of each in the file. */
  readonly size: number;
  #file: BlockNode;
  readonly #sectors: number;
  /** Blocks that have all their sectors, as most do. */
  readonly #full = new Set<number>();
  /** New blocks whose bitmaps are not in the file yet, and where those go. */
  readonly #new = new Map<number, number>();
  /** The bitmaps of other blocks, in the order in which they were read. */
  readonly #bitmaps = new Map<number, Uint8Array>();
  /** Those that differ from the file, and where they lie in it. */
  #dirty = new Map<number, number>();
  /** Those being written: the file still has the old content. */
  #writing = new Map<number, number>();

  constructor(file: BlockNode, { blockSize }: DynamicHeader) {
    this.#file = file;
    this.#sectors = blockSize / SECTOR_SIZE;
    this.size = bitmapSize(blockSize);
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
  }

  /** Whether there is something to be written. */
  get isDirty(): boolean {
    return this.#dirty.size > 0;
  }

  /**
   * How many sectors of a block that is not full, from `sector` on and at most
   * `most`, are all here or all absent; `undefined` if the bitmap must be loaded
   * first.
   */
  run(
    index: number,
    sector: number,
    most: number,
  ): { isHere: boolean; count: number } | undefined {
    const bitmap = this.#bitmaps.get(index);
    if (!bitmap) return undefined;
    const isHere = bitAt(bitmap, sector);
    const uniform = isHere ? 0xff : 0;
    let next = sector + 1;
    while (next < sector + most) {
      if (next % 8 === 0 && bitmap[next / 8] === uniform) next += 8;
      else if (bitAt(bitmap, next) === isHere) next++;
      else break;
    }
    return { isHere, count: Math.min(most, next - sector) };
  }

  /** Load the bitmap of a block that lies at an offset of the file. */
  async load(index: number, offset: number): Promise<void> {
    const bytes = allocate(this.size);
    await readPadded(this.#file, offset, [bytes]);
    // Another request may have loaded it first, and have changed it since.
    if (this.isFull(index) || this.#bitmaps.has(index)) return;
    this.#makeRoom();
    this.#bitmaps.set(index, bytes);
    const whole = this.run(index, 0, this.#sectors)!;
    if (whole.isHere && whole.count === this.#sectors) this.#addFull(index);
  }

  #makeRoom(): void {
    if ((this.#bitmaps.size + 1) * this.size <= CACHE_BYTES) return;
    for (const index of this.#bitmaps.keys()) {
      if (this.#dirty.has(index) || this.#writing.has(index)) continue;
      this.#bitmaps.delete(index);
      return;
    }
  }

  /** Whether a block is known to have all its sectors. */
  isFull(index: number): boolean {
    return this.#full.has(index) || this.#new.has(index);
  }

  /**
   * Note that a new block has all its sectors.
   *
   * @param offset Where its bitmap goes in the file.
   */
  fill(index: number, offset: number): void {
    this.#new.set(index, offset);
    this.#addFull(index);
  }

  #addFull(index: number): void {
    if (this.#full.size >= MAX_FULL) this.#full.clear();
    this.#full.add(index);
    this.#bitmaps.delete(index);
  }

  /** Whether so many are new that it is time to write their bitmaps. */
  get manyAreNew(): boolean {
    return this.#new.size >= MAX_NEW;
  }

  /** Write the bitmaps of new blocks. */
  async writeNew(): Promise<void> {
    const bitmap = allocate(this.size).fill(0xff);
    for (const [index, offset] of this.#new) {
      await this.#file.writev!(offset, [bitmap]);
      this.#new.delete(index);
    }
  }

  /**
   * Mark sectors of a block, whose bitmap is in memory, as present.
   *
   * @param offset Where the bitmap lies in the file.
   */
  set(index: number, offset: number, first: number, count: number): void {
    const bitmap = this.#bitmaps.get(index)!;
    for (let i = first; i < first + count; i++) {
      bitmap[i >> 3] |= 0x80 >> (i & 7);
    }
    this.#dirty.set(index, offset);
  }

  /** As `PagedTable.writeChanges`. */
  async writeChanges(
    write: (changes: readonly ChangedBitmap[]) => Promise<void>,
  ): Promise<void> {
    this.#writing = this.#dirty;
    this.#dirty = new Map();
    try {
      await write(
        [...this.#writing].map(([index, offset]) => ({
          offset,
          bytes: this.#bitmaps.get(index)!.slice(),
        })),
      );
    } catch (error) {
      for (const one of this.#writing) this.#dirty.set(...one);
      throw error;
    } finally {
      this.#writing = new Map();
    }
  }
}

/** Bytes of the bitmap before a block of a size. */
export function bitmapSize(blockSize: number): number {
  const sectors = blockSize / SECTOR_SIZE;
  return Math.ceil(sectors / 8 / SECTOR_SIZE) * SECTOR_SIZE;
}

function bitAt(bitmap: Uint8Array, index: number): boolean {
  return (bitmap[index >> 3] & 0x80 >> (index & 7)) !== 0;
}
