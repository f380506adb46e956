/**
 * What becomes of each part of a disk that is copied.
 *
 * @module
 */
import { roundDown } from "../bytes.ts";
import { isInherited } from "../extents.ts";
import type { CopySource } from "./copy_source.ts";

/**
 * What is to be done with a range of the target: `fill` is to write zeroes as
 * data, `zero` to have it read as zeroes by any means.
 */
export type Action = "copy" | "fill" | "zero" | "skip";

/** A range that is treated as a whole. */
export interface Range {
  /** Bytes from the start of the disk. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** What is to be done with it. */
  readonly action: Action;
}

/** What decides how a disk is divided. */
export interface RangeRules {
  /** Largest amount of data in one range, in bytes. */
  readonly requestSize: number;
  /** Bytes of the clusters of which ranges must consist; 0 if of none. */
  readonly clusterSize: number;
  /** Whether zeroes are to be written as data. */
  readonly fills: boolean;
  /** Whether the target is known to read as zeroes. */
  readonly targetIsZero: boolean;
  /** From here on, the target's backing file reads as zeroes anyway. */
  readonly backingEnd: number;
  /** Whether data in several extents of the source may make one range. */
  readonly joins: boolean;
}

/** Bytes zeroed at once, so that a large disk does not hold up the program. */
const ZERO_SIZE = 1024 ** 3;

/** What was learned last about the source. */
interface Known {
  readonly start: number;
  readonly end: number;
  readonly action: Action;
}

/** Goes through a source once, from its start. */
export class RangeFinder {
  readonly #source: CopySource;
  readonly #rules: RangeRules;
  /** Everything before it was found. */
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
    // Cut to whole clusters, a range may end before what was learned last.
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
      // Data in many places of the source still makes one request.
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

  /** Compressed clusters are written as a whole, whatever is in their parts. */
  #wholeClusters(offset: number, end: number, action: Action): Range {
    const { clusterSize } = this.#rules;
    const length = end - offset;
    if (length >= clusterSize) {
      return { offset, length: roundDown(length, clusterSize), action };
    }
    const rest = Math.min(clusterSize, this.#source.size - offset);
    return { offset, length: rest, action: "copy" };
  }

  /** What the source holds from `offset` on, and what that asks for. */
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
