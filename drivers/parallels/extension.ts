/**
 * The format extension: a cluster that describes features, of which only dirty
 * bitmaps exist. (Specification: "Format Extension" and "Dirty bitmaps
 * feature".)
 *
 * @module
 */
import {
  allocate,
  divideUp,
  isPowerOfTwo,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import { hasher } from "../../core/crypto/hashes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type {
  BitmapInfo,
  BitmapOperations,
  BlockNode,
  DirtyExtent,
} from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import { isEqual } from "../../core/runtime.ts";
import type { ParallelsHeader } from "./header.ts";

const MAGIC = 0xab234cef23dcea87n;
const END_OF_FEATURES = 0n;
const DIRTY_BITMAP = 0x20385fae252cb34an;

/** Bytes of the extension's header, of a feature's, and of a bitmap's. */
const [EXTENSION_HEADER, FEATURE_HEADER, BITMAP_HEADER] = [24, 24, 32];
/** Offset of the checksum. */
const CHECKSUM_AT = 8;
/**
 * Most bytes of an extension that are read; QEMU reads a cluster of any size.
 */
const MAX_EXTENSION = 64 * 1024 * 1024;
/** Bytes of a bitmap processed at once. */
const CHUNK_BYTES = 64 * 1024;
/** An L1 entry of a bitmap that stands for set bits. */
const ALL_ONES = 1;

/** A bitmap in the file. */
interface StoredBitmap {
  /** Its UUID. */
  readonly name: string;
  /** Bytes of the disk per bit. */
  readonly granularity: number;
  /**
   * For each cluster of the bitmap: 0 or 1 for uniform bits, or its first
   * sector.
   */
  readonly table: readonly number[];
}

/**
 * Read the extension of an image.
 *
 * @throws {BlockError} EINVAL if it is damaged, or has unknown features.
 */
export async function readBitmaps(
  file: BlockNode,
  header: ParallelsHeader,
): Promise<BitmapOperations> {
  const { extension, clusterSize } = header;
  if (extension + clusterSize > file.size || clusterSize > MAX_EXTENSION) {
    throw invalid("Failed to read Format Extension cluster");
  }
  const bytes = allocate(clusterSize);
  await file.readv(extension, [bytes]);
  const bitmaps = await parseExtension(bytes, header);
  return new Bitmaps(file, header, bitmaps);
}

async function parseExtension(
  bytes: Uint8Array,
  header: ParallelsHeader,
): Promise<StoredBitmap[]> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const magic = view.getBigUint64(0, true);
  if (magic !== MAGIC) {
    throw invalid(
      `Wrong parallels Format Extension magic: 0x${magic.toString(16)}, ` +
        `expected: 0x${MAGIC.toString(16)}`,
    );
  }
  const sum = await hasher("md5")(bytes.subarray(EXTENSION_HEADER));
  const stored = bytes.subarray(CHECKSUM_AT, CHECKSUM_AT + sum.length);
  if (!isEqual(new Uint8Array(sum), new Uint8Array(stored))) {
    throw invalid(
      "Wrong checksum in Format Extension header. Format extension is corrupted.",
    );
  }
  const bitmaps: StoredBitmap[] = [];
  for (let at = EXTENSION_HEADER;;) {
    const left = bytes.length - at;
    if (left < FEATURE_HEADER) {
      throw invalid(
        `Can not read feature header, as remaining bytes (${left}) in Format ` +
          `Extension is less than Feature header size (${FEATURE_HEADER})`,
      );
    }
    const feature = view.getBigUint64(at, true);
    const flags = view.getBigUint64(at + 8, true);
    const length = view.getUint32(at + 16, true);
    at += FEATURE_HEADER;
    if (flags !== 0n) {
      throw invalid("Flags for extension feature are unsupported");
    }
    if (length > bytes.length - at) {
      throw invalid("Feature data_size exceedes Format Extension cluster");
    }
    if (feature === END_OF_FEATURES) return bitmaps;
    if (feature !== DIRTY_BITMAP) {
      throw invalid(`Unknown feature: 0x${feature.toString(16)}`);
    }
    const data = new DataView(bytes.buffer, bytes.byteOffset + at, length);
    bitmaps.push(parseBitmap(data, header));
    at += length + (8 - length % 8) % 8;
  }
}

function parseBitmap(
  view: DataView,
  { size, clusterSize }: ParallelsHeader,
): StoredBitmap {
  if (view.byteLength < BITMAP_HEADER) {
    throw invalid(
      "Too small Bitmap Feature area in Parallels Format Extension: " +
        `${view.byteLength} bytes, expected at least ${BITMAP_HEADER} bytes`,
    );
  }
  const sectors = view.getBigUint64(0, true);
  if (sectors !== BigInt(size / SECTOR_SIZE)) {
    throw invalid(
      `Bitmap size (in sectors) ${sectors} differs from disk size in ` +
        `sectors ${size / SECTOR_SIZE}`,
    );
  }
  const granularity = view.getUint32(24, true) * SECTOR_SIZE;
  if (!isPowerOfTwo(granularity) || granularity > 2 ** 31) {
    throw invalid(`Bitmap granularity ${granularity} is invalid`);
  }
  const entries = view.getUint32(28, true);
  if (entries * 8 > view.byteLength - BITMAP_HEADER) {
    throw invalid(
      "Bitmaps feature corrupted: l1 table exceeds extension data_size",
    );
  }
  const words = divideUp(divideUp(size, granularity), 64);
  const expected = divideUp(words * 8, clusterSize);
  if (entries !== expected) {
    throw invalid(
      `Bitmap table size ${entries} does not correspond to bitmap size and ` +
        `cluster size. Expected ${expected}`,
    );
  }
  const table = Array.from(
    { length: entries },
    (_, index) => Number(view.getBigUint64(BITMAP_HEADER + 8 * index, true)),
  );
  return { name: uuidText(view), granularity, table };
}

function uuidText(view: DataView): string {
  const bytes = new Uint8Array(view.buffer, view.byteOffset + 8, 16);
  const digits = Array.from(
    bytes,
    (byte) => byte.toString(16).padStart(2, "0"),
  );
  return digits.join("").replace(
    /^(.{8})(.{4})(.{4})(.{4})(.{12})$/,
    "$1-$2-$3-$4-$5",
  );
}

class Bitmaps implements BitmapOperations {
  readonly #file: BlockNode;
  readonly #header: ParallelsHeader;
  readonly #bitmaps: readonly StoredBitmap[];

  constructor(
    file: BlockNode,
    header: ParallelsHeader,
    bitmaps: readonly StoredBitmap[],
  ) {
    this.#file = file;
    this.#header = header;
    this.#bitmaps = bitmaps;
  }

  list(): Promise<BitmapInfo[]> {
    return Promise.resolve(
      this.#bitmaps.map(({ name, granularity }) => ({
        name,
        granularity,
        flags: [],
      })),
    );
  }

  async *dirty(
    name: string,
    offset: number,
    length: number,
  ): AsyncIterable<DirtyExtent> {
    const bitmap = this.#bitmaps.find((bitmap) => bitmap.name === name);
    if (!bitmap) throw new BlockError("ENOENT");
    const { granularity } = bitmap;
    const end = Math.min(offset + length, this.#header.size);
    let last: DirtyExtent | undefined;
    for await (const [first, count] of this.#setBits(bitmap, offset, end)) {
      const start = Math.max(offset, first * granularity);
      const stop = Math.min(end, (first + count) * granularity);
      if (stop <= start) continue;
      if (last && last.offset + last.length === start) {
        last.length += stop - start;
        continue;
      }
      if (last) yield last;
      last = { offset: start, length: stop - start };
    }
    if (last) yield last;
  }

  /**
   * Runs of set bits in a range of the disk; one run may be returned in parts.
   */
  async *#setBits(
    { granularity, table }: StoredBitmap,
    start: number,
    end: number,
  ): AsyncIterable<[first: number, count: number]> {
    const { clusterSize } = this.#header;
    const bitsPerCluster = clusterSize * 8;
    const stop = divideUp(end, granularity);
    for (let bit = Math.floor(start / granularity); bit < stop;) {
      const index = Math.floor(bit / bitsPerCluster);
      const left = Math.min(stop, (index + 1) * bitsPerCluster) - bit;
      const entry = table[index];
      if (entry === 0 || entry === ALL_ONES) {
        if (entry === ALL_ONES) yield [bit, left];
        bit += left;
        continue;
      }
      const inCluster = bit % bitsPerCluster;
      const byte = Math.floor(inCluster / 8);
      const skipped = inCluster % 8;
      const bytes = allocate(
        Math.min(CHUNK_BYTES, divideUp(skipped + left, 8)),
      );
      const at = entry * SECTOR_SIZE + byte;
      if (!(at < this.#file.size)) throw new BlockError("EIO");
      await readPadded(this.#file, at, [bytes]);
      const count = Math.min(left, bytes.length * 8 - skipped);
      for (let i = skipped; i < skipped + count;) {
        if (!(bytes[i >> 3] >> (i & 7) & 1)) {
          i++;
          continue;
        }
        const first = i;
        while (i < skipped + count && bytes[i >> 3] >> (i & 7) & 1) i++;
        yield [bit + first - skipped, i - first];
      }
      bit += count;
    }
  }

  add = cannotChange;
  remove = cannotChange;
  clear = cannotChange;
  enable = cannotChange;
  disable = cannotChange;
  merge = cannotChange;
}

/**
 * Bitmaps are read-only here: they are not updated when the disk is written to.
 */
function cannotChange(): Promise<never> {
  return Promise.reject(
    new BlockError("ENOTSUP", "Bitmaps of Parallels images can only be read"),
  );
}
