/**
 * The source of a copy, whose errors name the position.
 *
 * @module
 */
import { checkSignal } from "../abort.ts";
import { SECTOR_SIZE } from "../bytes.ts";
import { asBlockError, BlockError, detailOf, strerror } from "../errors.ts";
import type { ChainExtent } from "../extents.ts";
import type { BlockNode } from "../node.ts";
import type { Concatenation, Part } from "./concatenation.ts";

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
