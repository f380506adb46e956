/**
 * The text that describes a VMDK: a file of its own, or a part of the only
 * one. (VMware's "Virtual Disk Format 5.0"; where that is silent, QEMU.)
 *
 * @module
 */
import { isExactSize, SECTOR_SIZE } from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import { shortened } from "../../core/values.ts";

/** Most bytes of a descriptor that are read. */
export const MAX_DESCRIPTOR = 1024 * 1024 - 1;

/** The parent's content id where there is no parent. */
export const NO_PARENT = 0xffffffff;

/** Types of extents that are read. */
export type ExtentType =
  | "FLAT"
  | "VMFS"
  | "ZERO"
  | "SPARSE"
  | "VMFSSPARSE"
  | "SESPARSE";

/** A line that says where a part of the disk is. */
export interface ExtentLine {
  readonly type: ExtentType;
  /** Bytes of the disk. */
  readonly size: number;
  /** The file, as the line names it; empty for ZERO. */
  readonly filename: string;
  /** Where in the file it begins, bytes; flat extents only. */
  readonly start: number;
  /** Whether it may be written to. */
  readonly isWritable: boolean;
}

/** What a descriptor says. */
export interface Descriptor {
  /** Absent where it does not say. */
  readonly createType?: string;
  /** Changes whenever a session begins to write. */
  readonly cid: number;
  /** The parent's content id when this overlay was made. */
  readonly parentCid: number;
  /** The parent's name. */
  readonly parentFile?: string;
  /** Its text. */
  readonly text: string;
}

/** Formats of descriptors that are files of their own. */
const CREATE_TYPES = [
  "monolithicFlat",
  "vmfs",
  "vmfsSparse",
  "seSparse",
  "twoGbMaxExtentSparse",
  "twoGbMaxExtentFlat",
];

/** The text of a descriptor, up to the zeroes that fill it. */
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
 * Read a descriptor.
 *
 * @throws {BlockError} EINVAL if it lacks the parent's content id.
 */
export function parseDescriptor(bytes: Uint8Array): Descriptor {
  const text = descriptorText(bytes);
  const parentCid = numberOf(text, "parentCID");
  if (parentCid === undefined) throw new BlockError("EINVAL");
  // QEMU uses the parent's content id where there is no other.
  const cid = numberOf(text, "CID") ?? parentCid;
  const parentFile = valueOf(text, "parentFileNameHint");
  if (parentFile !== undefined && parentFile.length > 1023) {
    throw new BlockError("EINVAL");
  }
  const createType = valueOf(text, "createType");
  return { createType, cid, parentCid, parentFile, text };
}

/** A value in quotes; `undefined` if there is no such key. */
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
 * @throws {BlockError} EINVAL if it names none, ENOTSUP if it is not supported.
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

const EXTENT_LINE =
  /^[ \t]*(RW|RDONLY|NOACCESS)[ \t]+(-?\d+)[ \t]+([A-Z]+)(?:[ \t]+"([^"]*)")?(?:[ \t]+(-?\d+))?/;

/**
 * The extents that a descriptor names.
 *
 * @throws {BlockError} EINVAL for lines that make no sense, ENOTSUP for
 * extents of other types: leaving one out would shift all that follow.
 */
export function parseExtents(text: string): ExtentLine[] {
  const extents: ExtentLine[] = [];
  for (const line of text.split(/\r?\n/)) {
    const match = EXTENT_LINE.exec(line);
    if (match) extents.push(parseExtent(line, match));
  }
  return extents;
}

function parseExtent(line: string, match: RegExpExecArray): ExtentLine {
  const [, access, sectors, type, filename = "", start] = match;
  const size = Number(sectors) * SECTOR_SIZE;
  const offset = Number(start ?? 0) * SECTOR_SIZE;
  const refuse = () => invalid(`Invalid extent line: ${shortened(line, 700)}`);
  if (access === "NOACCESS") {
    throw new BlockError(
      "ENOTSUP",
      `Unsupported extent access '${access}': ${shortened(line, 700)}`,
    );
  }
  switch (type) {
    case "FLAT":
      if (start === undefined || filename === "") throw refuse();
      break;
    case "ZERO":
      break;
    case "VMFS":
    case "SPARSE":
    case "VMFSSPARSE":
    case "SESPARSE":
      if (start !== undefined || filename === "") throw refuse();
      break;
    default:
      throw new BlockError("ENOTSUP", `Unsupported extent type '${type}'`);
  }
  if (!(size > 0 && isExactSize(size) && offset >= 0 && isExactSize(offset))) {
    throw refuse();
  }
  const isWritable = access === "RW" && type !== "ZERO";
  return { type, size, filename, start: offset, isWritable };
}

/**
 * A descriptor with another content id, and nothing else changed.
 *
 * @param bytes The descriptor, and the zeroes that it may grow into.
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

/** A random content id of eight digits, as all others have. */
export function newCid(): number {
  const [random] = crypto.getRandomValues(new Uint32Array(1));
  // 0xfffffffe and 0xffffffff have meanings of their own.
  return Math.min(random, 0xfffffff0) % 0xeffffff0 + 0x10000000;
}

/** What a new descriptor is to say. */
export interface NewDescriptor {
  readonly createType: string;
  readonly parentCid: number;
  readonly parentFile?: string;
  /** Lines without their ends. */
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
export function newDescriptor(wish: NewDescriptor): Uint8Array<ArrayBuffer> {
  const { createType, parentCid, parentFile, extents, size } = wish;
  const heads = wish.adapterType === "ide" ? 16 : 255;
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
    `ddb.virtualHWVersion = "${wish.hwVersion}"`,
    `ddb.geometry.cylinders = "${cylinders}"`,
    `ddb.geometry.heads = "${heads}"`,
    `ddb.geometry.sectors = "${SECTORS}"`,
    `ddb.adapterType = "${wish.adapterType}"`,
    `ddb.toolsVersion = "${wish.toolsVersion}"`,
    "",
  ].join("\n"));
}
