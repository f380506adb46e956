/**
 * The header: reading it with all checks, keeping what is not understood.
 * (Specification: "Header".)
 *
 * @module
 */
import {
  allocate,
  isExactSize,
  roundDown,
  SECTOR_SIZE,
  viewOf,
} from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import {
  Autoclear,
  Crypt,
  ENTRY_SIZE,
  Incompatible,
  MAGIC,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  MIN_CLUSTER_BITS,
  readUint64,
} from "./format.ts";
import { Geometry } from "./geometry.ts";
import {
  type ExtensionFields,
  featureNames,
  readExtensions,
  readOr,
  text,
} from "./header_extensions.ts";

/** Bytes of the version 2 header. */
export const V2_LENGTH = 72;
export const V3_LENGTH = 112;
/**
 * Fewest bytes of the version 3 header: up to and including the refcount order.
 */
const V3_MIN_LENGTH = 104;

/** A 64-bit set of features, as halves. */
export interface FeatureBits {
  high: number;
  low: number;
}

/** The header of an image, decoded. Offsets and sizes are bytes. */
export interface Header extends ExtensionFields {
  version: 2 | 3;
  backingFile?: string;
  /** The bytes of its name, which need not be UTF-8. */
  rawBackingFile?: Uint8Array;
  clusterBits: number;
  size: number;
  cryptMethod: number;
  /** Entries of the L1 table. */
  l1Size: number;
  l1TableOffset: number;
  refcountTableOffset: number;
  refcountTableClusters: number;
  snapshotCount: number;
  snapshotsOffset: number;
  incompatible: FeatureBits;
  compatible: FeatureBits;
  autoclear: FeatureBits;
  refcountOrder: number;
  compressionType: "zlib" | "zstd";
  /** Header fields past the known ones, preserved. */
  unknownFields: Uint8Array;
}

/** Whether there are bitmaps that are up to date. */
export function hasBitmaps({ bitmaps, autoclear }: Header): boolean {
  return bitmaps !== undefined && (autoclear.low & Autoclear.BITMAPS) !== 0;
}

/** Which faults of a header are tolerated. */
export interface HeaderPolicy {
  readOnly: boolean;
  /** For check: accept invalid refcount and snapshot tables. */
  forCheck: boolean;
  warn(message: string): void;
}

/** Confidence, from 0 to 100, that an image with this beginning is qcow2. */
export function probe(head: Uint8Array): number {
  if (head.length < 8) return 0;
  const view = viewOf(head);
  return view.getUint32(0) === MAGIC && view.getUint32(4) >= 2 ? 100 : 0;
}

/**
 * The disk's size; if a number cannot hold it exactly, one that is too large.
 */
function readSize(view: DataView, at: number): number {
  const size = readUint64(view, at);
  const isRounded = size >= 2 ** 53 && view.getUint32(at + 4) % SECTOR_SIZE > 0;
  return isRounded ? Infinity : size;
}

/**
 * Read and check a header. The first failing condition is reported with QEMU's
 * message.
 */
export async function readHeader(
  file: BlockNode,
  policy: HeaderPolicy,
): Promise<Header> {
  const fixed = allocate(V3_LENGTH);
  await readOr(file, 0, fixed, "Could not read qcow2 header: ");
  const view = viewOf(fixed);
  if (view.getUint32(0) !== MAGIC) {
    throw invalid("Image is not in qcow2 format");
  }
  const version = view.getUint32(4);
  if (version !== 2 && version !== 3) {
    throw new BlockError("ENOTSUP", `Unsupported qcow2 version ${version}`);
  }
  const clusterBits = view.getUint32(20);
  if (clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    throw invalid(`Unsupported cluster size: 2^${clusterBits}`);
  }
  const clusterSize = 2 ** clusterBits;
  const headerLength = version === 2 ? V2_LENGTH : view.getUint32(100);
  if (version === 3) checkHeaderLength(headerLength, clusterSize);
  const unknownFields = allocate(Math.max(0, headerLength - V3_LENGTH));
  if (unknownFields.length > 0) {
    const what = "Could not read unknown qcow2 header fields: ";
    await readOr(file, V3_LENGTH, unknownFields, what);
  }
  const backingOffset = readUint64(view, 8);
  if (backingOffset > clusterSize) {
    throw invalid("Invalid backing file offset");
  }
  const features = version === 3;
  const header: Header = {
    version,
    clusterBits,
    size: readSize(view, 24),
    cryptMethod: view.getUint32(32),
    l1Size: view.getUint32(36),
    l1TableOffset: readUint64(view, 40),
    refcountTableOffset: readUint64(view, 48),
    refcountTableClusters: view.getUint32(56),
    snapshotCount: view.getUint32(60),
    snapshotsOffset: readUint64(view, 64),
    incompatible: readBits(view, 72, features),
    compatible: readBits(view, 80, features),
    autoclear: readBits(view, 88, features),
    refcountOrder: features ? view.getUint32(96) : 4,
    compressionType: readCompressionType(view, features, headerLength),
    unknownFields,
    unknownExtensions: [],
  };
  checkCompressionBit(header);
  const extensionsEnd = backingOffset || clusterSize;
  await checkFeatures(file, header, headerLength, extensionsEnd, policy);
  checkTables(header, policy);
  if (header.cryptMethod > Crypt.LUKS) {
    throw invalid(`Unsupported encryption method ${header.cryptMethod | 0}`);
  }
  await readExtensions(file, header, headerLength, extensionsEnd, policy);
  checkEncryption(header);
  await readBackingName(file, header, backingOffset, view.getUint32(16));
  // Disks consist of whole sectors: a partial one at the end is dropped.
  header.size = roundDown(header.size, SECTOR_SIZE);
  return header;
}

function checkHeaderLength(length: number, clusterSize: number): void {
  if (length < V3_MIN_LENGTH) throw invalid("qcow2 header too short");
  if (length > clusterSize) throw invalid("qcow2 header exceeds cluster size");
}

function readBits(view: DataView, at: number, present: boolean): FeatureBits {
  if (!present) return { high: 0, low: 0 };
  return { high: view.getUint32(at), low: view.getUint32(at + 4) };
}

function readCompressionType(
  view: DataView,
  features: boolean,
  headerLength: number,
): "zlib" | "zstd" {
  const type = features && headerLength > V3_MIN_LENGTH
    ? view.getUint8(104)
    : 0;
  if (type > 1) {
    throw new BlockError("ENOTSUP", `qcow2: unknown compression type: ${type}`);
  }
  return type === 1 ? "zstd" : "zlib";
}

function checkCompressionBit(header: Header): void {
  const set = (header.incompatible.low & Incompatible.COMPRESSION) !== 0;
  const needed = header.compressionType !== "zlib";
  if (set === needed) return;
  throw invalid(
    "qcow2: Compression type incompatible feature bit must " +
      (set ? "not be set" : "be set"),
  );
}

async function checkFeatures(
  file: BlockNode,
  header: Header,
  start: number,
  end: number,
  policy: HeaderPolicy,
): Promise<void> {
  const known = Object.values(Incompatible).reduce((sum, bit) => sum + bit, 0);
  const unknown = {
    high: header.incompatible.high,
    low: (header.incompatible.low & ~known) >>> 0,
  };
  if (unknown.high !== 0 || unknown.low !== 0) {
    const names = await featureNames(file, start, end);
    throw new BlockError(
      "ENOTSUP",
      `Unsupported qcow2 feature(s): ${nameFeatures(unknown, names)}`,
    );
  }
  const corrupt = (header.incompatible.low & Incompatible.CORRUPT) !== 0;
  if (corrupt && !policy.readOnly && !policy.forCheck) {
    throw new BlockError(
      "EACCES",
      "qcow2: Image is corrupt; cannot be opened read/write",
    );
  }
}

function nameFeatures(
  unknown: FeatureBits,
  names: Map<number, string>,
): string {
  const parts: string[] = [];
  const rest = { ...unknown };
  for (const [bit, name] of names) {
    const half = bit < 32 ? "low" : "high";
    const mask = 2 ** (bit % 32);
    if (bit > 63 || !(rest[half] & mask)) continue;
    parts.push(name);
    rest[half] = (rest[half] & ~mask) >>> 0;
  }
  if (rest.high || rest.low) {
    const mask = (BigInt(rest.high) << 32n) | BigInt(rest.low);
    parts.push(`Unknown incompatible feature: ${mask.toString(16)}`);
  }
  return parts.join(", ");
}

function checkTables(header: Header, policy: HeaderPolicy): void {
  if (
    (header.incompatible.low & Incompatible.EXTENDED_L2) !== 0 &&
    header.clusterBits < 14
  ) {
    throw invalid(
      `Unsupported subcluster size: ${2 ** header.clusterBits / 32}`,
    );
  }
  if (header.refcountOrder > 6) {
    throw invalid(
      "Reference count entry width too large; may not exceed 64 bits",
    );
  }
  const geometry = Geometry.of(header);
  const { clusterSize } = geometry;
  if (header.refcountTableClusters === 0 && !policy.forCheck) {
    throw invalid("Image does not contain a reference count table");
  }
  const tableBytes = header.refcountTableClusters * clusterSize;
  if (tableBytes > MAX_REFCOUNT_TABLE_BYTES) {
    throw new BlockError("EFBIG", "Reference count table too large");
  }
  checkPlace(header.refcountTableOffset, tableBytes, clusterSize)?.(
    "Reference count table offset invalid",
  );
  if (!policy.forCheck) {
    if (header.snapshotCount > MAX_SNAPSHOTS) {
      throw new BlockError("EFBIG", "Snapshot table too large");
    }
    checkPlace(
      header.snapshotsOffset,
      header.snapshotCount * 40,
      clusterSize,
    )?.("Snapshot table offset invalid");
  }
  if (header.l1Size > MAX_L1_BYTES / ENTRY_SIZE) {
    throw new BlockError("EFBIG", "Active L1 table too large");
  }
  checkPlace(header.l1TableOffset, header.l1Size * ENTRY_SIZE, clusterSize)?.(
    "Active L1 table offset invalid",
  );
  const needed = geometry.l1EntriesFor(header.size);
  if (needed > 0x7fffffff || !isExactSize(header.size)) {
    throw new BlockError("EFBIG", "Image is too big");
  }
  if (header.l1Size < needed) throw invalid("L1 table is too small");
}

/** A function that reports a table which cannot be at its offset. */
function checkPlace(
  offset: number,
  length: number,
  clusterSize: number,
): ((message: string) => never) | undefined {
  if (offset % clusterSize === 0 && offset + length < 2 ** 53) return undefined;
  return (message) => {
    throw invalid(message);
  };
}

/** Refuse encryption without the header that it takes. */
function checkEncryption(header: Header): void {
  if (header.cryptMethod === Crypt.LUKS && !header.encryptionHeader) {
    throw invalid("Missing CRYPTO header for crypt method 2");
  }
}

async function readBackingName(
  file: BlockNode,
  header: Header,
  offset: number,
  length: number,
): Promise<void> {
  if (offset === 0) return;
  if (length > Math.min(1023, 2 ** header.clusterBits - offset)) {
    throw invalid("Backing file name too long");
  }
  const name = allocate(length);
  await readOr(file, offset, name, "Could not read backing file name: ");
  header.backingFile = text(name);
  header.rawBackingFile = name;
}
