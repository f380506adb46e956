/**
 * A counter per host cluster, in memory proportional to the part of the file in
 * use: one byte each, in pages that are created when needed; a page is widened
 * for larger numbers.
 *
 * @module
 */
import { readRefcount } from "./refcount_layout.ts";

const PAGE_BITS = 15;
const PAGE_SIZE = 1 << PAGE_BITS;
const PAGE_MASK = PAGE_SIZE - 1;
const MAX_BYTE = 255;
const NOTHING_COUNTED = new Uint8Array(PAGE_SIZE);

type Page = Uint8Array | Float64Array;

/** A growing array of counters that start at zero; indices are below 2^31. */
export class ReferenceCounts {
  /** Largest value of a counter. */
  readonly max: number;
  /** Clusters that are counted. */
  #length: number;
  #hasShared = false;
  #pages: (Page | undefined)[] = [];

  constructor(length: number, max: number) {
    this.#length = length;
    this.max = max;
    this.#pages = new Array(Math.ceil(length / PAGE_SIZE));
  }

  get length(): number {
    return this.#length;
  }

  /** Whether any counter has exceeded one since the last reset. */
  get hasShared(): boolean {
    return this.#hasShared;
  }

  /** Make room for at least `length` counters. */
  grow(length: number): void {
    if (length <= this.#length) return;
    this.#length = length;
    const pages = Math.ceil(length / PAGE_SIZE);
    while (this.#pages.length < pages) this.#pages.push(undefined);
  }

  /** Set all counters to zero. */
  clear(): void {
    this.#pages = new Array(Math.ceil(this.#length / PAGE_SIZE));
    this.#hasShared = false;
  }

  /** The counter of a cluster. */
  get(cluster: number): number {
    const page = this.#pages[cluster >>> PAGE_BITS];
    return page === undefined ? 0 : page[cluster & PAGE_MASK];
  }

  /** Set the counter of a cluster. */
  set(cluster: number, value: number): void {
    const index = cluster >>> PAGE_BITS;
    let page = this.#pages[index] ??= new Uint8Array(PAGE_SIZE);
    if (value > MAX_BYTE && page instanceof Uint8Array) {
      page = this.#pages[index] = Float64Array.from(page);
    }
    page[cluster & PAGE_MASK] = value;
    if (value > 1) this.#hasShared = true;
  }

  /**
   * Increment `count` counters from `first` on, up to one that is full.
   *
   * @returns how many were incremented.
   */
  incrementRun(first: number, count: number): number {
    const end = first + count;
    for (let at = first; at < end;) {
      const page = this.#pages[at >>> PAGE_BITS] ??= new Uint8Array(PAGE_SIZE);
      const wide = page.BYTES_PER_ELEMENT > 1;
      const limit = wide ? this.max : Math.min(this.max, MAX_BYTE);
      const start = at & PAGE_MASK;
      const stop = Math.min(start + end - at, PAGE_SIZE);
      let i = start;
      let before = 0;
      while (i < stop && page[i] < limit) before |= page[i]++, i++;
      if (before > 0) this.#hasShared = true;
      at += i - start;
      if (i === stop) continue;
      if (this.add(at, 1) > 0) return at - first;
      at++;
    }
    return count;
  }

  /** Add `amount`; returns how much of it did not fit. */
  add(cluster: number, amount: number): number {
    const value = this.get(cluster);
    const added = Math.min(amount, this.max - value);
    if (added > 0) this.set(cluster, value + added);
    return amount - added;
  }

  /** The first cluster in `from` to `end` whose counter is not zero, or `end`. */
  nextUsed(from: number, end = this.#length): number {
    for (let at = from; at < end;) {
      const page = this.#pages[at >>> PAGE_BITS];
      const pageEnd = Math.min((at | PAGE_MASK) + 1, end);
      if (page !== undefined) {
        for (; at < pageEnd; at++) if (page[at & PAGE_MASK] !== 0) return at;
      }
      at = pageEnd;
    }
    return end;
  }

  /**
   * The first cluster in `from` to `end` whose counter differs from the
   * refcount in `block`, which begins with cluster `first`; or `end`.
   */
  nextDifferent(
    block: DataView,
    order: number,
    first: number,
    from: number,
    end: number,
  ): number {
    for (let at = from; at < end;) {
      const page = this.#pages[at >>> PAGE_BITS] ?? NOTHING_COUNTED;
      const pageEnd = Math.min((at | PAGE_MASK) + 1, end);
      if (order === 4) {
        let i = at & PAGE_MASK;
        let entry = 2 * (at - first);
        for (; at < pageEnd; at++, entry += 2) {
          if (block.getUint16(entry) !== page[i++]) return at;
        }
      } else {
        for (; at < pageEnd; at++) {
          const refcount = readRefcount(block, order, at - first);
          if (refcount !== page[at & PAGE_MASK]) return at;
        }
      }
    }
    return end;
  }

  /** The first cluster from `from` on whose counter is zero, or the end. */
  nextFree(from: number): number {
    let at = from;
    while (at < this.#length && this.get(at) !== 0) at++;
    return at;
  }

  /**
   * Find `count` zero counters in a row, and set them to one; grows if there
   * are none.
   *
   * @returns the first cluster.
   */
  take(count: number, from: number): number {
    let start = this.nextFree(from);
    while (start < this.#length) {
      const limit = Math.min(start + count, this.#length);
      const end = this.nextUsed(start, limit);
      if (end === limit) break;
      start = this.nextFree(end);
    }
    this.grow(start + count);
    for (let at = start; at < start + count; at++) this.set(at, 1);
    return start;
  }
}
