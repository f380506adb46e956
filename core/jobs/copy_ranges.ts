/**
 * Deciding what to do with each range of a disk that is copied.
 *
 * @module
 */
import { roundDown } from "../bytes.ts";
import { isInherited } from "../extents.ts";
import type { CopySource } from "./copy_source.ts";

/**
 * What to do with a range of the target: `fill` writes zeroes as data, `zero`
 * makes it read as zeroes by any means.
 */
export type Action = "copy" | "fill" | "zero" | "skip";

/** A range with one action. */
export interface Range {
  /** Bytes from the start of the disk. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** What to do with it. */
  readonly action: Action;
}

/** How to divide a disk into ranges. */
export interface RangeRules {
  /** Largest range of data, in bytes. */
  readonly requestSize: number;
  /**
   * Ranges must consist of clusters of this size, in bytes; 0 if they need not.
   */
  readonly clusterSize: number;
  /** Whether to write zeroes as data. */
  readonly fills: boolean;
  /** Whether the target is known to read as zeroes. */
  readonly targetIsZero: boolean;
  /** End of the target's backing file, past which it reads as zeroes. */
  readonly backingEnd: number;
  /** Whether a range may combine data of several source extents. */
  readonly joins: boolean;
}

/**
 * Most bytes zeroed at once, so that a large disk does not block the program.
 */
const ZERO_SIZE = 1024 ** 3;

/** The last status of the source. */
interface Known {
  readonly start: number;
  readonly end: number;
  readonly action: Action;
}

/** Iterates over the ranges of a source once, from its start. */
export class RangeFinder {
  readonly #source: CopySource;
  readonly #rules: RangeRules;
  /** End of the last range returned. */
  #position = 0;
  #known: Known = { start: 0, end: 0, action: "skip" };

  /** Begin at the start of `source`. */
  constructor(source: CopySource, rules: RangeRules) {
    this.#source = source;
    this.#rules = rules;
  }

  /** The next range; `undefined` at the end. */
  async next(): Promise<Range | undefined> {
    if (this.#position >= this.#source.size) return undefined;
    const range = await this.#find(this.#position);
    this.#position += range.length;
    return range;
  }

  async #find(offset: number): Promise<Range> {
    const { start, end: knownEnd } = this.#known;
    // A range cut to whole clusters may end before the last known extent.
    if (offset < start || offset >= knownEnd) {
      this.#known = await this.#learn(offset);
    }
    const { action } = this.#known;
    let { end } = this.#known;
    if (action === "copy" || action === "fill") {
      const limit = Math.min(
        offset + this.#rules.requestSize,
        this.#source.partAt(offset).end,
      );
      // Combine adjacent extents of data into one request.
      while (end < limit && this.#rules.joins) {
        this.#known = await this.#learn(end);
        if (this.#known.action !== action) break;
        end = this.#known.end;
      }
      end = Math.min(end, limit);
    } else if (action === "zero") {
      end = Math.min(end, offset + ZERO_SIZE);
    }
    if (this.#rules.clusterSize === 0) {
      return { offset, length: end - offset, action };
    }
    return this.#wholeClusters(offset, end, action);
  }

  /** Extend a range to whole clusters, which are compressed as units. */
  #wholeClusters(offset: number, end: number, action: Action): Range {
    const { clusterSize } = this.#rules;
    const length = end - offset;
    if (length >= clusterSize) {
      return { offset, length: roundDown(length, clusterSize), action };
    }
    const rest = Math.min(clusterSize, this.#source.size - offset);
    return { offset, length: rest, action: "copy" };
  }

  /** Get the extent at `offset`, and the action for it. */
  async #learn(offset: number): Promise<Known> {
    const { backingEnd, targetIsZero, fills } = this.#rules;
    const extent = await this.#source.status(offset);
    let end = offset + extent.length;
    if (offset < backingEnd) end = Math.min(end, backingEnd);
    const known = (action: Action) => ({ start: offset, end, action });
    if (isInherited(extent)) return known("skip");
    if (!extent.zero) return known("copy");
    if (offset >= backingEnd) return known("skip");
    if (fills) return known("fill");
    return known(targetIsZero ? "skip" : "zero");
  }
}
