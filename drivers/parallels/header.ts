/**
 * The header of a Parallels image: 64 bytes, little-endian, before the block
 * allocation table (BAT). (Specification: "Header" of QEMU's
 * docs/interop/parallels.txt.)
 *
 * @module
 */
import {
  allocate,
  divideUp,
  isExactSize,
  roundUp,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";

/** Bytes of the header; the table follows. */
export const HEADER_SIZE = 64;
/** Bytes of an entry of the table. */
export const ENTRY_SIZE = 4;

/** Entries count sectors. */
const MAGIC = "WithoutFreeSpace";
/** Entries count clusters. */
const MAGIC_EXTENDED = "WithouFreSpacExt";
const VERSION = 2;
/** Most sectors of a cluster, and most entries, in QEMU. */
const [MAX_TRACKS, MAX_ENTRIES] = [0x7fffffff / 513, 0x1fffffff];
const HEADS = 16;
const SECTORS_PER_CYLINDER = 32;

/** Offsets of the fields. */
const AT = {
  magic: 0,
  version: 16,
  heads: 20,
  cylinders: 24,
  tracks: 28,
  entries: 32,
  sectors: 36,
  inUse: 44,
  dataOffset: 48,
  extension: 56,
} as const;

/** The field that tells whether the image is open. */
export const IN_USE = { OPEN: 0x746f6e59, CLOSED: 0 } as const;

/** The parsed header. Sizes and offsets are in bytes. */
export interface ParallelsHeader {
  /** Bytes of the disk. */
  readonly size: number;
  readonly clusterSize: number;
  /** Entries of the table. */
  readonly entries: number;
  /** The unit of table entries in bytes. */
  readonly entryUnit: number;
  /** End of the table. */
  readonly tableEnd: number;
  /** Offset of the first cluster. */
  readonly dataOffset: number;
  /** Offset of the format extension; 0 if there is none. */
  readonly extension: number;
  /** Whether the image is open, or was not closed properly. */
  readonly isInUse: boolean;
  /** The raw header. */
  readonly bytes: Uint8Array;
}

/**
 * Read the header. Checks are in QEMU's order, which decides the message.
 *
 * @throws {BlockError} EINVAL if it is not such an image, EFBIG if a field is
 * too large.
 */
export async function readHeader(file: BlockNode): Promise<ParallelsHeader> {
  const bytes = allocate(HEADER_SIZE);
  await readPadded(file, 0, [bytes]);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const u32 = (at: number) => view.getUint32(at, true);
  const magic = String.fromCharCode(...bytes.subarray(0, MAGIC.length));
  const isExtended = magic === MAGIC_EXTENDED;
  if (u32(AT.version) !== VERSION || !(isExtended || magic === MAGIC)) {
    throw invalid("Image not in Parallels format");
  }
  const tracks = u32(AT.tracks);
  if (tracks === 0) throw invalid("Invalid image: Zero sectors per track");
  if (tracks > MAX_TRACKS) {
    throw new BlockError("EFBIG", "Invalid image: Too big cluster");
  }
  const entries = u32(AT.entries);
  if (entries > MAX_ENTRIES) throw new BlockError("EFBIG", "Catalog too large");
  const clusterSize = tracks * SECTOR_SIZE;
  const sectors = isExtended
    ? Number(view.getBigUint64(AT.sectors, true))
    : u32(AT.sectors);
  const size = sectors * SECTOR_SIZE;
  if (size > entries * clusterSize || (size > 0 && !isExactSize(size))) {
    throw invalid(
      "Invalid image: Catalog size too small for advertised disk size",
    );
  }
  const entryUnit = isExtended ? clusterSize : SECTOR_SIZE;
  const tableEnd = HEADER_SIZE + entries * ENTRY_SIZE;
  const extension = Number(view.getBigUint64(AT.extension, true)) * SECTOR_SIZE;
  return {
    size,
    clusterSize,
    entries,
    entryUnit,
    tableEnd,
    dataOffset: roundUp(
      Math.max(u32(AT.dataOffset) * SECTOR_SIZE, tableEnd),
      entryUnit,
    ),
    extension,
    isInUse: u32(AT.inUse) === IN_USE.OPEN,
    bytes,
  };
}

/** Set the field in the raw header that tells whether the image is open. */
export function setInUse({ bytes }: ParallelsHeader, value: number): void {
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(AT.inUse, value, true);
}

/** Remove the extension from the raw header. */
export function dropExtension({ bytes }: ParallelsHeader): void {
  bytes.fill(0, AT.extension, AT.extension + 8);
}

/**
 * The header of a new image, and the size of its file with the table.
 *
 * @throws {BlockError} EINVAL if the sizes are invalid.
 */
export function newHeader(
  wantedSize: number,
  wantedClusterSize: number,
): { bytes: Uint8Array; fileSize: number } {
  const size = roundUp(wantedSize, SECTOR_SIZE);
  const clusterSize = roundUp(wantedClusterSize, SECTOR_SIZE);
  const tracks = clusterSize / SECTOR_SIZE;
  // QEMU would also create images that it cannot open.
  if (tracks > MAX_TRACKS) throw invalid("Cluster size is too large");
  const entries = clusterSize === 0 ? Infinity : divideUp(size, clusterSize);
  if (entries > MAX_ENTRIES || !isExactSize(size)) {
    throw invalid("Image size is too large for this cluster size");
  }
  const fileSize = roundUp(HEADER_SIZE + entries * ENTRY_SIZE, clusterSize);
  const bytes = allocate(HEADER_SIZE);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const set = (at: number, value: number) => view.setUint32(at, value, true);
  bytes.set(new TextEncoder().encode(MAGIC_EXTENDED), AT.magic);
  set(AT.version, VERSION);
  set(AT.heads, HEADS);
  const sectors = size / SECTOR_SIZE;
  set(
    AT.cylinders,
    Math.floor(sectors / HEADS / SECTORS_PER_CYLINDER) % 2 ** 32,
  );
  set(AT.tracks, tracks);
  set(AT.entries, entries);
  view.setBigUint64(AT.sectors, BigInt(sectors), true);
  set(AT.dataOffset, fileSize / SECTOR_SIZE);
  return { bytes, fileSize };
}
