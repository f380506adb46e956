/**
 * Buffers that are used again: new memory costs more than what is read into it.
 *
 * @module
 */

/** Sizes of buffers that are kept are multiples of one of these. */
const SMALL_UNIT = 4096;
const UNIT = 64 * 1024;
/** Smaller ones cost little. */
const SMALLEST = 2048;
/** Larger ones are rare. */
const LARGEST = 4 * 1024 * 1024;
/** Bytes that are kept at most. */
const MOST = 32 * 1024 * 1024;

/** Buffers of one server. */
export class Buffers {
  readonly #free = new Map<number, ArrayBuffer[]>();
  #bytes = 0;

  /** A buffer of `length` bytes, of which nothing is known. */
  take(length: number): Uint8Array {
    if (length < SMALLEST || length > LARGEST) return new Uint8Array(length);
    const size = sizeFor(length);
    const buffer = this.#free.get(size)?.pop();
    if (!buffer) return new Uint8Array(new ArrayBuffer(size), 0, length);
    this.#bytes -= size;
    return new Uint8Array(buffer, 0, length);
  }

  /** Give a buffer back that nobody uses any more. */
  give({ buffer }: Uint8Array): void {
    const size = buffer.byteLength;
    if (size < SMALLEST || size > LARGEST + UNIT) return;
    if (size !== sizeFor(size - ROOM) || this.#bytes + size > MOST) return;
    const free = this.#free.get(size);
    if (free) free.push(buffer as ArrayBuffer);
    else this.#free.set(size, [buffer as ArrayBuffer]);
    this.#bytes += size;
  }
}

/** Bytes for the header of a reply, so that whole units fit. */
const ROOM = 64;

function sizeFor(length: number): number {
  const unit = length < UNIT ? SMALL_UNIT : UNIT;
  return Math.ceil((length + ROOM) / unit) * unit;
}
