/**
 * A cache of blocks of remote objects, with one budget for the whole process: a
 * base image shared by many overlays is fetched once.
 *
 * @module
 */

/** Bytes of a block: the least that one round trip fetches. */
export const BLOCK_SIZE = 64 * 1024;

/** Most bytes of all blocks together. */
const BUDGET = 32 * 1024 * 1024;

/** A block of an object. */
export interface Block {
  /** Its content, once it has been loaded. */
  readonly bytes: Uint8Array;
  /** Pending while it is being fetched. */
  loading?: Promise<void>;
  /** Whether anybody waits for it; if not, it is being read ahead. */
  isWanted: boolean;
}

/** Blocks, keyed by object and index; least recently used first. */
const blocks = new Map<number, Block>();
/** Blocks that have been read completely: they are evicted first. */
const spent = new Set<number>();
let used = 0;
let objects = 0;

/** Most blocks of one object, so that both numbers fit one. */
const MAX_BLOCKS = 2 ** 32;

/** The blocks of one object. */
export class ObjectBlocks {
  readonly #first = MAX_BLOCKS * objects++;

  /** A block that is cached or being fetched. */
  get(index: number): Block | undefined {
    return blocks.get(this.#first + index);
  }

  /** Note that a block was used; `whole` if it will hardly be needed again. */
  touch(index: number, whole: boolean): void {
    const key = this.#first + index;
    const block = blocks.get(key);
    if (!block) return;
    if (whole) {
      spent.add(key);
      return;
    }
    spent.delete(key);
    blocks.delete(key);
    blocks.set(key, block);
  }

  /** Add a block, evicting others if need be. */
  add(index: number, block: Block): void {
    this.delete(index);
    const key = this.#first + index;
    blocks.set(key, block);
    used += block.bytes.length;
    for (const key of spent) {
      if (used <= BUDGET) return;
      remove(key);
    }
    for (const [key, { loading }] of blocks) {
      if (used <= BUDGET) return;
      if (!loading) remove(key);
    }
  }

  /** Drop a block. */
  delete(index: number): void {
    remove(this.#first + index);
  }

  /** Drop all blocks. */
  clear(): void {
    const end = this.#first + MAX_BLOCKS;
    for (const key of blocks.keys()) {
      if (key >= this.#first && key < end) remove(key);
    }
  }
}

function remove(key: number): void {
  const block = blocks.get(key);
  if (!block) return;
  blocks.delete(key);
  spent.delete(key);
  used -= block.bytes.length;
}
