/**
 * Connections within a test: two ends of a byte stream, without sockets.
 *
 * @module
 */
import type { ByteStream } from "../../../core/platform/sockets.ts";

/** One direction. Small pieces reveal assumptions about how bytes arrive. */
class Pipe {
  #chunks: Uint8Array[] = [];
  #closed = false;
  #wake = () => {};
  readonly #most: number;
  /** Bytes that still get through. */
  #left: number;

  constructor(most: number, left: number) {
    this.#most = most;
    this.#left = left;
  }

  async read(into: Uint8Array): Promise<number | null> {
    while (this.#chunks.length === 0) {
      if (this.#closed) return null;
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
    const [chunk] = this.#chunks;
    const count = Math.min(chunk.length, into.length, this.#most);
    into.set(chunk.subarray(0, count));
    if (count === chunk.length) this.#chunks.shift();
    else this.#chunks[0] = chunk.subarray(count);
    return count;
  }

  write(bytes: Uint8Array): Promise<number> {
    if (this.#closed) return Promise.reject(new Error("closed"));
    const count = Math.min(bytes.length, this.#left);
    this.#chunks.push(bytes.slice(0, count));
    this.#left -= count;
    if (this.#left === 0) this.close();
    this.#wake();
    return Promise.resolve(bytes.length);
  }

  close(): void {
    this.#closed = true;
    this.#wake();
  }

  get isClosed(): boolean {
    return this.#closed;
  }
}

/** How to connect the two ends. */
export interface PairOptions {
  /** The most bytes that a read returns. Default: all there are. */
  most?: number;
  /**
   * Bytes after which the connection breaks, in this direction. Default: never.
   */
  cutThere?: number;
  /** The same in the other direction. */
  cutBack?: number;
}

/** Two ends of a connection. */
export function streamPair(
  options: PairOptions = {},
): [ByteStream, ByteStream] {
  const { most = Infinity, cutThere = Infinity, cutBack = Infinity } = options;
  const there = new Pipe(most, cutThere);
  const back = new Pipe(most, cutBack);
  const end = (from: Pipe, to: Pipe): ByteStream => ({
    read: (into) => from.read(into),
    async write(bytes) {
      const count = await to.write(bytes);
      // Cutting one direction cuts both.
      if (to.isClosed) from.close();
      return count;
    },
    close() {
      from.close();
      to.close();
    },
  });
  return [end(back, there), end(there, back)];
}
