/**
 * A buffer pool: allocating memory costs more than reading into it.
 *
 * @module
 */

/** Sizes of pooled buffers are multiples of one of these. */
const SMALL_UNIT = 4096;
const UNIT = 64 * 1024;
/** Smaller buffers are cheap to allocate. */
const SMALLEST = 2048;
/** Larger buffers are rare. */
const LARGEST = 4 * 1024 * 1024;
/** Most bytes in the pool. */
const MOST = 32 * 1024 * 1024;

/** The buffers of one server. */
export class Buffers {
  /** Free buffers by size; the size used last comes last. */
  readonly #free = new Map<number, ArrayBuffer[]>();
  #bytes = 0;
  /** The size used last, and its free buffers. */
  #size = 0;
  #list: ArrayBuffer[] = [];

  /** A buffer of `length` bytes with arbitrary content. */
  take(length: number): Uint8Array {
    if (length < SMALLEST || length > LARGEST) return new Uint8Array(length);
    const size = sizeFor(length);
    const buffer = this.#listOf(size).pop();
    if (!buffer) return new Uint8Array(new ArrayBuffer(size), 0, length);
    this.#bytes -= size;
    return new Uint8Array(buffer, 0, length);
  }

  /** Return a buffer that is not used any more. */
  give({ buffer }: Uint8Array): void {
    const size = buffer.byteLength;
    if (size < SMALLEST || size > LARGEST + UNIT) return;
    if (size !== sizeFor(size - ROOM)) return;
    const list = this.#listOf(size);
    if (this.#bytes + size > MOST && !this.#makeRoom(size)) return;
    list.push(buffer as ArrayBuffer);
    this.#bytes += size;
  }

  #listOf(size: number): ArrayBuffer[] {
    if (size === this.#size) return this.#list;
    const list = this.#free.get(size) ?? [];
    this.#free.delete(size);
    this.#free.set(size, list);
    this.#size = size;
    return this.#list = list;
  }

  /** Drop buffers of sizes that other clients or earlier ones have used. */
  #makeRoom(size: number): boolean {
    for (const [other, list] of this.#free) {
      if (other === size) return false;
      while (this.#bytes + size > MOST && list.pop()) this.#bytes -= other;
      if (this.#bytes + size <= MOST) return true;
      this.#free.delete(other);
    }
    return false;
  }
}

/** Room for the header of a reply, so that whole units fit. */
const ROOM = 64;

function sizeFor(length: number): number {
  const unit = length < UNIT ? SMALL_UNIT : UNIT;
  return Math.ceil((length + ROOM) / unit) * unit;
}
