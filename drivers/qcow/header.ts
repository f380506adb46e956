/**
 * The header of a qcow image of version 1: 48 bytes, big-endian. The backing
 * file's name and the L1 table usually follow it. (There is no specification;
 * the layout follows QEMU's driver.)
 *
 * @module
 */
import {
  allocate,
  divideUp,
  isExactSize,
  roundDown,
  roundUp,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";

/** Bytes of the header. */
export const HEADER_SIZE = 48;
/** Longest name of a backing file, in bytes. */
export const MAX_NAME = 1023;

const MAGIC = 0x514649fb;
const VERSION = 1;
/** Most entries of an L1 table in QEMU. */
const MAX_L1_ENTRIES = 0x0fffffff;

/** Offsets of the fields. */
const AT = {
  magic: 0,
  version: 4,
  backingOffset: 8,
  backingSize: 16,
  size: 24,
  clusterBits: 32,
  l2Bits: 33,
  cryptMethod: 36,
  l1Offset: 40,
} as const;

/** How data is encrypted. */
export const CRYPT = { NONE: 0, AES: 1 } as const;

/** The parsed header. */
export interface QcowHeader {
  /** Bytes of the disk, a multiple of 512. */
  readonly size: number;
  readonly clusterBits: number;
  /** The binary logarithm of the number of entries of an L2 table. */
  readonly l2Bits: number;
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly cryptMethod: number;
  readonly backingFile?: string;
}

/**
 * Read the header. Checks are in QEMU's order, which decides the message.
 *
 * @throws {BlockError} EINVAL if it is not such an image, ENOTSUP if it is one
 * of another version.
 */
export async function readHeader(file: BlockNode): Promise<QcowHeader> {
  const bytes = allocate(HEADER_SIZE);
  await readPadded(file, 0, [bytes]);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  if (view.getUint32(AT.magic) !== MAGIC) {
    throw invalid("Image not in qcow format");
  }
  const version = view.getUint32(AT.version);
  if (version !== VERSION) {
    const isNewer = version === 2 || version === 3;
    throw new BlockError(
      "ENOTSUP",
      `qcow (v1) does not support qcow version ${version}`,
      { hint: isNewer ? "Try the 'qcow2' driver instead." : undefined },
    );
  }
  const exactSize = view.getBigUint64(AT.size);
  if (exactSize <= 1n) {
    throw invalid("Image size is too small (must be at least 2 bytes)");
  }
  const clusterBits = view.getUint8(AT.clusterBits);
  if (clusterBits < 9 || clusterBits > 16) {
    throw invalid("Cluster size must be between 512 and 64k");
  }
  const l2Bits = view.getUint8(AT.l2Bits);
  if (l2Bits < 6 || l2Bits > 13) {
    throw invalid("L2 table size must be between 512 and 64k");
  }
  const cryptMethod = view.getUint32(AT.cryptMethod);
  if (cryptMethod !== CRYPT.NONE && cryptMethod !== CRYPT.AES) {
    throw invalid("invalid encryption method in qcow header");
  }
  const l1Entries = l1EntriesFor(Number(exactSize), clusterBits, l2Bits);
  const size = roundDown(Number(exactSize), SECTOR_SIZE);
  if (l1Entries > MAX_L1_ENTRIES || (size > 0 && !isExactSize(size))) {
    throw invalid("Image too large");
  }
  const l1Offset = Number(view.getBigUint64(AT.l1Offset));
  if (l1Offset < HEADER_SIZE || l1Offset % 8 || l1Offset >= 2 ** 53) {
    throw invalid("L1 table offset invalid");
  }
  return {
    size,
    clusterBits,
    l2Bits,
    l1Offset,
    l1Entries,
    cryptMethod,
    backingFile: await readBackingName(file, view),
  };
}

async function readBackingName(
  file: BlockNode,
  view: DataView,
): Promise<string | undefined> {
  const offset = Number(view.getBigUint64(AT.backingOffset));
  const length = view.getUint32(AT.backingSize);
  if (offset === 0) return undefined;
  if (length > MAX_NAME) throw invalid("Backing file name too long");
  const name = allocate(length);
  await readPadded(file, Math.min(offset, file.size), [name]);
  const text = new TextDecoder().decode(name).replace(/\0.*/s, "");
  return text === "" ? undefined : text;
}

/** Entries that the L1 table of a disk has. */
function l1EntriesFor(
  size: number,
  clusterBits: number,
  l2Bits: number,
): number {
  return divideUp(size, 2 ** (clusterBits + l2Bits));
}

/** What determines the layout of a new image. */
export interface NewImage {
  /** Bytes of the disk. */
  readonly size: number;
  readonly backingFile?: string;
  readonly cryptMethod: number;
}

/**
 * The header of a new image, with the backing file's name, and the size of the
 * file with the L1 table. Clusters of an image with a backing file are as small
 * as possible, so that little is copied.
 *
 * @throws {BlockError} EINVAL if the disk is too small or too large.
 */
export function newHeader(
  { size, backingFile, cryptMethod }: NewImage,
): { bytes: Uint8Array; fileSize: number } {
  if (size === 0) {
    throw invalid("Image size is too small, cannot be zero length");
  }
  const name = new TextEncoder().encode(backingFile ?? "");
  if (name.length > MAX_NAME) throw invalid("Backing file name too long");
  const [clusterBits, l2Bits] = backingFile === undefined ? [12, 9] : [9, 12];
  const l1Entries = l1EntriesFor(size, clusterBits, l2Bits);
  if (l1Entries > MAX_L1_ENTRIES || !isExactSize(size)) {
    throw invalid("Image too large");
  }
  const l1Offset = roundUp(HEADER_SIZE + name.length, 8);
  const bytes = allocate(l1Offset);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  view.setUint32(AT.magic, MAGIC);
  view.setUint32(AT.version, VERSION);
  if (backingFile !== undefined) {
    view.setBigUint64(AT.backingOffset, BigInt(HEADER_SIZE));
    view.setUint32(AT.backingSize, name.length);
    bytes.set(name, HEADER_SIZE);
  }
  view.setBigUint64(AT.size, BigInt(size));
  view.setUint8(AT.clusterBits, clusterBits);
  view.setUint8(AT.l2Bits, l2Bits);
  view.setUint32(AT.cryptMethod, cryptMethod);
  view.setBigUint64(AT.l1Offset, BigInt(l1Offset));
  return { bytes, fileSize: l1Offset + roundUp(l1Entries * 8, SECTOR_SIZE) };
}
