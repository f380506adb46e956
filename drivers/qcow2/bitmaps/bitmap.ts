/**
 * One persistent bitmap of an open image.
 *
 * @module
 */
import { divideUp } from "../../../core/bytes.ts";
import { BlockError, invalid } from "../../../core/errors.ts";
import type { BitmapInfo, DirtyExtent } from "../../../core/node.ts";
import type { BitmapContent } from "./content.ts";
import { type BitmapEntry, describeBitmap } from "./directory.ts";

/** A bitmap in memory. */
export class DirtyBitmap {
  readonly name: string;
  /** The bytes of its name. */
  readonly rawName: Uint8Array;
  /** Bytes of the disk that a bit stands for. */
  readonly granularity: number;
  /** Whether it records what is written. */
  isEnabled: boolean;
  /** Its entry of the directory in the file; absent if it has none. */
  entry?: BitmapEntry;
  #content: BitmapContent | undefined;

  /** @param content Absent if it is inconsistent. */
  constructor(
    fields: Pick<DirtyBitmap, "name" | "rawName" | "granularity" | "isEnabled">,
    content: BitmapContent | undefined,
    entry?: BitmapEntry,
  ) {
    this.name = fields.name;
    this.rawName = fields.rawName;
    this.granularity = fields.granularity;
    this.isEnabled = fields.isEnabled;
    this.entry = entry;
    this.#content = content;
  }

  /** Whether its bits cannot be trusted: it can then only be removed. */
  get isInconsistent(): boolean {
    return this.#content === undefined;
  }

  /** What it has recorded is lost. */
  lose(): void {
    this.#content = undefined;
  }

  /** Its bits. It must not be inconsistent. */
  get content(): BitmapContent {
    this.checkUsable();
    return this.#content!;
  }

  /**
   * Refuse a bitmap whose bits cannot be trusted.
   *
   * @throws {BlockError} EINVAL otherwise.
   */
  checkUsable(): void {
    if (this.#content) return;
    throw invalid(
      `Bitmap '${this.name}' is inconsistent and cannot be used`,
      "Try block-dirty-bitmap-remove to delete this bitmap from disk",
    );
  }

  /** Whether the file lacks this bitmap or has a different one of its name. */
  get isChanged(): boolean {
    if (!this.#content) return false;
    return this.entry?.auto !== this.isEnabled || this.#content.isChanged;
  }

  /** Whether the file says that its stored bits are up to date. */
  get mustBeMarked(): boolean {
    return this.entry !== undefined && !this.entry.inUse;
  }

  /** Describe it to users. */
  describe(): BitmapInfo {
    const { rawName, name, granularity, isInconsistent, isEnabled } = this;
    return describeBitmap({
      rawName,
      name,
      granularity,
      inUse: isInconsistent,
      auto: isEnabled,
      tableOffset: 0,
      tableSize: 0,
    });
  }

  /** The indices of the bits for a range of the disk. */
  #bits(offset: number, length: number) {
    const start = Math.floor(offset / this.granularity);
    return { start, end: divideUp(offset + length, this.granularity) };
  }

  /**
   * Record a range without waiting.
   *
   * @returns whether that was possible: the file must already mark the bitmap
   * as in use, and its bits must be in memory.
   */
  mark(offset: number, length: number): boolean {
    const { start, end } = this.#bits(offset, length);
    return this.mustBeMarked
      ? this.content.covers(start, end) === true
      : this.content.set(start, end);
  }

  /** Load the bits that recording a range needs. */
  async load(offset: number, length: number): Promise<void> {
    const { start, end } = this.#bits(offset, length);
    await this.content.load(start, end);
  }

  /** The first part of a range of the disk that it has recorded. */
  async nextDirty(
    offset: number,
    length: number,
  ): Promise<DirtyExtent | undefined> {
    const { start, end } = this.#bits(offset, length);
    const run = await this.content.nextRun(start, end);
    if (!run) return undefined;
    const first = Math.max(offset, run.start * this.granularity);
    const past = Math.min(offset + length, run.end * this.granularity);
    return { offset: first, length: past - first };
  }
}

/** The error for a bitmap that does not exist. */
export function notFound(name: string): BlockError {
  return new BlockError("ENOENT", `Dirty bitmap '${name}' not found`);
}
