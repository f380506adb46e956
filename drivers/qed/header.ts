/**
 * The header of a QED image: 64 bytes, little-endian, in the first of the
 * header clusters. (Specification: "Header" of QEMU's
 * docs/interop/qed_spec.txt.)
 *
 * @module
 */
import {
  allocate,
  isExactSize,
  isPowerOfTwo,
  roundDown,
  roundUp,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";

/** Bytes of the header. */
export const HEADER_SIZE = 64;
/** Longest name of a backing file, in bytes. */
export const MAX_NAME = 1023;

const MAGIC = 0x00444551;
const [MIN_CLUSTER, MAX_CLUSTER] = [4096, 64 * 1024 * 1024];
/** Clusters of an L1 or L2 table. */
const [MIN_TABLE, MAX_TABLE] = [1, 16];
/** Clusters of a new image's tables. */
const DEFAULT_TABLE = 4;

/** Offsets of the fields. */
const AT = {
  magic: 0,
  clusterSize: 4,
  tableSize: 8,
  headerSize: 12,
  features: 16,
  compatible: 24,
  autoclear: 32,
  l1Offset: 40,
  imageSize: 48,
  backingOffset: 56,
  backingSize: 60,
} as const;

/** Incompatible features. */
export const FEATURE = { BACKING: 1, NEED_CHECK: 2, NO_PROBE: 4 } as const;
const KNOWN_FEATURES = 7n;

/** The parsed header. Sizes and offsets are in bytes. */
export interface QedHeader {
  readonly clusterSize: number;
  /** Clusters of an L1 or L2 table. */
  readonly tableSize: number;
  /** Clusters at the start of the file that belong to the header. */
  readonly headerClusters: number;
  /** A combination of `FEATURE`. */
  features: number;
  /** Compatible features, which may be ignored; none is known. */
  readonly compatible: bigint;
  /** Autoclear features, to be cleared if unknown; none is known. */
  autoclear: bigint;
  readonly l1Offset: number;
  size: number;
  backingOffset: number;
  backingSize: number;
  backingFile?: string;
}

/** Entries of an L1 or L2 table. */
export function tableEntries(
  { clusterSize, tableSize }: Pick<QedHeader, "clusterSize" | "tableSize">,
): number {
  return clusterSize * tableSize / 8;
}

/** The largest disk that tables can map. */
function maxSize(clusterSize: number, tableSize: number): bigint {
  const entries = BigInt(tableEntries({ clusterSize, tableSize }));
  return entries * entries * BigInt(clusterSize);
}

/** Whether a disk can have this size, in whole sectors. */
export function isSizeValid(
  size: number,
  { clusterSize, tableSize }: Pick<QedHeader, "clusterSize" | "tableSize">,
): boolean {
  return size % SECTOR_SIZE === 0 && (size === 0 || isExactSize(size)) &&
    BigInt(size) <= maxSize(clusterSize, tableSize);
}

function isClusterSizeValid(size: number): boolean {
  return size >= MIN_CLUSTER && size <= MAX_CLUSTER && isPowerOfTwo(size);
}

function isTableSizeValid(size: number): boolean {
  return size >= MIN_TABLE && size <= MAX_TABLE && isPowerOfTwo(size);
}

/** The end of the last whole cluster of a file. */
export function clustersEnd(
  file: BlockNode,
  { clusterSize }: Pick<QedHeader, "clusterSize">,
): number {
  return roundDown(file.size, clusterSize);
}

/**
 * Whether a table can be there. (QEMU refuses all tables of one cluster, since
 * it checks their end instead of their start.)
 */
export function isTablePlace(
  offset: number,
  header: QedHeader,
  file: BlockNode,
): boolean {
  const { clusterSize, tableSize, headerClusters } = header;
  return offset % clusterSize === 0 && offset >= headerClusters * clusterSize &&
    offset + tableSize * clusterSize <= clustersEnd(file, header);
}

/**
 * Read the header. Checks are in QEMU's order, which decides the message.
 *
 * @throws {BlockError} EINVAL if it is not such an image, ENOTSUP if it has
 * unknown features.
 */
export async function readHeader(file: BlockNode): Promise<QedHeader> {
  const bytes = allocate(HEADER_SIZE);
  await readPadded(file, 0, [bytes]);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const u32 = (at: number) => view.getUint32(at, true);
  const u64 = (at: number) => view.getBigUint64(at, true);
  if (u32(AT.magic) !== MAGIC) throw invalid("Image not in QED format");
  const unknown = u64(AT.features) & ~KNOWN_FEATURES;
  if (unknown !== 0n) {
    throw new BlockError(
      "ENOTSUP",
      `Unsupported QED features: ${unknown.toString(16)}`,
    );
  }
  const header: QedHeader = {
    clusterSize: u32(AT.clusterSize),
    tableSize: u32(AT.tableSize),
    headerClusters: u32(AT.headerSize),
    features: u32(AT.features),
    compatible: u64(AT.compatible),
    autoclear: u64(AT.autoclear),
    l1Offset: Number(u64(AT.l1Offset)),
    size: Number(u64(AT.imageSize)),
    backingOffset: u32(AT.backingOffset),
    backingSize: u32(AT.backingSize),
  };
  const { clusterSize, tableSize, headerClusters } = header;
  if (!isClusterSizeValid(clusterSize)) {
    throw invalid("QED cluster size is invalid");
  }
  if (!isTableSizeValid(tableSize)) throw invalid("QED table size is invalid");
  if (!isSizeValid(header.size, header)) {
    throw invalid("QED image size is invalid");
  }
  if (!isTablePlace(header.l1Offset, header, file)) {
    throw invalid("QED table offset is invalid");
  }
  if (headerClusters * clusterSize >= 2 ** 32) {
    throw invalid("QED header size is too large");
  }
  if (header.features & FEATURE.BACKING) {
    header.backingFile = await readBackingName(file, header);
  }
  return header;
}

async function readBackingName(
  file: BlockNode,
  { clusterSize, headerClusters, backingOffset, backingSize }: QedHeader,
): Promise<string | undefined> {
  if (backingOffset + backingSize > clusterSize * headerClusters) {
    throw invalid("QED backing filename offset is invalid");
  }
  if (backingSize > MAX_NAME) throw invalid("Failed to read backing filename");
  const name = allocate(backingSize);
  await readPadded(file, backingOffset, [name]);
  const text = new TextDecoder().decode(name).replace(/\0.*/s, "");
  return text === "" ? undefined : text;
}

/** The backing file's format, as far as the header records it. */
export function backingFormatOf({ features }: QedHeader): string | undefined {
  return features & FEATURE.NO_PROBE ? "raw" : undefined;
}

/** Encode the header. */
export function encodeHeader(header: QedHeader): Uint8Array {
  const bytes = allocate(HEADER_SIZE);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const set32 = (at: number, value: number) => view.setUint32(at, value, true);
  const set64 = (at: number, value: bigint) =>
    view.setBigUint64(at, value, true);
  set32(AT.magic, MAGIC);
  set32(AT.clusterSize, header.clusterSize);
  set32(AT.tableSize, header.tableSize);
  set32(AT.headerSize, header.headerClusters);
  set32(AT.features, header.features);
  set64(AT.compatible, header.compatible);
  set64(AT.autoclear, header.autoclear);
  set64(AT.l1Offset, BigInt(header.l1Offset));
  set64(AT.imageSize, BigInt(header.size));
  set32(AT.backingOffset, header.backingOffset);
  set32(AT.backingSize, header.backingSize);
  return bytes;
}

/** What determines the layout of a new image. */
export interface NewImage {
  /** Bytes of the disk. */
  readonly size: number;
  readonly clusterSize: number;
  /** Clusters of a table. */
  readonly tableSize?: number;
  readonly backingFile?: string;
  readonly backingFormat?: string;
}

/**
 * The header of a new image, followed by the backing file's name.
 *
 * @throws {BlockError} EINVAL if the sizes are invalid.
 */
export function newHeader(
  { size, clusterSize, tableSize = DEFAULT_TABLE, ...image }: NewImage,
): { header: QedHeader; name: Uint8Array } {
  const among = (least: number, most: number) =>
    `must be within range [${least}, ${most}] and power of 2`;
  if (!isClusterSizeValid(clusterSize)) {
    throw invalid(`QED cluster size ${among(MIN_CLUSTER, MAX_CLUSTER)}`);
  }
  if (!isTableSizeValid(tableSize)) {
    throw invalid(`QED table size ${among(MIN_TABLE, MAX_TABLE)}`);
  }
  const exactSize = roundUp(size, SECTOR_SIZE);
  // QEMU counts in 64 bits, and opens no image whose tables map more.
  const most = BigInt.asUintN(64, maxSize(clusterSize, tableSize));
  if (
    !isSizeValid(exactSize, { clusterSize, tableSize }) ||
    BigInt(exactSize) > most
  ) {
    throw invalid(
      "QED image size must be a non-zero multiple of cluster size and less " +
        `than ${most} bytes`,
    );
  }
  const { backingFile, backingFormat } = image;
  const name = new TextEncoder().encode(backingFile ?? "");
  if (name.length > MAX_NAME) throw invalid("Backing file name too long");
  const header: QedHeader = {
    clusterSize,
    tableSize,
    headerClusters: 1,
    features: featuresOf(backingFile, backingFormat),
    compatible: 0n,
    autoclear: 0n,
    l1Offset: clusterSize,
    size: exactSize,
    backingOffset: name.length > 0 ? HEADER_SIZE : 0,
    backingSize: name.length,
    backingFile,
  };
  return { header, name };
}

/** The features of an image with this backing file. */
export function featuresOf(
  backingFile: string | undefined,
  backingFormat: string | undefined,
): number {
  if (backingFile === undefined) return 0;
  return FEATURE.BACKING | (backingFormat === "raw" ? FEATURE.NO_PROBE : 0);
}
