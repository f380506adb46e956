/**
 * The descriptor of a VMDK: in a file of its own, or in the only one. (VMware's
 * "Virtual Disk Format 5.0"; where that says nothing, QEMU.)
 *
 * @module
 */
import { isExactSize, SECTOR_SIZE } from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import { shortened } from "../../core/values.ts";

/** Most bytes of a descriptor that are read. */
export const MAX_DESCRIPTOR = 1024 * 1024 - 1;

/** The parent's content id if there is no parent. */
export const NO_PARENT = 0xffffffff;

/** Supported types of extents. */
export type ExtentType =
  | "FLAT"
  | "VMFS"
  | "ZERO"
  | "SPARSE"
  | "VMFSSPARSE"
  | "SESPARSE";

/** The line of an extent. */
export interface ExtentLine {
  readonly type: ExtentType;
  /** Bytes of the disk. */
  readonly size: number;
  /** The file's name in the line; empty for ZERO. */
  readonly filename: string;
  /** Its offset in the file, in bytes; flat extents only. */
  readonly start: number;
  /** Whether it may be written to. */
  readonly isWritable: boolean;
}

/** The content of a descriptor. */
export interface Descriptor {
  /** Absent if not stated. */
  readonly createType?: string;
  /** Changes in every session that writes to the image. */
  readonly cid: number;
  /** The parent's content id when this overlay was made. */
  readonly parentCid: number;
  /** The parent's name. */
  readonly parentFile?: string;
  /** The whole text. */
  readonly text: string;
}

/** Formats whose descriptor is a file of its own. */
const CREATE_TYPES = [
  "monolithicFlat",
  "vmfs",
  "vmfsSparse",
  "seSparse",
  "twoGbMaxExtentSparse",
  "twoGbMaxExtentFlat",
];

/** The text of a descriptor, without its padding of zeroes. */
export function descriptorText(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  const used = end < 0 ? bytes : bytes.subarray(0, end);
  // The first lines are ASCII, whatever the encoding of the rest.
  const text = new TextDecoder("latin1").decode(used);
  const encoding = valueOf(text, "encoding") ?? "UTF-8";
  try {
    return new TextDecoder(encoding).decode(used);
  } catch {
    return new TextDecoder().decode(used);
  }
}

/**
 * Parse a descriptor.
 *
 * @throws {BlockError} EINVAL if it lacks the parent's content id.
 */
export function parseDescriptor(bytes: Uint8Array): Descriptor {
  const text = descriptorText(bytes);
  const parentCid = numberOf(text, "parentCID");
  if (parentCid === undefined) throw new BlockError("EINVAL");
  // QEMU uses the parent's content id if there is no other.
  const cid = numberOf(text, "CID") ?? parentCid;
  const parentFile = valueOf(text, "parentFileNameHint");
  if (parentFile !== undefined && parentFile.length > 1023) {
    throw new BlockError("EINVAL");
  }
  const createType = valueOf(text, "createType");
  return { createType, cid, parentCid, parentFile, text };
}

/** A quoted value; `undefined` if there is no such key. */
function valueOf(text: string, key: string): string | undefined {
  return new RegExp(`^[ \\t]*${key}[ \\t]*=[ \\t]*"([^"\\n]*)"`, "im")
    .exec(text)?.[1];
}

function numberOf(text: string, key: string): number | undefined {
  const digits = new RegExp(
    `^[ \\t]*${key}[ \\t]*=[ \\t]*(?:0x)?([0-9a-f]{1,8})\\b`,
    "im",
  ).exec(text)?.[1];
  return digits === undefined ? undefined : parseInt(digits, 16);
}

/**
 * The kind of image that a descriptor describes.
 *
 * @throws {BlockError} EINVAL if it is not stated, ENOTSUP if it is not
 * supported.
 */
export function createTypeOf(text: string): string {
  const type = valueOf(text, "createType");
  if (type === undefined) throw invalid("invalid VMDK image descriptor");
  if (CREATE_TYPES.includes(type)) return type;
  throw new BlockError(
    "ENOTSUP",
    `Unsupported image type '${shortened(type, 127)}'`,
  );
}

/** What begins as an extent line does, with an unknown access too. */
const EXTENT_START =
  /^[ \t]*(?:(?:RW|RDONLY|NOACCESS)[ \t]|[A-Z]+[ \t]+-?\d+[ \t]+[A-Z]+\b)/i;

const EXTENT_LINE =
  /^[ \t]*(RW|RDONLY|NOACCESS)[ \t]+(-?\d+)[ \t]+([A-Z]+)(?:[ \t]+"([^"]*)")?(?:[ \t]+(-?\d+))?/i;

/**
 * Parse the extent lines of a descriptor.
 *
 * @throws {BlockError} EINVAL for invalid lines, ENOTSUP for other types of
 * extents: leaving one out would shift all that follow.
 */
export function parseExtents(text: string): ExtentLine[] {
  const extents: ExtentLine[] = [];
  for (const line of text.split(/\r?\n/)) {
    if (!EXTENT_START.test(line)) continue;
    const match = EXTENT_LINE.exec(line);
    if (!match) throw invalidExtent(line);
    extents.push(parseExtent(line, match));
  }
  return extents;
}

function invalidExtent(line: string): BlockError {
  return invalid(`Invalid extent line: ${shortened(line, 700)}`);
}

function parseExtent(line: string, match: RegExpExecArray): ExtentLine {
  const [, accessWord, sectors, typeWord, filename = "", start] = match;
  const [access, type] = [accessWord.toUpperCase(), typeWord.toUpperCase()];
  const size = Number(sectors) * SECTOR_SIZE;
  const offset = Number(start ?? 0) * SECTOR_SIZE;
  if (access === "NOACCESS") {
    throw new BlockError(
      "ENOTSUP",
      `Unsupported extent access '${access}': ${shortened(line, 700)}`,
    );
  }
  switch (type) {
    case "FLAT":
      if (start === undefined || filename === "") throw invalidExtent(line);
      break;
    case "ZERO":
      break;
    case "VMFS":
    case "SPARSE":
    case "VMFSSPARSE":
    case "SESPARSE":
      if (start !== undefined || filename === "") throw invalidExtent(line);
      break;
    default:
      throw new BlockError("ENOTSUP", `Unsupported extent type '${type}'`);
  }
  if (!(size > 0 && isExactSize(size) && offset >= 0 && isExactSize(offset))) {
    throw invalidExtent(line);
  }
  const isWritable = access === "RW" && type !== "ZERO";
  return { type, size, filename, start: offset, isWritable };
}

/**
 * A descriptor with another content id, otherwise unchanged.
 *
 * @param bytes The descriptor with its padding of zeroes, into which it may
 * grow.
 */
export function withCid(
  bytes: Uint8Array,
  cid: number,
): Uint8Array<ArrayBuffer> {
  const end = bytes.indexOf(0);
  const used = end < 0 ? bytes : bytes.subarray(0, end);
  // One character per byte, whatever the encoding is.
  let text = "";
  for (const byte of used) text += String.fromCharCode(byte);
  const changed = text.replace(
    /^([ \t]*CID[ \t]*=[ \t]*)(?:0x)?[0-9a-f]{1,8}\b/im,
    (_, key) => key + cid.toString(16),
  );
  return Uint8Array.from(changed, (character) => character.charCodeAt(0));
}

/** A random content id with eight digits, as is usual. */
export function newCid(): number {
  const [random] = crypto.getRandomValues(new Uint32Array(1));
  // 0xfffffffe and 0xffffffff have special meanings.
  return Math.min(random, 0xfffffff0) % 0xeffffff0 + 0x10000000;
}

/** The content of a new descriptor. */
export interface NewDescriptor {
  readonly createType: string;
  readonly parentCid: number;
  readonly parentFile?: string;
  /** Extent lines, without line ends. */
  readonly extents: readonly string[];
  /** Bytes. */
  readonly size: number;
  readonly adapterType: string;
  readonly hwVersion: string;
  readonly toolsVersion: string;
}

/** Sectors per track. */
const SECTORS = 63;

/** The text of a new descriptor. */
export function newDescriptor(content: NewDescriptor): Uint8Array<ArrayBuffer> {
  const { createType, parentCid, parentFile, extents, size } = content;
  const heads = content.adapterType === "ide" ? 16 : 255;
  const cylinders = Math.floor(size / (SECTORS * heads * SECTOR_SIZE));
  return new TextEncoder().encode([
    "# Disk DescriptorFile",
    "version=1",
    `CID=${newCid().toString(16)}`,
    `parentCID=${parentCid.toString(16)}`,
    `createType="${createType}"`,
    parentFile === undefined ? "" : `parentFileNameHint="${parentFile}"`,
    "# Extent description",
    ...extents,
    "",
    "# The Disk Data Base",
    "#DDB",
    "",
    `ddb.virtualHWVersion = "${content.hwVersion}"`,
    `ddb.geometry.cylinders = "${cylinders}"`,
    `ddb.geometry.heads = "${heads}"`,
    `ddb.geometry.sectors = "${SECTORS}"`,
    `ddb.adapterType = "${content.adapterType}"`,
    `ddb.toolsVersion = "${content.toolsVersion}"`,
    "",
  ].join("\n"));
}
