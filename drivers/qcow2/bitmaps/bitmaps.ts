/**
 * The persistent bitmaps of an open image: recording writes, and what users do
 * to the bitmaps. (Specification: "Bitmaps".)
 *
 * **No bitmap misses a write.** In memory, a bit is set before the data is
 * written. In the file, all bitmaps are durably marked as in use from when the
 * image is opened for writing (at the latest, before the first bit is set that
 * is not stored) until they have been stored on closing. After a crash, every
 * bitmap is either complete or marked as in use.
 *
 * @module
 */
import { asBlockError, BlockError, invalid } from "../../../core/errors.ts";
import { isPowerOfTwo } from "../../../core/bytes.ts";
import type {
  BitmapInfo,
  BitmapOptions,
  BlockNode,
  DirtyExtent,
} from "../../../core/node.ts";
import { readPadded } from "../../../core/requests.ts";
import { ENTRY_SIZE } from "../format.ts";
import { hasBitmaps } from "../header.ts";
import { MAX_BITMAPS, MAX_DIRECTORY_BYTES } from "../header_extensions.ts";
import { DirtyBitmap, notFound } from "./bitmap.ts";
import { BitmapContent, type ContentSource } from "./content.ts";
import {
  alreadyExists,
  bitmapClusters,
  type BitmapEntry,
  directoryLength,
  encodeBitmapDirectory,
  isTooLarge,
  MAX_GRANULARITY,
  MAX_NAME_LENGTH,
  MIN_GRANULARITY,
  readBitmapDirectory,
} from "./directory.ts";
import { readTable, storeBitmaps, type StoreHost } from "./store.ts";
import type { BitmapTable } from "./table.ts";

/** Most bytes of all bitmap tables together. */
const MAX_TABLES_BYTES = 64 * 1024 * 1024;

/** What bitmaps need of the image. */
export interface BitmapsHost extends StoreHost {
  /** The file; for its name in messages. */
  readonly plainFile: Pick<BlockNode, "filename">;
  /** Receives guest writes; absent while no bitmap records any. */
  recorder?: Pick<Bitmaps, "mark">;
  /** Overwrite bytes in place, durably. */
  overwrite(
    offset: number,
    bytes: Uint8Array,
    old: Uint8Array,
  ): Promise<void>;
}

/** All bitmaps of an image. */
export class Bitmaps {
  readonly #host: BitmapsHost;
  /** In the order of the directory; new ones come last. */
  readonly #bitmaps: DirtyBitmap[] = [];
  /** Those that record writes. */
  #enabled: DirtyBitmap[] = [];
  /** The directory as it is in the file. */
  #directory: BitmapEntry[] = [];
  #marking?: Promise<void>;

  private constructor(host: BitmapsHost) {
    this.#host = host;
  }

  /**
   * Read the bitmaps of an image.
   *
   * @throws {BlockError} EINVAL if one is damaged.
   */
  static async load(host: BitmapsHost): Promise<Bitmaps> {
    const bitmaps = new Bitmaps(host);
    await bitmaps.#load();
    return bitmaps;
  }

  async #load(): Promise<void> {
    const { file, header, geometry } = this.#host;
    if (!hasBitmaps(header)) return;
    const directory = await readBitmapDirectory(
      file,
      header.bitmaps!,
      geometry,
      header.size,
    );
    const usable = directory.filter(({ inUse }) => !inUse);
    const entries = usable.reduce((sum, { tableSize }) => sum + tableSize, 0);
    if (entries * ENTRY_SIZE > MAX_TABLES_BYTES) {
      throw new BlockError("ENOMEM", "The bitmap tables are too large");
    }
    for (const entry of directory) {
      const content = entry.inUse ? undefined : await this.#open(entry);
      const fields = { ...entry, isEnabled: entry.auto };
      this.#bitmaps.push(new DirtyBitmap(fields, content, entry));
    }
    this.#directory = directory;
    this.#noteEnabled();
  }

  async #open(entry: BitmapEntry): Promise<BitmapContent> {
    const { header, geometry } = this.#host;
    const { name, granularity, tableSize } = entry;
    const { clusterSize } = geometry;
    if (tableSize !== bitmapClusters(header.size, granularity, clusterSize)) {
      throw invalid(
        `Could not read bitmap '${name}' from image: Invalid argument`,
      );
    }
    let table: BitmapTable;
    try {
      table = await readTable(this.#host, entry);
    } catch (error) {
      throw asBlockError(error).prefixed(
        `Could not read bitmap_table table from image for bitmap '${name}': `,
      );
    }
    return this.#content(granularity, table);
  }

  #content(granularity: number, table: BitmapTable): BitmapContent {
    const { header, geometry } = this.#host;
    const source: ContentSource = {
      clusterSize: geometry.clusterSize,
      read: (offset, target) => readPadded(this.#host.file, offset, [target]),
    };
    return new BitmapContent(
      source,
      Math.ceil(header.size / granularity),
      table,
    );
  }

  #noteEnabled(): void {
    this.#enabled = this.#bitmaps.filter((bitmap) =>
      bitmap.isEnabled && !bitmap.isInconsistent
    );
    this.#host.recorder = this.#enabled.length > 0 ? this : undefined;
  }

  /** Number of bitmaps. */
  get count(): number {
    return this.#bitmaps.length;
  }

  /** Describe all bitmaps to users. */
  list(): BitmapInfo[] {
    return this.#bitmaps.map((bitmap) => bitmap.describe());
  }

  #find(name: string): DirtyBitmap {
    const found = this.#bitmaps.find((bitmap) => bitmap.name === name);
    if (!found) throw notFound(name);
    return found;
  }

  /** Find a bitmap whose bits can be trusted. */
  #findUsable(name: string): DirtyBitmap {
    const bitmap = this.#find(name);
    bitmap.checkUsable();
    return bitmap;
  }

  /**
   * Check that there is such a bitmap, and that its bits can be trusted.
   *
   * @throws {BlockError} ENOENT if there is none, EINVAL if it is in use.
   */
  checkUsable(name: string): void {
    this.#findUsable(name);
  }

  /**
   * Record that a range is about to be written; without waiting if possible.
   * Any number of these calls may overlap.
   */
  mark(offset: number, length: number): void | Promise<void> {
    if (length === 0) return;
    for (const bitmap of this.#enabled) {
      if (!bitmap.mark(offset, length)) {
        return this.#markLater(this.#enabled, offset, length);
      }
    }
  }

  async #markLater(
    bitmaps: readonly DirtyBitmap[],
    offset: number,
    length: number,
  ): Promise<void> {
    for (const bitmap of bitmaps) await bitmap.load(offset, length);
    // Load for all bitmaps at once: the others will be written to soon.
    if (!bitmaps.every((bitmap) => bitmap.mark(offset, length))) {
      await this.#markInUse(bitmaps);
    }
    for (const bitmap of bitmaps) bitmap.mark(offset, length);
  }

  /**
   * The image may be written to from now on. The marks are removed again when
   * the bitmaps are stored, byte for byte if nothing has changed.
   */
  async beginWriting(): Promise<void> {
    await this.#markInUse(this.#bitmaps);
  }

  /** Durably mark bitmaps in the file as in use. */
  async #markInUse(bitmaps: readonly DirtyBitmap[]): Promise<void> {
    // Only one caller at a time changes the directory.
    while (this.#marking) await this.#marking.catch(() => {});
    const entries = bitmaps.filter((bitmap) => bitmap.mustBeMarked)
      .map((bitmap) => bitmap.entry!);
    if (entries.length === 0) return;
    this.#marking = this.#writeMarks(entries, true);
    try {
      await this.#marking;
    } finally {
      this.#marking = undefined;
    }
  }

  async #writeMarks(
    entries: readonly BitmapEntry[],
    inUse: boolean,
  ): Promise<void> {
    const { header, overlap } = this.#host;
    const { directoryOffset, directorySize } = header.bitmaps!;
    const old = encodeBitmapDirectory(this.#directory);
    const marked = encodeBitmapDirectory(
      this.#directory.map((entry) =>
        entries.includes(entry) ? { ...entry, inUse } : entry
      ),
    );
    try {
      await overlap.check(directoryOffset, directorySize, "bitmap-directory");
      await this.#host.overwrite(directoryOffset, marked, old);
    } catch (error) {
      throw asBlockError(error).prefixed("Can't update bitmap directory: ");
    }
    for (const entry of entries) entry.inUse = inUse;
  }

  /**
   * Make a new bitmap, in memory for now. Requires exclusive access to the
   * image.
   */
  add(name: string, options: BitmapOptions = {}): void {
    const { header, geometry, plainFile } = this.#host;
    const { clusterSize } = geometry;
    const usual = Math.min(65536, Math.max(4096, clusterSize));
    const { granularity = usual, enabled = true } = options;
    if (
      !isPowerOfTwo(granularity) || granularity < MIN_GRANULARITY ||
      granularity > MAX_GRANULARITY
    ) {
      throw invalid("Granularity must be power of 2 and at least 512");
    }
    if (name === "") throw invalid("Bitmap name cannot be empty");
    if (this.#bitmaps.some((bitmap) => bitmap.name === name)) {
      throw alreadyExists(name);
    }
    const rawName = new TextEncoder().encode(name);
    const refuse = (why: string) => {
      throw invalid(
        `Can't make bitmap '${name}' persistent in '${plainFile.filename}': ${why}`,
      );
    };
    if (header.version < 3) {
      refuse("Cannot store dirty bitmaps in qcow2 v2 files");
    }
    if (rawName.length > MAX_NAME_LENGTH) {
      refuse(`Name length exceeds maximum (${MAX_NAME_LENGTH} characters)`);
    }
    if (isTooLarge(header.size, granularity, clusterSize)) {
      refuse(
        "Too much space will be occupied by the bitmap. Use larger granularity",
      );
    }
    if (header.size === 0) refuse("The disk is empty");
    if (this.#bitmaps.length >= MAX_BITMAPS) {
      refuse("Maximum number of persistent bitmaps is already reached");
    }
    if (
      directoryLength([...this.#bitmaps, { rawName }]) > MAX_DIRECTORY_BYTES
    ) {
      refuse("Not enough space in the bitmap directory");
    }
    const fields = { name, rawName, granularity, isEnabled: enabled };
    const content = this.#content(granularity, new Float64Array(0));
    this.#bitmaps.push(new DirtyBitmap(fields, content));
    this.#noteEnabled();
  }

  /**
   * Remove a bitmap, whatever its state. Requires exclusive access to the
   * image.
   */
  async remove(name: string): Promise<void> {
    const bitmap = this.#find(name);
    // Writes from now on are not recorded any more.
    await this.#markInUse([bitmap]);
    this.#drop(bitmap);
  }

  /** Clear a bitmap. Requires exclusive access to the image. */
  async clear(name: string): Promise<void> {
    const bitmap = this.#findUsable(name);
    await this.#markInUse([bitmap]);
    bitmap.content.clear();
  }

  /** Enable or disable a bitmap. Requires exclusive access to the image. */
  async enable(name: string, isEnabled: boolean): Promise<void> {
    const bitmap = this.#findUsable(name);
    if (bitmap.isEnabled === isEnabled) return;
    await this.#markInUse([bitmap]);
    bitmap.isEnabled = isEnabled;
    this.#noteEnabled();
  }

  /** Record a range in one bitmap, whether enabled or not. */
  async mergeRange(
    name: string,
    { offset, length }: DirtyExtent,
  ): Promise<void> {
    const bitmap = this.#findUsable(name);
    if (bitmap.mark(offset, length)) return;
    await this.#markLater([bitmap], offset, length);
  }

  /** The first part of a range that a bitmap has recorded. */
  async nextDirty(
    name: string,
    offset: number,
    length: number,
  ): Promise<DirtyExtent | undefined> {
    const { size } = this.#host.header;
    const rest = Math.min(length, size - offset);
    if (rest <= 0) return undefined;
    return await this.#findUsable(name).nextDirty(offset, rest);
  }

  /**
   * Refuse a new disk size that the bitmaps cannot take.
   *
   * @throws {BlockError} EINVAL.
   */
  checkResize(size: number): void {
    const { clusterSize } = this.#host.geometry;
    for (const { name } of this.#bitmaps) {
      const { granularity } = this.#findUsable(name);
      if (size > 0 && !isTooLarge(size, granularity, clusterSize)) continue;
      throw invalid(
        `Cannot resize to ${size} bytes: bitmap '${name}' cannot have that size`,
      );
    }
  }

  /** Prepare for a change of the disk's size. */
  async prepareResize(): Promise<void> {
    await this.#markInUse(this.#bitmaps);
  }

  /**
   * Follow a change of the disk's size. Requires exclusive access to the image.
   *
   * @throws {BlockError} if bits cannot be read: that bitmap is lost.
   */
  async resize(size: number): Promise<void> {
    const failures: unknown[] = [];
    for (const bitmap of [...this.#bitmaps]) {
      const bits = Math.ceil(size / bitmap.granularity);
      await bitmap.content.resize(bits).catch((error) => {
        failures.push(error);
        bitmap.lose();
        // One that is not in the file cannot be recovered.
        if (!bitmap.entry) this.#drop(bitmap);
      });
    }
    this.#noteEnabled();
    if (failures.length > 0) throw failures[0];
  }

  #drop(bitmap: DirtyBitmap): void {
    this.#bitmaps.splice(this.#bitmaps.indexOf(bitmap), 1);
    this.#noteEnabled();
  }

  /**
   * Store all bitmaps that have changed. Requires exclusive access to the image
   * and the metadata lock.
   *
   * @throws {BlockError} if that fails: what has changed stays marked as in use
   * in the file.
   */
  async store(): Promise<void> {
    if (this.#host.header.version < 3) return;
    const isSame = this.#bitmaps.length === this.#directory.length &&
      !this.#bitmaps.some(({ isChanged }) => isChanged);
    if (isSame) {
      return await this.#unmark();
    }
    try {
      await storeBitmaps(
        this.#host,
        this.#bitmaps,
        this.#directory,
        (directory) => this.#directory = directory,
      );
    } catch (error) {
      // Bitmaps that have not changed need not be lost.
      if (!this.#host.unusable) await this.#unmark().catch(() => {});
      throw error;
    }
  }

  /** Remove the marks of bitmaps that have not changed. */
  async #unmark(): Promise<void> {
    const entries = this.#bitmaps
      .filter(({ isInconsistent, isChanged, entry }) =>
        entry?.inUse && !isInconsistent && !isChanged
      )
      .map(({ entry }) => entry!);
    if (entries.length > 0) await this.#writeMarks(entries, false);
  }
}
