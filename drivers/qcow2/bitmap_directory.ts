/**
 * The bitmap directory: what bitmaps there are, and where their tables lie.
 * (Specification: "Bitmaps", "Bitmap directory".)
 *
 * @module
 */
import { allocate, roundUp } from "../../core/bytes.ts";
import { type BlockError, invalid } from "../../core/errors.ts";
import type { BitmapInfo, BlockNode } from "../../core/node.ts";
import { readUint64, viewOf } from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { BitmapsExtension } from "./header_extensions.ts";

/** Bytes of the part of a directory entry that each has. */
const ENTRY_LENGTH = 24;
const IN_USE = 1;
const AUTO = 2;
const RESERVED_FLAGS = 0xfffffffc;
const TYPE_DIRTY_TRACKING = 1;
const MAX_NAME_LENGTH = 1023;
const MAX_TABLE_ENTRIES = 0x8000000;
/** Bytes of a bitmap at most. */
const MAX_BITMAP_BYTES = 0x20000000;
const MIN_GRANULARITY_BITS = 9;
const MAX_GRANULARITY_BITS = 31;

/** An entry of the directory. */
export interface BitmapEntry extends BitmapInfo {
  /** Where the bitmap table lies. */
  tableOffset: number;
  /** Entries of that table. */
  tableSize: number;
}

/** Bytes that an entry takes. */
export function bitmapEntryLength(nameLength: number, extraLength = 0): number {
  return roundUp(ENTRY_LENGTH + nameLength + extraLength, 8);
}

/**
 * The entries of a directory with `count` of them.
 *
 * @param diskSize Bytes that each bitmap must cover.
 * @throws {BlockError} EINVAL if they make no sense.
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
    entries.push(parseEntry(bytes.subarray(at, end), geometry, diskSize));
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
  const granularityBits = view.getUint8(17);
  const nameLength = view.getUint16(18);
  const bitmapBytes = tableSize * clusterSize;
  const isValid = tableSize > 0 && tableSize <= MAX_TABLE_ENTRIES &&
    tableOffset > 0 && tableOffset % clusterSize === 0 &&
    granularityBits >= MIN_GRANULARITY_BITS &&
    granularityBits <= MAX_GRANULARITY_BITS &&
    (flags & RESERVED_FLAGS) === 0 && nameLength <= MAX_NAME_LENGTH &&
    view.getUint8(16) === TYPE_DIRTY_TRACKING &&
    bitmapBytes <= MAX_BITMAP_BYTES;
  const bytesOfName = bytes.subarray(ENTRY_LENGTH, ENTRY_LENGTH + nameLength);
  const name = new TextDecoder().decode(bytesOfName);
  const granularity = 2 ** granularityBits;
  // One that was in use when the program died may be of an earlier size.
  const covered = bitmapBytes * 8 * granularity;
  if (!isValid || !(flags & IN_USE) && diskSize > covered) {
    throw invalid(`Bitmap '${name}' doesn't satisfy the constraints`);
  }
  return {
    name,
    granularity,
    flags: [
      ...(flags & IN_USE ? ["in-use" as const] : []),
      ...(flags & AUTO ? ["auto" as const] : []),
    ],
    tableOffset,
    tableSize,
  };
}

/**
 * The bitmaps of an image.
 *
 * @throws {BlockError} EINVAL if the directory is damaged.
 */
export async function listBitmaps(
  file: BlockNode,
  { directoryOffset, directorySize, count }: BitmapsExtension,
  geometry: Geometry,
  diskSize: number,
): Promise<BitmapInfo[]> {
  const bytes = allocate(directorySize);
  await file.readv(directoryOffset, [bytes]);
  const entries = parseBitmapDirectory(bytes, count, geometry, diskSize);
  return entries.map(({ name, granularity, flags }) => ({
    name,
    granularity,
    flags,
  }));
}
