/**
 * The writes to a file that other threads make.
 *
 * @module
 */
import { type IoVector, vectorLength } from "../../core/bytes.ts";
import type { HostFile } from "../../core/platform/files.ts";

/** Bytes that are joined into one call at most, unless one write has more. */
const MOST_JOINED = 1024 * 1024;

interface Waiting {
  readonly offset: number;
  readonly iov: IoVector;
  readonly length: number;
  resolve(): void;
  reject(error: unknown): void;
}

/**
 * Writes in the order in which they were begun, few at a time: the system lets
 * one thread at a time write to a file, and those that wait for it take time
 * from the others. So writes that wait here are joined where they are
 * contiguous.
 */
export class WriteQueue {
  readonly #most: number;
  readonly #waiting: Waiting[] = [];
  #writing = 0;

  /** `most` calls are made at a time. */
  constructor(most: number) {
    this.#most = most;
  }

  /** Write all of `iov`, which must not change meanwhile. */
  write(host: HostFile, offset: number, iov: IoVector): Promise<void> {
    return new Promise((resolve, reject) => {
      const length = vectorLength(iov);
      this.#waiting.push({ offset, iov, length, resolve, reject });
      if (this.#writing < this.#most) this.#writeAll(host);
    });
  }

  async #writeAll(host: HostFile): Promise<void> {
    this.#writing++;
    while (this.#waiting.length > 0) {
      const batch = this.#waiting.splice(0, this.#joinable());
      const [{ offset, iov }] = batch;
      try {
        const whole = batch.length === 1
          ? iov
          : batch.flatMap(({ iov }) => iov);
        await host.pwritevLater(offset, whole);
        for (const { resolve } of batch) resolve();
      } catch (error) {
        if (batch.length === 1) batch[0].reject(error);
        else this.#writeEach(host, batch);
      }
    }
    this.#writing--;
  }

  /** The number of writes that the next call makes. */
  #joinable(): number {
    let [{ offset, length }] = this.#waiting;
    let total = length;
    let count = 1;
    for (; count < this.#waiting.length; count++) {
      const next = this.#waiting[count];
      total += next.length;
      if (next.offset !== offset + length || total > MOST_JOINED) break;
      ({ offset, length } = next);
    }
    return count;
  }

  /** Write each by itself: only some may fail. */
  #writeEach(host: HostFile, batch: readonly Waiting[]): void {
    for (const { offset, iov, resolve, reject } of batch) {
      try {
        host.pwritev(offset, iov);
        resolve();
      } catch (error) {
        reject(error);
      }
    }
  }
}
