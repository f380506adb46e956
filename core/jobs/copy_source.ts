/**
 * What is copied from, with errors that tell the place.
 *
 * @module
 */
import { checkSignal } from "../abort.ts";
import { SECTOR_SIZE } from "../bytes.ts";
import { asBlockError, BlockError, detailOf, strerror } from "../errors.ts";
import type { ChainExtent } from "../extents.ts";
import type { BlockNode } from "../node.ts";
import type { Concatenation, Part } from "./concatenation.ts";

/** How to read what is copied. */
export interface CopySourceOptions {
  /** Leave out what this image of the source's chain, or one below, holds. */
  readonly base?: BlockNode;
  /**
   * Go on where a disk cannot be read: such sectors become zeroes, and `warn`
   * is told of each. Default: false.
   */
  readonly salvage?: boolean;
  /** Receives warnings. Default: they are dropped. */
  warn?(message: string): void;
  /** Ends the job with ECANCELED. */
  readonly signal?: AbortSignal;
}

/** Most bytes to ask about at once where disks may be damaged. */
const MAX_STATUS = (2 ** 22 - 1) * SECTOR_SIZE;

/** What may be data, as far as anybody can tell. */
const UNKNOWN = { depth: 0, allocated: true, zero: false, compressed: false };

/** Disks in a row, to be copied. */
export class CopySource {
  readonly #whole: Concatenation;
  readonly #options: CopySourceOptions;
  /** The end of the last sector that nobody could tell anything of. */
  #unknownEnd = -1;

  constructor(whole: Concatenation, options: CopySourceOptions) {
    this.#whole = whole;
    this.#options = options;
  }

  /** Bytes of all disks. */
  get size(): number {
    return this.#whole.size;
  }

  /** The disk in which the byte at `offset` lies. */
  partAt(offset: number): Part {
    return this.#whole.partAt(offset);
  }

  /** What the range from `offset` holds: one extent of one disk. */
  async status(offset: number): Promise<ChainExtent> {
    if (this.#options.salvage) return await this.#salvageStatus(offset);
    try {
      return await this.#whole.status(offset, this.#options.base);
    } catch (error) {
      const within = offset - this.partAt(offset).start;
      throw located("reading block status at offset", within, error);
    }
  }

  /**
   * Asks about less and less; what nobody can tell of may still be read. After
   * a sector of that kind, the next one is most likely another.
   */
  async #salvageStatus(offset: number): Promise<ChainExtent> {
    const { base } = this.#options;
    let isGuess = this.#unknownEnd === offset;
    let most = isGuess ? SECTOR_SIZE : MAX_STATUS;
    for (;;) {
      try {
        const extent = await this.#whole.status(offset, base, most);
        if (!isGuess) return extent;
        isGuess = false;
        most = MAX_STATUS;
      } catch (error) {
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
   * What to tell of bytes that cannot be read: those from the start of the
   * extent on that is to blame, or of the cluster, if it is compressed.
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
          this.#options.base,
          bytes.length - done,
        );
        const within = (at - this.partAt(at).start) % unit;
        const end = Math.min(
          bytes.length,
          done + Math.min(length, unit - within),
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
    // There may be one for each sector: an error to hold it would be slow.
    this.#options.warn?.(messageOf(what, offset, asBlockError(error)));
  }
}

/** An error with the place at which it happened. */
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
