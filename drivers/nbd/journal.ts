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

/** A change, and how many were recorded before it. */
interface Entry {
  readonly number: number;
  readonly change: Change;
}

/**
 * Changes since the last flush, in the order of their acknowledgement, to be
 * repeated on a connection that replaces a lost one.
 */
export class Journal {
  #entries: Entry[] = [];
  #bytes = 0;
  #recorded = 0;

  /** Bytes of memory in use. */
  get bytes(): number {
    return this.#bytes;
  }

  /** All changes, oldest first. */
  get changes(): readonly Change[] {
    return this.#entries.map(({ change }) => change);
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
    this.#keep({ number: this.#recorded++, change });
  }

  /**
   * Forget what a durable change has replaced. To repeat it would undo that
   * change, for good if the connection is lost again.
   */
  replace(offset: number, length: number): void {
    const end = offset + length;
    const isApart = ({ change }: Entry) =>
      change.offset >= end || change.offset + change.length <= offset;
    if (this.#entries.every(isApart)) return;
    const entries = this.#entries;
    this.#entries = [];
    this.#bytes = 0;
    for (const entry of entries) {
      if (isApart(entry)) {
        this.#keep(entry);
        continue;
      }
      const { number, change } = entry;
      const rest = change.offset + change.length;
      for (
        const [from, to] of [[change.offset, offset], [end, rest]]
      ) {
        if (from < to) this.#keep({ number, change: part(change, from, to) });
      }
    }
  }

  /**
   * The end of the present changes: a flush that begins now makes them durable.
   */
  get mark(): number {
    return this.#recorded;
  }

  /** Drop all changes up to a mark: they are durable. */
  forget(mark: number): void {
    const kept = this.#entries.findIndex(({ number }) => number >= mark);
    const count = kept < 0 ? this.#entries.length : kept;
    for (const { change } of this.#entries.splice(0, count)) {
      this.#bytes -= bytesOf(change);
    }
  }

  #keep(entry: Entry): void {
    this.#entries.push(entry);
    this.#bytes += bytesOf(entry.change);
  }
}

function bytesOf({ data }: Change): number {
  return OVERHEAD + (data?.length ?? 0);
}

/** Part of a change, by offsets on the disk. */
function part(change: Change, from: number, to: number): Change {
  const start = from - change.offset;
  const data = change.data?.slice(start, to - change.offset);
  return { ...change, offset: from, length: to - from, data };
}
