/**
 * The bitmap directory: what bitmaps there are, and where their tables lie.
 * (Specification: "Bitmaps", "Bitmap directory".)
 *
 * @module
 */
import { allocate, roundUp } from "../../core/bytes.ts";
import type { BitmapInfo, BlockNode } from "../../core/node.ts";
import { type Geometry, readUint64, viewOf } from "./format.ts";
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
 * The entries of a directory with `count` of them; `undefined` if they make no
 * sense.
 *
 * @param diskSize Bytes that each bitmap must cover.
 */
export function parseBitmapDirectory(
  bytes: Uint8Array,
  count: number,
  geometry: Geometry,
  diskSize: number,
): BitmapEntry[] | undefined {
  const { length } = bytes;
  const view = viewOf(bytes);
  const entries: BitmapEntry[] = [];
  for (let at = 0; at < length;) {
    if (at + ENTRY_LENGTH > length || entries.length >= count) return undefined;
    const nameLength = view.getUint16(at + 18);
    const extraLength = view.getUint32(at + 20);
    const end = at + bitmapEntryLength(nameLength, extraLength);
    if (end > length || extraLength !== 0) return undefined;
    const entry = parseEntry(bytes.subarray(at, end), geometry, diskSize);
    if (!entry) return undefined;
    entries.push(entry);
    at = end;
  }
  return length > 0 && entries.length === count ? entries : undefined;
}

/** One entry, unless it makes no sense. */
function parseEntry(
  bytes: Uint8Array,
  { clusterSize }: Geometry,
  diskSize: number,
): BitmapEntry | undefined {
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
  if (!isValid) return undefined;
  const granularity = 2 ** granularityBits;
  // One that was in use when the program died may be of an earlier size.
  const covered = bitmapBytes * 8 * granularity;
  if (!(flags & IN_USE) && diskSize > covered) return undefined;
  const name = bytes.subarray(ENTRY_LENGTH, ENTRY_LENGTH + nameLength);
  return {
    name: new TextDecoder().decode(name),
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
 * The bitmaps of an image; none if the directory is damaged, which is for a
 * check to tell.
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
  return (entries ?? []).map(({ name, granularity, flags }) => ({
    name,
    granularity,
    flags,
  }));
}
