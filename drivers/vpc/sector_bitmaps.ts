/**
 * Sector bitmaps, with which the blocks of a VHD image begin: a bit per sector,
 * the highest of a byte first, which tells whether it is stored here.
 *
 * @module
 */
import { allocate, SECTOR_SIZE } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import { SharedLoads } from "../../core/shared_loads.ts";
import type { DynamicHeader } from "./footer.ts";

/** Bytes of bitmaps kept in memory, unless more have changed. */
const CACHE_BYTES = 4 * 1024 * 1024;
/** Most full blocks that are remembered. */
const MAX_FULL = 65536;

/** Most new blocks whose bitmaps have not been written. */
const MAX_NEW = 1024;

/** A bitmap that differs from the file. */
export interface ChangedBitmap {
  /** Its offset in the file. */
  readonly offset: number;
  /** A copy of its new content. */
  readonly bytes: Uint8Array;
}

/** The bitmaps of an image, by block index. */
export class SectorBitmaps {
  /** Bytes of a stored bitmap. */
  readonly size: number;
  #file: BlockNode;
  readonly #sectors: number;
  /** Blocks whose sectors are all present, as in most. */
  readonly #full = new Set<number>();
  /** New blocks whose bitmaps are not in the file yet, and their offsets. */
  readonly #new = new Map<number, number>();
  /** The other bitmaps, in the order of loading. */
  readonly #bitmaps = new Map<number, Uint8Array>();
  readonly #loads = new SharedLoads();
  /** Bitmaps that differ from the file, and their offsets. */
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

  /** Whether there are changes to be written. */
  get isDirty(): boolean {
    return this.#dirty.size > 0;
  }

  /**
   * How many sectors of a block that is not full, from `sector` on and at most
   * `most`, are uniformly present or absent; `undefined` if the bitmap must be
   * loaded first.
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

  /** Load a block's bitmap from an offset of the file. */
  load(index: number, offset: number): Promise<void> {
    const read = async () => {
      const bytes = allocate(this.size);
      await readPadded(this.#file, offset, [bytes]);
      return bytes;
    };
    return this.#loads.run(index, read, (bytes) => {
      this.#makeRoom();
      this.#bitmaps.set(index, bytes);
      const whole = this.run(index, 0, this.#sectors)!;
      if (whole.isHere && whole.count === this.#sectors) this.#addFull(index);
    });
  }

  #makeRoom(): void {
    if ((this.#bitmaps.size + 1) * this.size <= CACHE_BYTES) return;
    for (const index of this.#bitmaps.keys()) {
      if (this.#dirty.has(index) || this.#writing.has(index)) continue;
      this.#bitmaps.delete(index);
      return;
    }
  }

  /** Whether all sectors of a block are known to be present. */
  isFull(index: number): boolean {
    return this.#full.has(index) || this.#new.has(index);
  }

  /**
   * Mark all sectors of a new block as present.
   *
   * @param offset Offset of its bitmap in the file.
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

  /** Whether so many blocks are new that their bitmaps should be written. */
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
   * Mark sectors as present in a block whose bitmap is in memory.
   *
   * @param offset Offset of the bitmap in the file.
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

/** Bytes of the bitmap of a block with this size. */
export function bitmapSize(blockSize: number): number {
  const sectors = blockSize / SECTOR_SIZE;
  return Math.ceil(sectors / 8 / SECTOR_SIZE) * SECTOR_SIZE;
}

function bitAt(bitmap: Uint8Array, index: number): boolean {
  return (bitmap[index >> 3] & 0x80 >> (index & 7)) !== 0;
}
