/**
 * Bitmaps that tell which sectors of a block are stored in it: a bit per
 * sector, the lowest of a byte first. Those of few blocks are kept in memory.
 *
 * @module
 */
import { allocate, divideUp, SECTOR_SIZE } from "./bytes.ts";
import { SharedLoads } from "./shared_loads.ts";

/** The bitmaps of an image, by block index. They do not change. */
export class SectorBitmaps {
  /** Bytes of a bitmap. */
  readonly #length: number;
  /** Most bitmaps that are kept. */
  readonly #most: number;
  /** In the order of loading. */
  readonly #bitmaps = new Map<number, Uint8Array>();
  readonly #loads = new SharedLoads();

  constructor(blockSize: number, most: number) {
    this.#length = divideUp(blockSize / SECTOR_SIZE, 8);
    this.#most = most;
  }

  /**
   * How many bytes from `offset` in a block on, at most `most`, are uniformly
   * present or absent; `undefined` if the bitmap must be loaded first.
   */
  run(
    block: number,
    offset: number,
    most: number,
  ): { isHere: boolean; length: number } | undefined {
    const bitmap = this.#bitmaps.get(block);
    if (!bitmap) return undefined;
    const first = Math.floor(offset / SECTOR_SIZE);
    const end = divideUp(offset + most, SECTOR_SIZE);
    const isHere = bitAt(bitmap, first);
    let next = first + 1;
    while (next < end && bitAt(bitmap, next) === isHere) next++;
    return { isHere, length: Math.min(most, next * SECTOR_SIZE - offset) };
  }

  /** Load the bitmap of a block, which `fill` reads, unless it is there. */
  async load(
    block: number,
    fill: (bitmap: Uint8Array) => Promise<void>,
  ): Promise<void> {
    if (this.#bitmaps.has(block)) return;
    const read = async () => {
      const bitmap = allocate(this.#length);
      await fill(bitmap);
      return bitmap;
    };
    await this.#loads.run(block, read, (bitmap) => {
      if (this.#bitmaps.size >= this.#most) {
        this.#bitmaps.delete(this.#bitmaps.keys().next().value!);
      }
      this.#bitmaps.set(block, bitmap);
    });
  }
}

function bitAt(bitmap: Uint8Array, index: number): boolean {
  return (bitmap[index >> 3] >> (index & 7) & 1) === 1;
}
