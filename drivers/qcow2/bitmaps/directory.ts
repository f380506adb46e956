/**
 * The bitmap directory: which bitmaps there are, and where their tables are.
 * (Specification: "Bitmaps", "Bitmap directory".)
 *
 * @module
 */
import { allocate, roundUp, viewOf } from "../../../core/bytes.ts";
import { type BlockError, invalid } from "../../../core/errors.ts";
import type { BitmapInfo, BlockNode } from "../../../core/node.ts";
import { readPadded } from "../../../core/requests.ts";
import { readUint64, writeUint64 } from "../format.ts";
import type { Geometry } from "../geometry.ts";
import type { BitmapsExtension } from "../header_extensions.ts";

/** Bytes of a directory entry without its name and extra data. */
const ENTRY_LENGTH = 24;
const IN_USE = 1;
const AUTO = 2;
const RESERVED_FLAGS = 0xfffffffc;
const TYPE_DIRTY_TRACKING = 1;
/** Most bytes of a name. */
export const MAX_NAME_LENGTH = 1023;
const MAX_TABLE_ENTRIES = 0x8000000;
/** Most bytes of a bitmap. */
const MAX_BITMAP_BYTES = 0x20000000;
/** Fewest bytes of the disk that a bit can stand for. */
export const MIN_GRANULARITY = 512;
export const MAX_GRANULARITY = 2 ** 31;

/** An entry of the directory. */
export interface BitmapEntry {
  /** The bytes of its name, which need not be UTF-8. */
  readonly rawName: Uint8Array;
  readonly name: string;
  /** Bytes of the disk that a bit stands for. */
  readonly granularity: number;
  /** Whether its stored bits may be out of date. */
  inUse: boolean;
  /** Whether it records writes. */
  auto: boolean;
  /** Offset of the bitmap table. */
  tableOffset: number;
  /** Entries of the bitmap table. */
  tableSize: number;
}

/** Bytes that an entry takes. */
export function bitmapEntryLength(nameLength: number, extraLength = 0): number {
  return roundUp(ENTRY_LENGTH + nameLength + extraLength, 8);
}

/**
 * Decode a directory of `count` entries.
 *
 * @param diskSize Bytes that each bitmap must cover.
 * @throws {BlockError} EINVAL if they are invalid.
 */
export function parseBitmapDirectory(
  bytes: Uint8Array,
  count: number,
  geometry: Geometry,
  diskSize: number,
): BitmapEntry[] {
  const { length } = bytes;
  const view = viewOf(bytes);
  const entries: BitmapEntry[] = [];
  const names = new Set<string>();
  for (let at = 0; at < length;) {
    if (at + ENTRY_LENGTH > length) throw invalid("Broken bitmap directory");
    if (entries.length >= count) throw miscounted("More");
    const nameLength = view.getUint16(at + 18);
    const extraLength = view.getUint32(at + 20);
    const end = at + bitmapEntryLength(nameLength, extraLength);
    if (end > length) throw invalid("Broken bitmap directory");
    if (extraLength !== 0) {
      throw invalid("Bitmap extra data is not supported");
    }
    const entry = parseEntry(bytes.subarray(at, end), geometry, diskSize);
    // Compared as bytes: decoding maps all that is not UTF-8 to the same text.
    const key = entry.rawName.join();
    if (names.has(key)) throw alreadyExists(entry.name);
    names.add(key);
    entries.push(entry);
    at = end;
  }
  if (length === 0) {
    throw invalid("Requested bitmap directory size is zero");
  }
  if (entries.length < count) throw miscounted("Less");
  return entries;
}

function miscounted(how: "More" | "Less"): BlockError {
  return invalid(`${how} bitmaps found than specified in header extension`);
}

/** The error for a bitmap whose name is taken. */
export function alreadyExists(name: string): BlockError {
  return invalid(`Bitmap already exists: ${name}`);
}

/** Clusters of data that a bitmap of a disk needs. */
export function bitmapClusters(
  diskSize: number,
  granularity: number,
  clusterSize: number,
): number {
  return Math.ceil(Math.ceil(diskSize / granularity) / 8 / clusterSize);
}

/** Whether a bitmap of a disk is larger than the format permits. */
export function isTooLarge(
  diskSize: number,
  granularity: number,
  clusterSize: number,
): boolean {
  const bytes = Math.ceil(Math.ceil(diskSize / granularity) / 8);
  return bytes > MAX_BITMAP_BYTES || bytes > MAX_TABLE_ENTRIES * clusterSize;
}

/** One entry. */
function parseEntry(
  bytes: Uint8Array,
  { clusterSize }: Geometry,
  diskSize: number,
): BitmapEntry {
  const view = viewOf(bytes);
  const tableOffset = readUint64(view, 0);
  const tableSize = view.getUint32(8);
  const flags = view.getUint32(12);
  const granularity = 2 ** view.getUint8(17);
  const nameLength = view.getUint16(18);
  const bitmapBytes = tableSize * clusterSize;
  const isValid = tableSize > 0 && tableSize <= MAX_TABLE_ENTRIES &&
    tableOffset > 0 && tableOffset % clusterSize === 0 &&
    tableOffset < 2 ** 53 &&
    granularity >= MIN_GRANULARITY && granularity <= MAX_GRANULARITY &&
    (flags & RESERVED_FLAGS) === 0 &&
    nameLength <= MAX_NAME_LENGTH &&
    view.getUint8(16) === TYPE_DIRTY_TRACKING &&
    bitmapBytes <= MAX_BITMAP_BYTES;
  const rawName = bytes.slice(ENTRY_LENGTH, ENTRY_LENGTH + nameLength);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const name = decoder.decode(rawName);
  // One that was in use at a crash may have an earlier size.
  const covered = bitmapBytes * 8 * granularity;
  if (!isValid || !(flags & IN_USE) && diskSize > covered) {
    throw invalid(`Bitmap '${name}' doesn't satisfy the constraints`);
  }
  return {
    rawName,
    name,
    granularity,
    inUse: (flags & IN_USE) !== 0,
    auto: (flags & AUTO) !== 0,
    tableOffset,
    tableSize,
  };
}

/** Encode a directory. */
export function encodeBitmapDirectory(
  entries: readonly BitmapEntry[],
): Uint8Array {
  const bytes = allocate(directoryLength(entries));
  const view = viewOf(bytes);
  let at = 0;
  for (const entry of entries) {
    const { rawName, granularity, inUse, auto } = entry;
    writeUint64(view, at, entry.tableOffset);
    view.setUint32(at + 8, entry.tableSize);
    view.setUint32(at + 12, (inUse ? IN_USE : 0) | (auto ? AUTO : 0));
    view.setUint8(at + 16, TYPE_DIRTY_TRACKING);
    view.setUint8(at + 17, Math.log2(granularity));
    view.setUint16(at + 18, rawName.length);
    bytes.set(rawName, at + ENTRY_LENGTH);
    at += bitmapEntryLength(rawName.length);
  }
  return bytes;
}

/** Bytes of an encoded directory. */
export function directoryLength(
  entries: readonly { readonly rawName: Uint8Array }[],
): number {
  return entries.reduce(
    (sum, { rawName }) => sum + bitmapEntryLength(rawName.length),
    0,
  );
}

/**
 * Read the directory of an image.
 *
 * @throws {BlockError} EINVAL if it is damaged.
 */
export async function readBitmapDirectory(
  file: BlockNode,
  { directoryOffset, directorySize, count }: BitmapsExtension,
  geometry: Geometry,
  diskSize: number,
): Promise<BitmapEntry[]> {
  const bytes = allocate(directorySize);
  await readPadded(file, directoryOffset, [bytes]);
  return parseBitmapDirectory(bytes, count, geometry, diskSize);
}

/** Describe a bitmap to users. */
export function describeBitmap(
  { name, granularity, inUse, auto }: BitmapEntry,
): BitmapInfo {
  const flags: BitmapInfo["flags"] = [];
  if (inUse) flags.push("in-use");
  if (auto) flags.push("auto");
  return { name, granularity, flags };
}
