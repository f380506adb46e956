/**
 * The source of a copy, whose errors name the position, and what to do with
 * each of its ranges.
 *
 * @module
 */
import { checkSignal } from "../abort.ts";
import { roundDown, SECTOR_SIZE } from "../bytes.ts";
import { asBlockError, BlockError, detailOf, strerror } from "../errors.ts";
import { type ChainExtent, isInherited } from "../extents.ts";
import type { Concatenation, Part } from "./concatenation.ts";
import type { BlockNode } from "../node.ts";

/** How to read the source. */
export interface CopySourceOptions {
  /** Gets an image of the source's chain: leave out data in it or below it. */
  baseOf?(): BlockNode | undefined;
  /**
   * Continue past unreadable sectors: they become zeroes, each with a warning.
   * Default: false.
   */
  readonly salvage?: boolean;
  /** Receives warnings. Default: they are dropped. */
  warn?(message: string): void;
  /** Ends the job with ECANCELED. */
  readonly signal?: AbortSignal;
}

/** Longest status query on a disk that may be damaged, in bytes. */
const MAX_STATUS = (2 ** 22 - 1) * SECTOR_SIZE;

/** A range whose status is unknown: treated as data. */
const UNKNOWN = { depth: 0, allocated: true, zero: false, compressed: false };

/** The concatenated disks to be copied. */
export class CopySource {
  readonly #whole: Concatenation;
  readonly #options: CopySourceOptions;
  /** End of the last sector whose status could not be determined. */
  #unknownEnd = -1;

  constructor(whole: Concatenation, options: CopySourceOptions) {
    this.#whole = whole;
    this.#options = options;
  }

  /** The total size in bytes. */
  get size(): number {
    return this.#whole.size;
  }

  /** The disk in which the byte at `offset` lies. */
  partAt(offset: number): Part {
    return this.#whole.partAt(offset);
  }

  /** The first extent of the range from `offset`, within one disk. */
  async status(offset: number): Promise<ChainExtent> {
    const { salvage, baseOf, signal } = this.#options;
    if (salvage) return await this.#salvageStatus(offset);
    try {
      return await this.#whole.status(offset, baseOf, undefined, { signal });
    } catch (error) {
      const offsetInDisk = offset - this.partAt(offset).start;
      throw located("reading block status at offset", offsetInDisk, error);
    }
  }

  /**
   * Query shorter and shorter ranges; a sector without a status may still be
   * readable. After such a sector, the next one is most likely the same.
   */
  async #salvageStatus(offset: number): Promise<ChainExtent> {
    const { baseOf, signal } = this.#options;
    let isGuess = this.#unknownEnd === offset;
    let most = isGuess ? SECTOR_SIZE : MAX_STATUS;
    for (;;) {
      try {
        const extent = await this.#whole.status(offset, baseOf, most, {
          signal,
        });
        if (!isGuess) return extent;
        isGuess = false;
        most = MAX_STATUS;
      } catch (error) {
        checkSignal(signal);
        isGuess = false;
        const { start, end } = this.partAt(offset);
        const sectors = Math.min(most, end - offset) / SECTOR_SIZE;
        if (sectors === 1) {
          this.#warn("reading block status at offset", offset - start, error);
          const length = SECTOR_SIZE;
          this.#unknownEnd = offset + length;
          return { ...UNKNOWN, offset, length };
        }
        most = Math.ceil(sectors / 4) * SECTOR_SIZE;
      }
    }
  }

  /** Fill `bytes` from `offset` on; the range may span several disks. */
  async read(offset: number, bytes: Uint8Array): Promise<void> {
    const { signal } = this.#options;
    try {
      await this.#whole.read(offset, bytes, { signal });
    } catch (error) {
      checkSignal(signal);
      if (!this.#options.salvage) {
        throw await this.#failure(offset, bytes, error);
      }
      if (bytes.length > SECTOR_SIZE) {
        return await this.#salvageSectors(offset, bytes);
      }
      this.#fillUnreadable(offset, bytes, error);
    }
  }

  /**
   * The error for unreadable bytes, naming the start of the extent or cluster.
   */
  async #failure(
    offset: number,
    bytes: Uint8Array,
    error: unknown,
  ): Promise<BlockError> {
    for (let done = 0; done < bytes.length;) {
      const at = offset + done;
      try {
        const { length, unit = Infinity } = await this.#whole.status(
          at,
          this.#options.baseOf,
          bytes.length - done,
        );
        const offsetInUnit = (at - this.partAt(at).start) % unit;
        const end = Math.min(
          bytes.length,
          done + Math.min(length, unit - offsetInUnit),
        );
        await this.#whole.read(at, bytes.subarray(done, end));
        done = end;
      } catch (inPart) {
        return located("reading at byte", at, inPart);
      }
    }
    return located("reading at byte", offset, error);
  }

  async #salvageSectors(offset: number, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += SECTOR_SIZE) {
      const sector = bytes.subarray(at, at + SECTOR_SIZE);
      try {
        await this.#whole.read(offset + at, sector);
      } catch (error) {
        this.#fillUnreadable(offset + at, sector, error);
      }
    }
  }

  #fillUnreadable(offset: number, sector: Uint8Array, error: unknown): void {
    const { start } = this.partAt(offset);
    this.#warn("reading offset", offset - start, error);
    sector.fill(0);
  }

  #warn(what: string, offset: number, error: unknown): void {
    // There may be a warning per sector: an error for each would be slow.
    this.#options.warn?.(messageOf(what, offset, asBlockError(error)));
  }
}

/** An error with its position. */
export function located(
  what: string,
  offset: number,
  thrown: unknown,
): BlockError {
  const error = asBlockError(thrown);
  const isPlain = error.code === "ECANCELED" ||
    error.message.startsWith("error while ");
  if (isPlain) return error;
  const message = messageOf(what, offset, error);
  const detail = detailOf(error);
  return new BlockError(error.code, message + detail, { cause: error, detail });
}

function messageOf(what: string, offset: number, { code }: BlockError): string {
  return `error while ${what} ${offset}: ${strerror(code)}`;
}

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
