/**
 * Storing bitmaps. New content goes to free clusters and takes effect when the
 * header refers to the new directory; only then is the old content freed. An
 * interruption leaks clusters at worst, and the old directory says which
 * bitmaps are in use.
 *
 * @module
 */
import { asBlockError } from "../../../core/errors.ts";
import { allocate, roundUp, SECTOR_SIZE } from "../../../core/bytes.ts";
import type { BlockNode } from "../../../core/node.ts";
import { readPadded } from "../../../core/requests.ts";
import { isZero } from "../../../core/runtime.ts";
import { Autoclear, ENTRY_SIZE } from "../format.ts";
import type { Geometry } from "../geometry.ts";
import { hasBitmaps, type Header } from "../header.ts";
import { shortened } from "../../../core/values.ts";
import type { OverlapGuard } from "../overlap.ts";
import type { Refcounts } from "../refcounts.ts";
import type { DirtyBitmap } from "./bitmap.ts";
import type { BitmapContent } from "./content.ts";
import { type BitmapEntry, encodeBitmapDirectory } from "./directory.ts";
import {
  ALL_ONES,
  ALL_ZEROES,
  type BitmapTable,
  encodeBitmapTable,
  parseBitmapTable,
} from "./table.ts";

/** Most bytes of clusters that are written at once. */
const MAX_WRITE = 1024 * 1024;

/** What storing needs of the image. */
export interface StoreHost {
  readonly file: BlockNode;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly refcounts: Refcounts;
  readonly overlap: OverlapGuard;
  /** Whether the content of the file is not known any more. */
  readonly unusable: boolean;
  /** Make all that was written durable. */
  flushCaches(): Promise<void>;
  /** Change the header, in memory and durably in the file. */
  changeHeader(changes: Partial<Header>): Promise<void>;
}

/** A range of the file. */
interface Place {
  offset: number;
  length: number;
}

/** Read the table of a bitmap. */
export async function readTable(
  { file, geometry }: Pick<StoreHost, "file" | "geometry">,
  { tableOffset, tableSize }: BitmapEntry,
): Promise<BitmapTable> {
  const bytes = allocate(tableSize * ENTRY_SIZE);
  await readPadded(file, tableOffset, [bytes]);
  return parseBitmapTable(bytes, geometry.clusterSize);
}

/**
 * Replace the bitmaps in the file. Requires exclusive access to the image and
 * the metadata lock.
 *
 * @param old The directory in the file.
 * @param adopt Called with the new directory once it is in effect.
 */
export async function storeBitmaps(
  host: StoreHost,
  bitmaps: readonly DirtyBitmap[],
  old: readonly BitmapEntry[],
  adopt: (directory: BitmapEntry[]) => void,
): Promise<void> {
  const storing = new Storing(host);
  const stored: { bitmap: DirtyBitmap; entry: BitmapEntry; done(): void }[] =
    [];
  try {
    for (const bitmap of bitmaps) {
      stored.push({ bitmap, ...await storing.bitmap(bitmap) });
    }
    const kept = new Set(bitmaps.map(({ entry }) => entry));
    for (const entry of old) {
      if (!kept.has(entry)) await storing.replaceAll(entry);
    }
    await storing.directory(stored.map(({ entry }) => entry));
  } catch (error) {
    await storing.undo();
    throw error;
  }
  for (const { bitmap, entry, done } of stored) {
    bitmap.entry = entry;
    done();
  }
  adopt(stored.map(({ entry }) => entry));
  await storing.release();
}

/** Do something; if that fails, say what it was. */
async function during<T>(what: string, act: () => T | Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (error) {
    throw asBlockError(error).prefixed(`${what}: `);
  }
}

/** One round of storing. */
class Storing {
  readonly #host: StoreHost;
  /** Clusters allocated for new content. */
  readonly #taken: Place[] = [];
  /** Clusters to free once the header no longer refers to them. */
  readonly #replaced: Place[] = [];

  constructor(host: StoreHost) {
    this.#host = host;
  }

  /**
   * Store one bitmap: its table, and the data that differs from the file.
   * (Always the table, so that the image grows exactly as QEMU's does.)
   */
  async bitmap(
    bitmap: DirtyBitmap,
  ): Promise<{ entry: BitmapEntry; done(): void }> {
    const { entry } = bitmap;
    if (entry && bitmap.isInconsistent) return { entry, done: () => {} };
    const { content, name, rawName, granularity, isEnabled: auto } = bitmap;
    const table = await this.#data(name, content);
    const bytes = encodeBitmapTable(table);
    const place = {
      tableOffset: await this.#write(name, [bytes]),
      tableSize: table.length,
    };
    if (entry) await this.replaceAll(entry, new Set(table));
    return {
      entry: { rawName, name, granularity, inUse: false, auto, ...place },
      done: () => content.stored(table),
    };
  }

  /**
   * Write the clusters that have changed. The others stay where they are: the
   * old table refers to them until the header refers to the new one.
   */
  async #data(name: string, content: BitmapContent): Promise<BitmapTable> {
    const { clusterSize } = this.#host.geometry;
    const table: BitmapTable = new Float64Array(content.clusters);
    const atOnce = Math.max(1, Math.floor(MAX_WRITE / clusterSize));
    let pending: { index: number; bytes: Uint8Array }[] = [];
    const write = async () => {
      if (pending.length === 0) return;
      const parts = pending.map(({ bytes }) => bytes);
      const first = await this.#write(name, parts);
      pending.forEach(({ index }, i) => table[index] = first + i * clusterSize);
      pending = [];
    };
    for (let index = 0; index < table.length; index++) {
      const bytes = await content.changedCluster(index);
      table[index] = content.table[index] ?? ALL_ZEROES;
      if (!bytes) continue;
      table[index] = ALL_ZEROES;
      if (isZero(bytes)) continue;
      pending.push({ index, bytes });
      if (pending.length === atOnce) await write();
    }
    await write();
    return table;
  }

  /**
   * Write to new clusters in a row; returns where.
   *
   * @param name The bitmap's, for messages; absent for the directory.
   */
  async #write(
    name: string | undefined,
    parts: readonly Uint8Array[],
  ): Promise<number> {
    const { file, geometry, refcounts, overlap } = this.#host;
    const { clusterSize } = geometry;
    const bytes = parts.reduce((sum, { length }) => sum + length, 0);
    const length = roundUp(bytes, clusterSize);
    const owner = name === undefined
      ? "the bitmap directory"
      : `bitmap '${shortened(name)}'`;
    const offset = await during(
      `Failed to allocate clusters for ${owner}`,
      () => refcounts.allocate(length / clusterSize),
    );
    this.#taken.push({ offset, length });
    await during(
      "Qcow2 overlap check failed",
      () => overlap.check(offset, bytes),
    );
    // They may end the file, which must consist of whole sectors.
    const rest = roundUp(bytes, SECTOR_SIZE) - bytes;
    const iov = rest > 0 ? [...parts, allocate(rest)] : parts;
    await file.writev!(offset, iov);
    return offset;
  }

  /**
   * Note that a bitmap in the file is replaced.
   *
   * @param kept Clusters of its data that stay in use.
   */
  async replaceAll(
    entry: BitmapEntry,
    kept: ReadonlySet<number> = new Set(),
  ): Promise<void> {
    const { clusterSize } = this.#host.geometry;
    this.#replaced.push({
      offset: entry.tableOffset,
      length: entry.tableSize * ENTRY_SIZE,
    });
    let table: BitmapTable;
    try {
      table = await readTable(this.#host, entry);
    } catch (error) {
      // It is damaged: better leak its clusters than free others'.
      if (asBlockError(error).code === "EINVAL") return;
      throw error;
    }
    for (const offset of table) {
      if (offset === ALL_ZEROES || offset === ALL_ONES || kept.has(offset)) {
        continue;
      }
      const last = this.#replaced.at(-1)!;
      const isNext = last.offset + last.length === offset;
      if (isNext) last.length += clusterSize;
      else this.#replaced.push({ offset, length: clusterSize });
    }
  }

  /** Write the directory, and let the header refer to it. */
  async directory(entries: readonly BitmapEntry[]): Promise<void> {
    const { header } = this.#host;
    const { high, low } = header.autoclear;
    if (hasBitmaps(header)) {
      const { directoryOffset: offset, directorySize: length } = header
        .bitmaps!;
      this.#replaced.push({ offset, length });
    }
    if (entries.length === 0) {
      await this.#host.flushCaches();
      return await this.#host.changeHeader({
        bitmaps: undefined,
        autoclear: { high, low: (low & ~Autoclear.BITMAPS) >>> 0 },
      });
    }
    const bytes = encodeBitmapDirectory(entries);
    const directoryOffset = await this.#write(undefined, [bytes]);
    // All data and refcounts must be durable before the header refers to them.
    await this.#host.flushCaches();
    await this.#host.changeHeader({
      bitmaps: {
        count: entries.length,
        directorySize: bytes.length,
        directoryOffset,
      },
      autoclear: { high, low: (low | Autoclear.BITMAPS) >>> 0 },
    });
  }

  /** Free what was replaced. */
  async release(): Promise<void> {
    await this.#free(this.#replaced);
  }

  /** Nothing took effect: free what was allocated. */
  async undo(): Promise<void> {
    if (this.#host.unusable) return;
    // If that fails, it leaks.
    await this.#free(this.#taken).catch(() => {});
  }

  async #free(places: readonly Place[]): Promise<void> {
    for (const { offset, length } of places) {
      await this.#host.refcounts.free(offset, length);
    }
    await this.#host.flushCaches();
  }
}
