/**
 * Bytes in memory: what the driver `memory` opens.
 *
 * @module
 */
import { isExactSize } from "./bytes.ts";
import { invalid } from "./errors.ts";
import { valueText } from "./values.ts";

const CHUNK_SIZE = 64 * 1024;

/**
 * Bytes in memory that outlive the nodes opened on them. Only written chunks
 * take up memory, so a store of terabytes costs nothing.
 *
 * @example
 * ```ts
 * import { MemoryStore, openImage } from "@bdrv/bdrv";
 * const store = new MemoryStore(1024 ** 4);
 * await using image = await openImage({
 *   driver: "raw",
 *   file: { driver: "memory", store },
 * });
 * await image.write(1_000_000_000_000, new Uint8Array([1, 2, 3]));
 * console.log(store.allocated); // 65536
 * ```
 *
 * @category Images
 */
export class MemoryStore {
  readonly #chunks = new Map<number, Uint8Array>();
  #size: number;

  /** Create a store of `size` zero bytes. */
  constructor(size = 0) {
    if (!Number.isSafeInteger(size) || size < 0) {
      throw invalid(`Cannot create a store of ${valueText(size)} bytes`);
    }
    this.#size = size;
  }

  /** Its size in bytes. */
  get size(): number {
    return this.#size;
  }

  /** Bytes of memory it takes up. */
  get allocated(): number {
    return this.#chunks.size * CHUNK_SIZE;
  }

  /** Fill `target` from `offset` on, with zeroes past the end. */
  read(offset: number, target: Uint8Array): void {
    checkBytes("read into", offset, target);
    eachPiece(offset, target.length, (index, start, length, done) => {
      const chunk = this.#chunks.get(index);
      if (chunk) target.set(chunk.subarray(start, start + length), done);
      else target.fill(0, done, done + length);
    });
  }

  /** Write `data`, growing the store if need be. */
  write(offset: number, data: Uint8Array): void {
    checkBytes("write", offset, data);
    eachPiece(offset, data.length, (index, start, length, done) => {
      let chunk = this.#chunks.get(index);
      if (!chunk) {
        chunk = new Uint8Array(CHUNK_SIZE);
        this.#chunks.set(index, chunk);
      }
      chunk.set(data.subarray(done, done + length), start);
    });
    this.#size = Math.max(this.#size, offset + data.length);
  }

  /** Make a range read as zeroes; whole chunks are freed. */
  zero(offset: number, length: number): void {
    checkRange("write zeroes", offset, length);
    this.#clear(offset, Math.min(length, this.#size - offset));
    this.#size = Math.max(this.#size, offset + length);
  }

  /** Change the size; a new area reads as zeroes. */
  truncate(size: number): void {
    checkRange("cut a store off", size, 0);
    this.#clear(size, this.#size - size);
    this.#size = size;
  }

  #clear(offset: number, length: number): void {
    if (length <= 0) return;
    const end = offset + length;
    const isLast = end >= this.#size;
    const clear = (chunk: Uint8Array, index: number) => {
      const base = index * CHUNK_SIZE;
      const start = Math.max(0, offset - base);
      // The last chunk may be freed up to its end.
      const stop = isLast ? CHUNK_SIZE : Math.min(CHUNK_SIZE, end - base);
      if (start === 0 && stop === CHUNK_SIZE) this.#chunks.delete(index);
      else if (start < stop) chunk.fill(0, start, stop);
    };
    const [first, last] = [chunkIndex(offset), chunkIndex(end - 1)];
    if (last - first > this.#chunks.size) {
      for (const [index, chunk] of this.#chunks) {
        if (index >= first && index <= last) clear(chunk, index);
      }
      return;
    }
    for (let index = first; index <= last; index++) {
      const chunk = this.#chunks.get(index);
      if (chunk) clear(chunk, index);
    }
  }

  /** Whether there is data at `offset`, and for how many bytes that holds. */
  extent(offset: number, length: number): { data: boolean; length: number } {
    const last = chunkIndex(offset + length - 1);
    let index = chunkIndex(offset);
    const data = this.#chunks.has(index);
    index++;
    if (!data && last - index > this.#chunks.size) {
      index = this.#nextChunk(index, last + 1);
    }
    while (index <= last && this.#chunks.has(index) === data) index++;
    return { data, length: Math.min(length, index * CHUNK_SIZE - offset) };
  }

  /** The first chunk from `index` on, or `none`; fast in a large, empty store. */
  #nextChunk(index: number, none: number): number {
    let next = none;
    for (const candidate of this.#chunks.keys()) {
      if (candidate >= index && candidate < next) next = candidate;
    }
    return next;
  }
}

/** Refuse an invalid range; it may lie past the end. */
function checkRange(verb: string, offset: number, length: number): void {
  const isRange = typeof offset === "number" && typeof length === "number" &&
    offset >= 0 && length >= 0 && isExactSize(offset + length);
  if (isRange) return;
  throw invalid(
    `Cannot ${verb}: ${valueText(length)} bytes at offset ${valueText(offset)}`,
  );
}

function checkBytes(verb: string, offset: number, bytes: Uint8Array): void {
  if (!(bytes instanceof Uint8Array)) {
    throw invalid(`Cannot ${verb} ${valueText(bytes)}: it is not a Uint8Array`);
  }
  checkRange(verb, offset, bytes.length);
}

function chunkIndex(offset: number): number {
  return Math.floor(offset / CHUNK_SIZE);
}

/** Split a range at chunk boundaries. */
function eachPiece(
  offset: number,
  length: number,
  visit: (index: number, start: number, length: number, done: number) => void,
): void {
  for (let done = 0; done < length;) {
    const index = chunkIndex(offset + done);
    const start = offset + done - index * CHUNK_SIZE;
    const take = Math.min(length - done, CHUNK_SIZE - start);
    visit(index, start, take, done);
    done += take;
  }
}
