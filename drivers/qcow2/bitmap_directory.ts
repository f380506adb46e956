/**
 * The bitmap directory: what bitmaps there are, and where their tables lie.
 * (Specification: "Bitmaps", "Bitmap directory".)
 *
 * @module
 */
import { allocate, roundUp } from "../../core/bytes.ts";
import { asBlockError } from "../../core/errors.ts";
import type { BitmapInfo, BlockNode } from "../../core/node.ts";
import { shortened } from "../../core/values.ts";
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
 * @param tell Told what is wrong, in QEMU's words.
 */
export function parseBitmapDirectory(
  bytes: Uint8Array,
  count: number,
  geometry: Geometry,
  diskSize: number,
  tell?: (fault: string) => void,
): BitmapEntry[] | undefined {
  const { length } = bytes;
  const view = viewOf(bytes);
  const entries: BitmapEntry[] = [];
  const wrong = (fault: string) => {
    tell?.(fault);
    return undefined;
  };
  if (length === 0) return wrong("Requested bitmap directory size is zero");
  for (let at = 0; at < length;) {
    if (entries.length >= count) {
      return wrong("More bitmaps found than specified in header extension");
    }
    if (at + ENTRY_LENGTH > length) return wrong("Broken bitmap directory");
    const nameLength = view.getUint16(at + 18);
    const extraLength = view.getUint32(at + 20);
    const end = at + bitmapEntryLength(nameLength, extraLength);
    if (end > length) return wrong("Broken bitmap directory");
    if (extraLength !== 0) return wrong("Bitmap extra data is not supported");
    const bytesOfEntry = bytes.subarray(at, end);
    const entry = parseEntry(bytesOfEntry, geometry, diskSize);
    if (!entry) {
      const name = shortened(nameIn(bytesOfEntry), 80);
      return wrong(`Bitmap '${name}' doesn't satisfy the constraints`);
    }
    entries.push(entry);
    at = end;
  }
  return entries.length === count
    ? entries
    : wrong("Less bitmaps found than specified in header extension");
}

function nameIn(entry: Uint8Array): string {
  const length = viewOf(entry).getUint16(18);
  return new TextDecoder().decode(
    entry.subarray(ENTRY_LENGTH).subarray(0, length),
  );
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
  return {
    name: nameIn(bytes),
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
 * The bitmaps of an image; none if the directory is damaged, which does not
 * keep anybody from the disk itself.
 *
 * @param tell Told what is wrong with the directory.
 */
export async function listBitmaps(
  file: BlockNode,
  { directoryOffset, directorySize, count }: BitmapsExtension,
  geometry: Geometry,
  diskSize: number,
  tell?: (fault: string) => void,
): Promise<BitmapInfo[]> {
  const bytes = allocate(directorySize);
  try {
    await file.readv(directoryOffset, [bytes]);
  } catch (error) {
    tell?.(`Failed to read bitmap directory: ${asBlockError(error).message}`);
    return [];
  }
  const entries = parseBitmapDirectory(
    bytes,
    count,
    geometry,
    diskSize,
    tell,
  );
  return (entries ?? []).map(({ name, granularity, flags }) => ({
    name,
    granularity,
    flags,
  }));
}
