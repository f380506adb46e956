/**
 * The footer of a VHD image (512 bytes, big-endian), and the header of a dynamic
 * one (1024 bytes), after Microsoft's "Virtual Hard Disk Image Format
 * Specification" of 2006.
 *
 * @module
 */
import { allocate, roundUp, SECTOR_SIZE, viewOf } from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import {
  type Geometry,
  isLargest,
  MAX_SECTORS,
  sectorsOf,
} from "./geometry.ts";

/** Bytes of a footer. */
export const FOOTER_SIZE = 512;
/** Bytes of the header of a dynamic image. */
export const DYNAMIC_HEADER_SIZE = 1024;
/** A table entry without a block. */
export const UNALLOCATED = 0xffffffff;

/** Types of images. */
export const TYPE = { FIXED: 2, DYNAMIC: 3, DIFFERENCING: 4 } as const;

/** Offsets of the fields in the footer. */
const AT = {
  features: 8,
  version: 12,
  dataOffset: 16,
  timestamp: 24,
  creator: 28,
  creatorVersion: 32,
  creatorSystem: 36,
  originalSize: 40,
  currentSize: 48,
  cylinders: 56,
  heads: 58,
  sectors: 59,
  type: 60,
  checksum: 64,
  uuid: 68,
} as const;

/** Offsets of the fields in the dynamic header. */
const DYNAMIC = {
  nextOffset: 8,
  tableOffset: 16,
  version: 24,
  entries: 28,
  blockSize: 32,
  checksum: 36,
  parentUuid: 40,
  parentName: 64,
  locators: 576,
} as const;

const COOKIE = "conectix";
const DYNAMIC_COOKIE = "cxsparse";
const VERSION = 0x00010000;
/** Most table entries that QEMU's driver supports. */
const MAX_ENTRIES = 0x1fffffff;
/** The epoch of VHD, 2000-01-01, as Unix time in seconds. */
const EPOCH = 946684800;

/** The content of a footer. */
export interface Footer {
  /** One of `TYPE`, unless it is damaged. */
  readonly type: number;
  /** Four characters that identify the creator. */
  readonly creator: string;
  readonly geometry: Geometry;
  /** Bytes of the disk, unless the geometry determines them. */
  readonly currentSize: bigint;
  /** Offset of the dynamic header. */
  readonly dataOffset: bigint;
  /** Hexadecimal digits. */
  readonly uuid: string;
  /** The raw footer. */
  readonly bytes: Uint8Array;
}

/** What determines the size of the disk: its geometry or its size field. */
export type SizeRule = "chs" | "current_size" | undefined;

/**
 * Read the footer: a dynamic image has a copy at its start, a fixed one only
 * the one at its end, since everything before it is the disk.
 *
 * @throws {BlockError} EINVAL if it is not a VHD image, ENOTSUP if its type is
 * unknown.
 */
export async function readFooter(
  file: BlockNode,
  warn: (message: string) => void,
): Promise<Footer> {
  const size = roundUp(file.size, SECTOR_SIZE);
  const front = await readAt(file, 0);
  const back = size > FOOTER_SIZE
    ? await readAt(file, size - FOOTER_SIZE)
    : allocate(FOOTER_SIZE);
  if (isSound(front)) {
    const footer = decoded(front);
    // The guest of a fixed disk can write anything to its first sector,
    // including a header that names a parent to read.
    if (isSound(back) && decoded(back).type === TYPE.FIXED) {
      throw invalid(
        "the footers of the VHD image at the start and at the end of the file " +
          "contradict each other",
      );
    }
    // A fixed image has only the footer after the disk.
    if (footer.type === TYPE.FIXED) throw invalid("invalid VPC image");
    return checkedType(footer);
  }
  if (!hasCookie(front) && file.size < FOOTER_SIZE) {
    throw invalid("File too small for a VHD header");
  }
  const isCopy = isSound(back) && decoded(back).type !== TYPE.FIXED;
  if (isSound(back) && (!isCopy || hasCookie(front))) {
    if (isCopy) {
      warn(
        `'${file.filename}' has a damaged copy of the VHD footer at its ` +
          "start; the one at its end is used",
      );
    }
    return checkedType(decoded(back));
  }
  const isFixed = hasCookie(back) && decoded(back).type === TYPE.FIXED;
  throw invalid(
    hasCookie(front) || isFixed
      ? "Incorrect header checksum"
      : "invalid VPC image",
  );
}

async function readAt(file: BlockNode, offset: number): Promise<Uint8Array> {
  const bytes = allocate(FOOTER_SIZE);
  await readPadded(file, offset, [bytes]);
  return bytes;
}

/** Whether the bytes are a valid footer. */
export function isSound(bytes: Uint8Array): boolean {
  return hasCookie(bytes) &&
    viewOf(bytes).getUint32(AT.checksum) === checksum(bytes, AT.checksum);
}

function hasCookie(bytes: Uint8Array): boolean {
  return textAt(bytes, 0, 8) === COOKIE;
}

function decoded(bytes: Uint8Array): Footer {
  const view = viewOf(bytes);
  return {
    type: view.getUint32(AT.type),
    creator: textAt(bytes, AT.creator, 4),
    geometry: {
      cylinders: view.getUint16(AT.cylinders),
      heads: bytes[AT.heads],
      sectors: bytes[AT.sectors],
    },
    currentSize: view.getBigUint64(AT.currentSize),
    dataOffset: view.getBigUint64(AT.dataOffset),
    uuid: hexAt(bytes, AT.uuid),
    bytes,
  };
}

function checkedType(footer: Footer): Footer {
  if (Object.values<number>(TYPE).includes(footer.type)) return footer;
  throw new BlockError(
    "ENOTSUP",
    `unsupported VHD image (disk type ${footer.type})`,
  );
}

/** Creators that use the geometry: Virtual PC, and QEMU after it. */
const BY_GEOMETRY = ["vpc ", "qemu"];

/**
 * Bytes of the disk. Virtual PC uses the geometry, others the size field, which
 * is usually larger: with the wrong one, the end of the disk is lost.
 *
 * @throws {BlockError} EFBIG if there are more than 2040 GiB.
 */
export function diskSize(footer: Footer, rule: SizeRule): number {
  const { creator, geometry, currentSize } = footer;
  const byGeometry = rule === "chs" ||
    (rule === undefined && BY_GEOMETRY.includes(creator));
  const sectors = byGeometry && !isLargest(geometry)
    ? sectorsOf(geometry)
    : Number(currentSize / BigInt(SECTOR_SIZE));
  if (sectors > MAX_SECTORS) throw new BlockError("EFBIG");
  return sectors * SECTOR_SIZE;
}

/** The content of a dynamic header. */
export interface DynamicHeader {
  /** Offset of the block allocation table. */
  readonly tableOffset: number;
  /** Its entries. */
  readonly entries: number;
  /** Bytes of the disk that an entry stands for, a power of two. */
  readonly blockSize: number;
  /** The UUID of the parent, hexadecimal digits. */
  readonly parentUuid: string;
  /** The parent's name, as its creator saw it. */
  readonly parentName: string;
  readonly locators: readonly ParentLocator[];
}

/** The location of a stored parent name. */
export interface ParentLocator {
  /** Four characters that identify the kind of name. */
  readonly platform: string;
  /** Bytes of the name. */
  readonly length: number;
  /** Its offset in the file. */
  readonly offset: number;
}

/**
 * Read the header of a dynamic image; the first failing check is the one that
 * QEMU reports.
 *
 * @param size Bytes of the disk.
 * @throws {BlockError} EINVAL if it is invalid.
 */
export async function readDynamicHeader(
  file: BlockNode,
  { dataOffset }: Footer,
  size: number,
): Promise<DynamicHeader> {
  if (dataOffset > BigInt(Number.MAX_SAFE_INTEGER - DYNAMIC_HEADER_SIZE)) {
    throw new BlockError("EIO", "Error reading dynamic VHD header");
  }
  const bytes = allocate(DYNAMIC_HEADER_SIZE);
  await readPadded(file, Number(dataOffset), [bytes]);
  if (textAt(bytes, 0, 8) !== DYNAMIC_COOKIE) {
    throw invalid("Invalid header magic");
  }
  const view = viewOf(bytes);
  const blockSize = view.getUint32(DYNAMIC.blockSize);
  const isPower = (blockSize & (blockSize - 1)) === 0;
  if (!isPower || blockSize < SECTOR_SIZE) {
    throw invalid(`Invalid block size ${blockSize}`);
  }
  const entries = view.getUint32(DYNAMIC.entries);
  if (size / blockSize > 0xffffffff) throw invalid("Too many blocks");
  if (entries * blockSize < size) throw invalid("Page table too small");
  if (entries > MAX_ENTRIES) {
    throw invalid(`Max Table Entries too large (${entries | 0})`);
  }
  const tableOffset = view.getBigUint64(DYNAMIC.tableOffset);
  const end = BigInt(roundUp(file.size, SECTOR_SIZE));
  if (tableOffset + BigInt(roundUp(4 * entries, SECTOR_SIZE)) > end) {
    throw truncated();
  }
  return {
    tableOffset: Number(tableOffset),
    entries,
    blockSize,
    parentUuid: hexAt(bytes, DYNAMIC.parentUuid),
    parentName: new TextDecoder("utf-16be").decode(
      bytes.subarray(DYNAMIC.parentName, DYNAMIC.locators),
    ).replace(/\0.*$/s, ""),
    locators: Array.from({ length: 8 }, (_, i) => {
      const at = DYNAMIC.locators + 24 * i;
      return {
        platform: textAt(bytes, at, 4),
        length: view.getUint32(at + 8),
        offset: Number(view.getBigUint64(at + 16)),
      };
    }),
  };
}

/** The error for an image whose end is missing, with QEMU's message. */
export function truncated(): BlockError {
  return invalid(
    "block-vpc: free_data_block_offset points after the end of file. " +
      "The image has been truncated.",
  );
}

/** The properties of a new image. */
export interface NewImage {
  readonly type: number;
  readonly geometry: Geometry;
  /** Bytes. */
  readonly size: number;
  /** Four characters, which determine the size rule. */
  readonly creator: string;
}

/** The footer of a new image. */
export function newFooter(image: NewImage): Uint8Array {
  const { type, geometry, size, creator } = image;
  const bytes = allocate(FOOTER_SIZE);
  const view = viewOf(bytes);
  putText(bytes, 0, COOKIE);
  view.setUint32(AT.features, 2);
  view.setUint32(AT.version, VERSION);
  const isFixed = type === TYPE.FIXED;
  view.setBigUint64(AT.dataOffset, isFixed ? ALL_ONES : BigInt(FOOTER_SIZE));
  view.setUint32(AT.timestamp, Math.floor(Date.now() / 1000) - EPOCH);
  putText(bytes, AT.creator, creator);
  // Virtual PC 2007's version, as in QEMU: other programs check it.
  view.setUint32(AT.creatorVersion, 0x00050003);
  putText(bytes, AT.creatorSystem, "Wi2k");
  view.setBigUint64(AT.originalSize, BigInt(size));
  view.setBigUint64(AT.currentSize, BigInt(size));
  view.setUint16(AT.cylinders, geometry.cylinders);
  bytes[AT.heads] = geometry.heads;
  bytes[AT.sectors] = geometry.sectors;
  view.setUint32(AT.type, type);
  crypto.getRandomValues(bytes.subarray(AT.uuid, AT.uuid + 16));
  view.setUint32(AT.checksum, checksum(bytes, AT.checksum));
  return bytes;
}

/** The header of a new dynamic image. */
export function newDynamicHeader(
  { tableOffset, entries, blockSize }: {
    tableOffset: number;
    entries: number;
    blockSize: number;
  },
): Uint8Array {
  const bytes = allocate(DYNAMIC_HEADER_SIZE);
  const view = viewOf(bytes);
  putText(bytes, 0, DYNAMIC_COOKIE);
  view.setBigUint64(DYNAMIC.nextOffset, ALL_ONES);
  view.setBigUint64(DYNAMIC.tableOffset, BigInt(tableOffset));
  view.setUint32(DYNAMIC.version, VERSION);
  view.setUint32(DYNAMIC.entries, entries);
  view.setUint32(DYNAMIC.blockSize, blockSize);
  view.setUint32(DYNAMIC.checksum, checksum(bytes, DYNAMIC.checksum));
  return bytes;
}

const ALL_ONES = 0xffffffffffffffffn;

/** The complement of the sum of all bytes, without the checksum itself. */
function checksum(bytes: Uint8Array, at: number): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i++) {
    if (i < at || i >= at + 4) sum += bytes[i];
  }
  return ~sum >>> 0;
}

/** Text of one character per byte. */
function textAt(bytes: Uint8Array, at: number, length: number): string {
  return String.fromCharCode(...bytes.subarray(at, at + length));
}

function putText(bytes: Uint8Array, at: number, text: string): void {
  for (let i = 0; i < text.length; i++) bytes[at + i] = text.charCodeAt(i);
}

function hexAt(bytes: Uint8Array, at: number): string {
  return [...bytes.subarray(at, at + 16)]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
