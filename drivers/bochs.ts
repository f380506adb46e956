/**
 * The format driver `bochs`: growing disk images of the Bochs emulator,
 * read-only.
 *
 * A catalog maps each extent of the disk to the file; a bitmap before the
 * extent marks the sectors that were written. All numbers are little-endian.
 * (There is no specification; the layout follows QEMU's driver.)
 *
 * @module
 */
import type { Run } from "../core/block_map.ts";
import {
  allocate,
  divideUp,
  isPowerOfTwo,
  SECTOR_SIZE,
  viewOf,
} from "../core/bytes.ts";
import { BlockError, invalid } from "../core/errors.ts";
import type { BlockNode } from "../core/node.ts";
import {
  damaged,
  readOnlyDriver,
  ReadOnlyMap,
  u64,
} from "../core/read_only.ts";
import { readPadded } from "../core/requests.ts";
import { SectorBitmaps } from "../core/sector_bitmaps.ts";

/** Bochs's growing images. */
export const bochsDriver = readOnlyDriver("bochs", async (file) => {
  const header = await readHeader(file);
  return { size: header.size, map: new BochsMap(file, header) };
});

const NAMES = ["Bochs Virtual HD Image", "Redolog", "Growing"] as const;
/** Their offsets in the header. */
const NAME_OFFSETS = [0, 32, 48] as const;
const [VERSION_1, VERSION_2] = [0x10000, 0x20000];
const HEADER_SIZE = 512;
const ENTRY_SIZE = 4;
/** The catalog's entry for an extent that was never written. */
const ABSENT = 0xffffffff;

/** QEMU's limits. */
const MAX_ENTRIES = 0x100000;
const MAX_EXTENT = 0x800000;

interface Header {
  /** Bytes of the disk. */
  readonly size: number;
  /** Bytes of an extent, a power of two. */
  readonly extentSize: number;
  /** Bytes of the bitmap before each extent, in whole sectors. */
  readonly bitmapSize: number;
  /** The number in the file of each extent. */
  readonly catalog: DataView;
  /** Offset of extent 0 with its bitmap. */
  readonly dataOffset: number;
}

/** Read the header and the catalog, with checks in QEMU's order. */
async function readHeader(file: BlockNode): Promise<Header> {
  const bytes = allocate(HEADER_SIZE);
  await readPadded(file, 0, [bytes]);
  const view = viewOf(bytes);
  const u32 = (at: number) => view.getUint32(at, true);
  const version = u32(64);
  const isBochs = NAMES.every((name, i) =>
    textAt(bytes, NAME_OFFSETS[i]) === name
  );
  if (!isBochs || (version !== VERSION_1 && version !== VERSION_2)) {
    const subtype = textAt(bytes, 48);
    throw invalid(
      "Image not in Bochs format",
      textAt(bytes, 0) === NAMES[0] && /^(Undoable|Volatile)$/.test(subtype)
        ? `Images of the type '${subtype}' hold what has changed in another.`
        : undefined,
    );
  }
  const [headerSize, entries, bitmap, extentSize] = [68, 72, 76, 80].map(u32);
  if (entries > MAX_ENTRIES) {
    throw new BlockError("EFBIG", "Catalog size is too large");
  }
  if (extentSize < SECTOR_SIZE) {
    throw invalid("Extent size must be at least 512");
  }
  if (!isPowerOfTwo(extentSize)) {
    throw invalid(`Extent size ${extentSize} is not a power of two`);
  }
  if (extentSize > MAX_EXTENT) {
    throw invalid(`Extent size ${extentSize} is too large`);
  }
  const bytesOfDisk = u64(view, version === VERSION_1 ? 84 : 88, true);
  const sectors = Math.floor(bytesOfDisk / SECTOR_SIZE);
  if (entries < divideUp(sectors, extentSize / SECTOR_SIZE)) {
    throw invalid("Catalog size is too small for this disk size");
  }
  if (bitmap * 8 < extentSize / SECTOR_SIZE || bitmap > MAX_EXTENT) {
    throw invalid(
      `A bitmap of ${bitmap} bytes does not fit an extent of ${extentSize}`,
    );
  }
  const dataOffset = headerSize + entries * ENTRY_SIZE;
  if (dataOffset > file.size) {
    throw invalid("The catalog goes past the end of the file");
  }
  const catalog = allocate(entries * ENTRY_SIZE);
  await readPadded(file, headerSize, [catalog]);
  return {
    size: sectors * SECTOR_SIZE,
    extentSize,
    bitmapSize: divideUp(bitmap, SECTOR_SIZE) * SECTOR_SIZE,
    catalog: viewOf(catalog),
    dataOffset,
  };
}

/** The text that ends with a zero byte. */
function textAt(bytes: Uint8Array, at: number): string {
  const field = bytes.subarray(at, at + 32);
  const end = field.indexOf(0);
  return String.fromCharCode(...field.subarray(0, end < 0 ? undefined : end));
}

/** Most bitmaps read at once, for a request that spans several extents. */
const MAX_TOGETHER = 16;
/** Bitmaps kept in memory; those of larger extents have at most 2 KiB. */
const MAX_BITMAPS = 256;

class BochsMap extends ReadOnlyMap {
  readonly #header: Header;
  readonly #bitmaps: SectorBitmaps;

  constructor(file: BlockNode, header: Header) {
    super(file);
    this.#header = header;
    this.#bitmaps = new SectorBitmaps(header.extentSize, MAX_BITMAPS);
  }

  lookup(offset: number, length: number): Run | undefined {
    const { extentSize, bitmapSize } = this.#header;
    const extent = Math.floor(offset / extentSize);
    const from = offset % extentSize;
    const inExtent = Math.min(length, extentSize - from);
    const place = this.#placeOf(extent);
    if (place === undefined) return { kind: "zero", length: inExtent };
    const run = this.#bitmaps.run(extent, from, inExtent);
    if (!run) return undefined;
    if (!run.isHere) return { kind: "zero", length: run.length };
    const childOffset = place + bitmapSize + from;
    if (childOffset + run.length > this.file.size) return undefined;
    return { kind: "data", length: run.length, child: this.file, childOffset };
  }

  async find(offset: number, length: number): Promise<Run> {
    const { extentSize } = this.#header;
    const extent = Math.floor(offset / extentSize);
    const most = Math.min(
      divideUp(offset + length, extentSize) - extent,
      MAX_TOGETHER,
    );
    await Promise.all(Array.from({ length: most }, (_, i) => {
      const loading = this.#load(extent + i);
      // The failure of another one is reported in its turn.
      return i === 0 ? loading : loading.catch(() => {});
    }));
    const run = this.lookup(offset, length);
    if (!run) throw damaged(`Extent ${extent} goes past the end of the file`);
    return run;
  }

  /** Offset of an extent's bitmap, if it has one. */
  #placeOf(extent: number): number | undefined {
    const { catalog, dataOffset, bitmapSize, extentSize } = this.#header;
    const number = catalog.getUint32(extent * ENTRY_SIZE, true);
    if (number === ABSENT) return undefined;
    return dataOffset + number * (bitmapSize + extentSize);
  }

  async #load(extent: number): Promise<void> {
    const place = this.#placeOf(extent);
    if (place === undefined) return;
    await this.#bitmaps.load(extent, async (bitmap) => {
      if (place + bitmap.length > this.file.size) {
        throw damaged(`Extent ${extent} goes past the end of the file`);
      }
      await this.file.readv(place, [bitmap]);
    });
  }
}
