/**
 * Changes that a server has acknowledged and may still lose: it keeps them in
 * its memory until it is told to flush.
 *
 * @module
 */
import { type IoVector, vectorLength } from "../../core/bytes.ts";

/** A change of a range. */
export interface Change {
  readonly offset: number;
  readonly length: number;
  /** What was written; absent of zeroes and discards. */
  readonly data?: Uint8Array;
  /** The `COMMAND` and flags of a change without data. */
  readonly type: number;
  readonly flags: number;
}

/** What a change takes beside its data. */
const OVERHEAD = 128;

/**
 * Changes since the last flush, in the order in which they were acknowledged,
 * so that a connection that takes the place of a lost one can have them again.
 */
export class Journal {
  #changes: Change[] = [];
  #bytes = 0;
  /** How many there were before these. */
  #forgotten = 0;

  /** Bytes of memory that it takes. */
  get bytes(): number {
    return this.#bytes;
  }

  /** All changes, oldest first. */
  get changes(): readonly Change[] {
    return this.#changes;
  }

  /** Note a write. The data are copied: they are the caller's. */
  addWrite(type: number, offset: number, iov: IoVector): void {
    const data = new Uint8Array(vectorLength(iov));
    let at = 0;
    for (const part of iov) {
      data.set(part, at);
      at += part.length;
    }
    this.add({ type, flags: 0, offset, length: data.length, data });
  }

  /** Note a change. */
  add(change: Change): void {
    this.#changes.push(change);
    this.#bytes += OVERHEAD + (change.data?.length ?? 0);
  }

  /** All up to now: what a flush that begins now will make durable. */
  get mark(): number {
    return this.#forgotten + this.#changes.length;
  }

  /** Forget all up to a mark: they are durable. */
  forget(mark: number): void {
    // Of two flushes at once, the later one may have been done first.
    const count = Math.max(0, mark - this.#forgotten);
    for (const { data } of this.#changes.splice(0, count)) {
      this.#bytes -= OVERHEAD + (data?.length ?? 0);
      this.#forgotten++;
    }
  }
}
