/**
 * The sector bitmaps of differencing VHDX images: a bit for each sector, from the
 * lowest bit of a byte up, which is set if the sector lies here and not in the
 * parent.
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import { SECTOR } from "./metadata.ts";

/** Most blocks whose bitmaps are kept; each has at most 64 KiB. */
const MAX_KEPT = 64;

/** The bitmaps of blocks that are partly present. They are only read. */
export class SectorBitmaps {
  #file: BlockNode;
  /** Bytes of a block's part of a bitmap. */
  readonly #length: number;
  /** By block, in the order in which they were read. */
  readonly #bitmaps = new Map<number, Uint8Array>();

  constructor(file: BlockNode, blockSize: number) {
    this.#file = file;
    this.#length = blockSize / SECTOR / 8;
  }

  /** Switch to another file with the same content. */
  useFile(file: BlockNode): void {
    this.#file = file;
  }

  /**
   * How many bytes of a block, from `offset` on and at most `most`, are all here
   * or all absent; `undefined` if the bitmap must be loaded first.
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
   * @param offset Where the bitmap of its chunk lies in the file.
   * @param index The block's number in its chunk.
   */
  async load(block: number, offset: number, index: number): Promise<void> {
    const bytes = allocate(this.#length);
    await readPadded(this.#file, offset + index * this.#length, [bytes]);
    if (this.#bitmaps.size >= MAX_KEPT) {
      this.#bitmaps.delete(this.#bitmaps.keys().next().value!);
    }
    this.#bitmaps.set(block, bytes);
  }
}

function bitAt(bitmap: Uint8Array, index: number): boolean {
  return (bitmap[index >> 3] & 1 << (index & 7)) !== 0;
}
