/**
 * The header and its extensions: reading with every check, and writing with
 * everything kept that is not understood. (Specification: "Header", "Header
 * extensions", "Feature name table".)
 *
 * @module
 */
import {
  allocate,
  isExactSize,
  roundDown,
  roundUp,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import { asBlockError, BlockError, strerror } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import {
  ENTRY_SIZE,
  Geometry,
  Incompatible,
  MAGIC,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  MIN_CLUSTER_BITS,
  readUint64,
  viewOf,
} from "./format.ts";

/** Bytes of the header itself, as written. */
export const V2_LENGTH = 72;
export const V3_LENGTH = 112;
/** Up to and including the refcount order; what version 3 must have. */
const V3_MIN_LENGTH = 104;

/** The types of header extensions that are understood. */
export const Extension = {
  END: 0,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  ENCRYPTION: 0x0537be77,
  BITMAPS: 0x23852875,
  DATA_FILE: 0x44415441,
} as const;

/** Encryption methods. */
export const Crypt = { NONE: 0, AES: 1, LUKS: 2 } as const;

/** A header extension that is kept as it is. */
export interface HeaderExtension {
  type: number;
  data: Uint8Array;
}

/** The bitmaps extension (specification: "Bitmaps extension"). */
export interface BitmapsExtension {
  count: number;
  directorySize: number;
  directoryOffset: number;
}

/** A 64-bit set of features, as halves. */
export interface FeatureBits {
  high: number;
  low: number;
}

/** The header of an image, decoded. Offsets and sizes are bytes. */
export interface Header {
  version: 2 | 3;
  backingFile?: string;
  backingFormat?: string;
  clusterBits: number;
  size: number;
  cryptMethod: number;
  /** Entries. */
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
  dataFile?: string;
  /** Where the LUKS header lies. */
  encryptionHeader?: { offset: number; length: number };
  bitmaps?: BitmapsExtension;
  /** Header fields past the known ones, kept. */
  unknownFields: Uint8Array;
  /** Extensions of unknown types, kept. */
  unknownExtensions: HeaderExtension[];
}

/** How far to trust a header. */
export interface HeaderPolicy {
  readOnly: boolean;
  /** For check: broken refcount and snapshot tables are let through. */
  forCheck: boolean;
  /** For info: what only a use of the data needs is let through. */
  infoOnly: boolean;
  warn(message: string): void;
}

/** 0 to 100: how sure it is that an image beginning so is a qcow2 image. */
export function probe(head: Uint8Array): number {
  if (head.length < 8) return 0;
  const view = viewOf(head);
  return view.getUint32(0) === MAGIC && view.getUint32(4) >= 2 ? 100 : 0;
}

function invalid(message: string): BlockError {
  return new BlockError("EINVAL", message);
}

/** The disk's size; too large to be one if a number does not hold it. */
function readSize(view: DataView, at: number): number {
  const size = readUint64(view, at);
  const isRounded = size >= 2 ** 53 && view.getUint32(at + 4) % SECTOR_SIZE > 0;
  return isRounded ? Infinity : size;
}

/**
 * Read and check a header. The first condition that fails is reported, with
 * the message that QEMU gives.
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
  await readExtensions(file, header, headerLength, extensionsEnd, policy);
  checkSupported(header, policy);
  await readBackingName(file, header, backingOffset, view.getUint32(16));
  // Disks are counted in sectors: half a one at the end is no part of it.
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

/** Names of incompatible features by bit, from the image's own table. */
async function featureNames(
  file: BlockNode,
  start: number,
  end: number,
): Promise<Map<number, string>> {
  const names = new Map<number, string>();
  for await (const { type, data } of extensions(file, start, end)) {
    if (type !== Extension.FEATURE_NAMES) continue;
    // The last name may be cut short; one without letters ends the table.
    for (let at = 0; at + 2 < data.length && data[at + 2] !== 0; at += 48) {
      if (data[at] !== 0) continue;
      names.set(data[at + 1], text(data.subarray(at + 2, at + 48)));
    }
  }
  return names;
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

/** Zero-terminated text. */
function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
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
  const geometry = new Geometry(header.clusterBits, header.refcountOrder);
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

/** A complaint to call if a table cannot lie there. */
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

/** What this driver does not do is refused by name. */
function checkSupported(header: Header, policy: HeaderPolicy): void {
  if (header.cryptMethod > Crypt.LUKS) {
    throw invalid(`Unsupported encryption method ${header.cryptMethod}`);
  }
  if (policy.infoOnly) return;
  if (header.cryptMethod === Crypt.LUKS && !header.encryptionHeader) {
    throw invalid("Missing CRYPTO header for crypt method 2");
  }
  const missing: string[] = [];
  if (header.incompatible.low & Incompatible.DATA_FILE) {
    missing.push("external data file");
  }
  if (header.incompatible.low & Incompatible.EXTENDED_L2) {
    missing.push("extended L2 entries");
  }
  if (header.cryptMethod === Crypt.LUKS) missing.push("LUKS encryption");
  if (missing.length > 0) {
    throw new BlockError(
      "ENOTSUP",
      `Unsupported qcow2 feature(s): ${missing.join(", ")}`,
    );
  }
}

/** The extensions between the header and the backing file name. */
async function* extensions(
  file: BlockNode,
  start: number,
  end: number,
): AsyncGenerator<HeaderExtension & { offset: number }> {
  for (let offset = start; offset < end;) {
    const head = allocate(8);
    await readOr(
      file,
      offset,
      head,
      `qcow2_read_extension: ERROR: pread fail from offset ${offset}: `,
    );
    const view = viewOf(head);
    const [type, length] = [view.getUint32(0), view.getUint32(4)];
    offset += 8;
    if (length > end - offset || offset > end) {
      throw invalid("Header extension too large");
    }
    if (type === Extension.END) return;
    const data = allocate(length);
    if (length > 0) await readOr(file, offset, data, "");
    yield { type, data, offset };
    offset += roundUp(length, 8);
  }
}

async function readExtensions(
  file: BlockNode,
  header: Header,
  start: number,
  end: number,
  policy: HeaderPolicy,
): Promise<void> {
  for await (const extension of extensions(file, start, end)) {
    const { type, data } = extension;
    switch (type) {
      case Extension.BACKING_FORMAT:
        if (data.length >= 16) {
          throw invalid(
            `ERROR: ext_backing_format: len=${data.length} too large (>=16)`,
          );
        }
        header.backingFormat = text(data);
        break;
      case Extension.FEATURE_NAMES:
        break; // Made anew whenever the header is written.
      case Extension.ENCRYPTION:
        header.encryptionHeader = parseEncryption(header, data);
        break;
      case Extension.BITMAPS:
        header.bitmaps = parseBitmaps(header, data, policy);
        break;
      case Extension.DATA_FILE:
        header.dataFile = text(data);
        break;
      default:
        header.unknownExtensions.push({ type, data });
    }
  }
}

function parseEncryption(
  header: Header,
  data: Uint8Array,
): { offset: number; length: number } {
  if (header.cryptMethod !== Crypt.LUKS) {
    throw invalid(
      "CRYPTO header extension only expected with LUKS encryption method",
    );
  }
  if (data.length !== 16) {
    throw invalid(
      `CRYPTO header extension size ${data.length}, but expected size 16`,
    );
  }
  const offset = readUint64(viewOf(data), 0);
  const clusterSize = 2 ** header.clusterBits;
  if (offset % clusterSize !== 0) {
    throw invalid(
      `Encryption header offset '${offset}' is not a multiple of cluster size '${clusterSize}'`,
    );
  }
  return { offset, length: readUint64(viewOf(data), 8) };
}

function parseBitmaps(
  header: Header,
  data: Uint8Array,
  policy: HeaderPolicy,
): BitmapsExtension | undefined {
  if (data.length !== 24) {
    throw invalid("bitmaps_ext: Invalid extension length");
  }
  if (!(header.autoclear.low & 1)) {
    policy.warn(
      header.version < 3
        ? "This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap support; so now they must all be considered inconsistent"
        : "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent",
    );
    return undefined;
  }
  const view = viewOf(data);
  if (view.getUint32(4) !== 0) {
    throw invalid("bitmaps_ext: Reserved field is not zero");
  }
  const count = view.getUint32(0);
  const directorySize = readUint64(view, 8);
  const directoryOffset = readUint64(view, 16);
  if (count > 65535) {
    throw invalid(
      `bitmaps_ext: Image has ${count} bitmaps, exceeding the QEMU supported maximum of 65535`,
    );
  }
  if (count === 0) {
    throw invalid("found bitmaps extension with zero bitmaps");
  }
  if (directoryOffset % 2 ** header.clusterBits !== 0) {
    throw invalid("bitmaps_ext: invalid bitmap directory offset");
  }
  if (directorySize > 1024 * 65535) {
    throw invalid(
      `bitmaps_ext: bitmap directory size (${directorySize}) exceeds the maximum supported size (67107840)`,
    );
  }
  return { count, directorySize, directoryOffset };
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
}

async function readOr(
  file: BlockNode,
  offset: number,
  target: Uint8Array,
  message: string,
): Promise<void> {
  try {
    await file.readv(offset, [target]);
  } catch (error) {
    const { code } = asBlockError(error);
    throw new BlockError(code, message + strerror(code), { cause: error });
  }
}
