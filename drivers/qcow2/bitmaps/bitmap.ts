/**
 * One persistent bitmap of an image that is open.
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
  /** What the directory in the file says of it; absent if it is not there. */
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

  /** It cannot be relied upon; all that can be done is to remove it. */
  get isInconsistent(): boolean {
    return this.#content === undefined;
  }

  /** What it has recorded is not known any more. */
  lose(): void {
    this.#content = undefined;
  }

  /** Its bits; only of one that is not inconsistent. */
  get content(): BitmapContent {
    this.checkUsable();
    return this.#content!;
  }

  /**
   * Insist on bits that can be relied upon.
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

  /** Whether the file has another bitmap, or none, of this name. */
  get isChanged(): boolean {
    if (!this.#content) return false;
    return this.entry?.auto !== this.isEnabled || this.#content.isChanged;
  }

  /** What is in the file claims to be up to date. */
  get mustBeMarked(): boolean {
    return this.entry !== undefined && !this.entry.inUse;
  }

  /** It as everybody sees it. */
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

  /** The bits that a range of the disk touches. */
  #bits(offset: number, length: number) {
    const start = Math.floor(offset / this.granularity);
    return { start, end: divideUp(offset + length, this.granularity) };
  }

  /**
   * Record a range at once.
   *
   * @returns whether that could be done: the file must say before that the
   * bitmap is in use, and its bits must be in memory.
   */
  mark(offset: number, length: number): boolean {
    const { start, end } = this.#bits(offset, length);
    return this.mustBeMarked
      ? this.content.covers(start, end) === true
      : this.content.set(start, end);
  }

  /** Have in memory what recording a range needs. */
  async load(offset: number, length: number): Promise<void> {
    const { start, end } = this.#bits(offset, length);
    await this.content.load(start, end);
  }

  /** The first part of a range of the disk that is recorded. */
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

/** The complaint that there is no such bitmap. */
export function notFound(name: string): BlockError {
  return new BlockError("ENOENT", `Dirty bitmap '${name}' not found`);
}
