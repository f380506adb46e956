/**
 * Changes that a server has acknowledged but may still lose, since it keeps
 * them in memory until it is flushed.
 *
 * @module
 */
import { type IoVector, vectorLength } from "../../core/bytes.ts";

/** A change of a range. */
export interface Change {
  readonly offset: number;
  readonly length: number;
  /** The data of a write; absent for zeroes and discards. */
  readonly data?: Uint8Array;
  /** The `COMMAND` and flags of a change without data. */
  readonly type: number;
  readonly flags: number;
}

/** Bytes that a change takes in addition to its data. */
const OVERHEAD = 128;

/**
 * Changes since the last flush, in the order of their acknowledgement, to be
 * repeated on a connection that replaces a lost one.
 */
export class Journal {
  #changes: Change[] = [];
  #bytes = 0;
  /** Number of changes before these. */
  #forgotten = 0;

  /** Bytes of memory in use. */
  get bytes(): number {
    return this.#bytes;
  }

  /** All changes, oldest first. */
  get changes(): readonly Change[] {
    return this.#changes;
  }

  /** Record a write. The data is copied, since it belongs to the caller. */
  addWrite(type: number, offset: number, iov: IoVector): void {
    const data = new Uint8Array(vectorLength(iov));
    let at = 0;
    for (const part of iov) {
      data.set(part, at);
      at += part.length;
    }
    this.add({ type, flags: 0, offset, length: data.length, data });
  }

  /** Record a change. */
  add(change: Change): void {
    this.#changes.push(change);
    this.#bytes += OVERHEAD + (change.data?.length ?? 0);
  }

  /**
   * The end of the present changes: a flush that begins now makes them durable.
   */
  get mark(): number {
    return this.#forgotten + this.#changes.length;
  }

  /** Drop all changes up to a mark: they are durable. */
  forget(mark: number): void {
    // With overlapping flushes, the later one may have completed first.
    const count = Math.max(0, mark - this.#forgotten);
    for (const { data } of this.#changes.splice(0, count)) {
      this.#bytes -= OVERHEAD + (data?.length ?? 0);
      this.#forgotten++;
    }
  }
}
