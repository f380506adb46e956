/**
 * The bitmaps with which blocks of a VHD image begin: a bit for each sector, the
 * highest of a byte first, which says whether the sector lies here.
 *
 * @module
 */
import { allocate, SECTOR_SIZE } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import type { DynamicHeader } from "./footer.ts";

/** Bytes of bitmaps that are kept, unless more have changed. */
const CACHE_BYTES = 4 * 1024 * 1024;
/** Full blocks that are remembered. */
const MAX_FULL = 65536;

/** New blocks whose bitmaps wait to be written. */
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
  /** Blocks of which all sectors are here: most of them. */
  readonly #full = new Set<number>();
  /** New ones whose bitmaps are not in the file yet, and where those go. */
  readonly #new = new Map<number, number>();
  /** The bitmaps of others, in the order in which they were read. */
  readonly #bitmaps = new Map<number, Uint8Array>();
  /** Those that differ from the file, and where they lie in it. */
  #dirty = new Map<number, number>();
  /** Those that are being written: read anew, they would be old. */
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
   * How many sectors of a block that is not full, from `sector` on, `most` at the
   * most, are here or are not here; `undefined` if the bitmap is to be loaded before.
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
    // Another one may have been faster, and have changed it since.
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

  /** Whether all sectors of a block are known to be here. */
  isFull(index: number): boolean {
    return this.#full.has(index) || this.#new.has(index);
  }

  /**
   * All sectors of a new block are here.
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

  /** Whether there are so many new ones that they had better be written. */
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
   * Sectors of a block whose bitmap is in memory have come to be here.
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

/** Bytes that the bitmap takes before a block of so many bytes. */
export function bitmapSize(blockSize: number): number {
  const sectors = blockSize / SECTOR_SIZE;
  return Math.ceil(sectors / 8 / SECTOR_SIZE) * SECTOR_SIZE;
}

function bitAt(bitmap: Uint8Array, index: number): boolean {
  return (bitmap[index >> 3] & 0x80 >> (index & 7)) !== 0;
}
