/**
 * Sector bitmaps of differencing VHDX images: a bit per sector, the lowest of a
 * byte first, which tells whether it is stored here or in the parent.
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import { SharedLoads } from "../../core/shared_loads.ts";
import { SECTOR } from "./metadata.ts";

/** Blocks whose bitmaps are kept in memory; each has at most 64 KiB. */
const MAX_KEPT = 64;

/** The bitmaps of partially present blocks, read-only. */
export class SectorBitmaps {
  #file: BlockNode;
  /** Bytes of one block's bits in a bitmap. */
  readonly #length: number;
  /** By block, in the order of loading. */
  readonly #bitmaps = new Map<number, Uint8Array>();
  readonly #loads = new SharedLoads();

  constructor(file: BlockNode, blockSize: number) {
    this.#file = file;
    this.#length = blockSize / SECTOR / 8;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
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
    const first = Math.floor(offset / SECTOR);
    const end = Math.ceil((offset + most) / SECTOR);
    const isHere = bitAt(bitmap, first);
    let next = first + 1;
    while (next < end && bitAt(bitmap, next) === isHere) next++;
    return { isHere, length: Math.min(most, next * SECTOR - offset) };
  }

  /**
   * Load the bitmap of a block.
   *
   * @param offset Offset of its chunk's bitmap in the file.
   * @param index Index of the block in its chunk.
   */
  load(block: number, offset: number, index: number): Promise<void> {
    const read = async () => {
      const bytes = allocate(this.#length);
      const start = offset + index * this.#length;
      await readPadded(this.#file, start, [bytes]);
      return bytes;
    };
    return this.#loads.run(block, read, (bytes) => {
      if (this.#bitmaps.size >= MAX_KEPT) {
        this.#bitmaps.delete(this.#bitmaps.keys().next().value!);
      }
      this.#bitmaps.set(block, bytes);
    });
  }
}

function bitAt(bitmap: Uint8Array, index: number): boolean {
  return (bitmap[index >> 3] & 1 << (index & 7)) !== 0;
}
