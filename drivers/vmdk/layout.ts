/**
 * The layout of a sparse extent's tables, from its header. Numbers are
 * little-endian. Of VMware's hosted products (`KDMV`; "Virtual Disk Format
 * 5.0") and of ESX 3 (`COWD`; libvmdk's paper).
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

/** The magics of sparse extents, read big-endian. */
export const MAGIC = { HOSTED: 0x4b444d56, COWD: 0x434f5744 } as const;

/** Flags of a hosted extent. */
export const FLAG = {
  NEWLINES: 1,
  REDUNDANT: 2,
  ZEROED_GRAINS: 4,
  COMPRESSED: 0x10000,
  MARKERS: 0x20000,
} as const;

/** Types of markers in a stream. */
export const MARKER = {
  END_OF_STREAM: 0,
  GRAIN_TABLE: 1,
  GRAIN_DIRECTORY: 2,
  FOOTER: 3,
} as const;

/** Offsets of the fields in a hosted header. */
const AT = {
  magic: 0,
  version: 4,
  flags: 8,
  capacity: 12,
  grainSize: 20,
  descriptorOffset: 28,
  descriptorSize: 36,
  tableEntries: 44,
  redundant: 48,
  directory: 56,
  overhead: 64,
  newlines: 73,
  compression: 77,
} as const;

/** Most sectors of a grain that QEMU accepts. */
const MAX_GRAIN = 0x200000;
/** Larger compressed grains are refused, since each is in memory as a whole. */
const MAX_COMPRESSED_GRAIN = 0x10000;
/** Most entries of a grain directory. */
const MAX_DIRECTORY = 32 * 1024 * 1024;

/** The content of a header, in bytes. */
export interface SparseLayout {
  readonly kind: "hosted" | "cowd" | "sesparse";
  readonly version: number;
  /** Bytes of the disk. */
  readonly capacity: number;
  readonly grainSize: number;
  /** Entries of a grain table. */
  readonly tableEntries: number;
  /** Offset of the grain directory. */
  readonly directory: number;
  /** Offset of its copy, which refers to copies of the tables; 0: none. */
  readonly redundant: number;
  /** Offset of the first grain. */
  readonly overhead: number;
  readonly isCompressed: boolean;
  /** Whether a marker with its length precedes each compressed grain. */
  readonly hasMarkers: boolean;
  /** Whether an entry of 1 stands for zeroes. */
  readonly zeroedGrains: boolean;
  /** Whether it is a stream that ends with a footer. */
  readonly hasFooter: boolean;
  /** Offset and length of the embedded descriptor. */
  readonly descriptor: { readonly offset: number; readonly length: number };
  /** SESPARSE only: offsets of the tables and the grains. */
  readonly areas?: { readonly tables: number; readonly grains: number };
}

function viewOf({ buffer, byteOffset }: Uint8Array): DataView {
  return new DataView(buffer, byteOffset);
}

/** A 64-bit number, rounded if it is too large to be an offset. */
export function readUint64(view: DataView, at: number): number {
  return view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
}

/** The first sector of a file, padded with zeroes. */
export async function readSector(
  file: BlockNode,
  offset: number,
): Promise<DataView> {
  const bytes = allocate(SECTOR_SIZE);
  if (isExactSize(offset)) await readPadded(file, offset, [bytes]);
  return viewOf(bytes);
}

/**
 * Read the header of a sparse extent.
 *
 * @param known Its first sector, if that has been read.
 * @throws {BlockError} EINVAL, EFBIG or ENOTSUP, with QEMU's messages.
 */
export async function readLayout(
  file: BlockNode,
  readOnly: boolean,
  known?: DataView,
): Promise<SparseLayout> {
  const header = known ?? await readSector(file, 0);
  switch (header.getUint32(AT.magic)) {
    case MAGIC.HOSTED:
      return await readHosted(file, header, readOnly);
    case MAGIC.COWD:
      return checked(readCowd(header));
  }
  throw invalid("Image not in VMDK format");
}

/**
 * The offset of the descriptor in an extent without data; `undefined` for
 * others.
 */
export function descriptorAlone(header: DataView): number | undefined {
  if (header.getUint32(AT.magic) !== MAGIC.HOSTED) return undefined;
  const offset = readUint64(header, AT.descriptorOffset) * SECTOR_SIZE;
  const isAlone = readUint64(header, AT.capacity) === 0 && offset > 0;
  return isAlone && isExactSize(offset) ? offset : undefined;
}

async function readHosted(
  file: BlockNode,
  first: DataView,
  readOnly: boolean,
): Promise<SparseLayout> {
  let header = first;
  // An offset with all bits set means that a footer has the real one.
  const hasFooter = header.getBigUint64(AT.directory, true) === 2n ** 64n - 1n;
  if (hasFooter) header = await readFooter(file);
  const u32 = (at: number) => header.getUint32(at, true);
  const bytes = (at: number) => readUint64(header, at) * SECTOR_SIZE;
  const [version, flags] = [u32(AT.version), u32(AT.flags)];
  const isCompressed = header.getUint16(AT.compression, true) === 1;
  if (version > 3) {
    throw new BlockError("ENOTSUP", `Unsupported VMDK version ${version}`);
  }
  // Version 3 tracks changed blocks, which writes would have to update.
  if (version === 3 && !readOnly && !isCompressed) {
    throw invalid("VMDK version 3 must be read only");
  }
  const tableEntries = u32(AT.tableEntries);
  if (tableEntries > 512) throw invalid("L2 table size too big");
  const grainSize = bytes(AT.grainSize);
  if (tableEntries * grainSize === 0) throw invalid("L1 entry size is invalid");
  const overhead = bytes(AT.overhead);
  if (roundUp(file.size, SECTOR_SIZE) < overhead) {
    const sectors = header.getBigUint64(AT.overhead, true);
    const expected = BigInt.asIntN(64, sectors * 512n);
    throw invalid(`File truncated, expecting at least ${expected} bytes`);
  }
  return checked({
    kind: "hosted",
    version,
    capacity: bytes(AT.capacity),
    grainSize,
    tableEntries,
    directory: bytes(AT.directory),
    redundant: flags & FLAG.REDUNDANT ? bytes(AT.redundant) : 0,
    overhead,
    isCompressed,
    hasMarkers: (flags & FLAG.MARKERS) !== 0,
    zeroedGrains: (flags & FLAG.ZEROED_GRAINS) !== 0,
    hasFooter,
    descriptor: {
      offset: bytes(AT.descriptorOffset) || SECTOR_SIZE,
      length: bytes(AT.descriptorSize) || 20 * SECTOR_SIZE,
    },
  });
}

/** The copy of the header at the end, with the final offsets. */
async function readFooter(file: BlockNode): Promise<DataView> {
  const end = roundUp(file.size, SECTOR_SIZE);
  const [marker, footer, last] = await Promise.all(
    [3, 2, 1].map((n) => readSector(file, Math.max(0, end - n * SECTOR_SIZE))),
  );
  const isRight = footer.getUint32(AT.magic) === MAGIC.HOSTED &&
    marker.getUint32(8, true) === 0 &&
    marker.getUint32(12, true) === MARKER.FOOTER &&
    readUint64(last, 0) === 0 && last.getUint32(8, true) === 0 &&
    last.getUint32(12, true) === MARKER.END_OF_STREAM;
  if (!isRight) throw invalid("Invalid footer");
  return footer;
}

function readCowd(header: DataView): SparseLayout {
  const bytes = (at: number) => header.getUint32(at, true) * SECTOR_SIZE;
  const grainSize = bytes(16);
  if (grainSize === 0) throw invalid("L1 entry size is invalid");
  return {
    kind: "cowd",
    version: header.getUint32(4, true),
    capacity: bytes(12),
    grainSize,
    tableEntries: 4096,
    directory: bytes(20),
    redundant: 0,
    overhead: 0,
    isCompressed: false,
    hasMarkers: false,
    zeroedGrains: false,
    hasFooter: false,
    descriptor: { offset: SECTOR_SIZE, length: 20 * SECTOR_SIZE },
  };
}

/** Refuse impossible sizes. */
export function checked(layout: SparseLayout): SparseLayout {
  const { capacity, grainSize, tableEntries, isCompressed } = layout;
  const most = isCompressed ? MAX_COMPRESSED_GRAIN : MAX_GRAIN;
  if (grainSize > most * SECTOR_SIZE) {
    throw new BlockError(
      "EFBIG",
      "Invalid granularity, image may be corrupt",
    );
  }
  if (directoryEntries(layout) > MAX_DIRECTORY || !isExactSize(capacity)) {
    throw new BlockError("EFBIG", "L1 size too big");
  }
  const { directory, redundant } = layout;
  const length = divideUp(capacity, tableEntries * grainSize) * 8;
  for (const start of [directory, redundant]) {
    if (Number.isSafeInteger(start + length)) continue;
    throw new BlockError("EINVAL", "Could not read l1 table: it has no place");
  }
  return layout;
}

/** Entries of the grain directory. */
export function directoryEntries(
  { capacity, tableEntries, grainSize }: SparseLayout,
): number {
  return divideUp(capacity, tableEntries * grainSize);
}

/** Sectors of a grain in new images. */
export const GRAIN_SECTORS = 128;
/** Entries of a grain table. */
export const TABLE_ENTRIES = 512;
/** Sectors of a grain table. */
export const TABLE_SECTORS = TABLE_ENTRIES * 4 / SECTOR_SIZE;
/** Sector and maximum length of the descriptor, in sectors. */
export const DESCRIPTOR = { start: 1, length: 20 } as const;

/** The content of a new header, in sectors. */
export interface NewHeader {
  readonly version: number;
  readonly flags: number;
  readonly capacity: number;
  readonly redundant: number;
  /** -1 if a footer holds it. */
  readonly directory: number;
  readonly overhead: number;
  readonly isCompressed: boolean;
}

/** The header of a hosted extent: one sector. */
export function encodeHeader(header: NewHeader): Uint8Array<ArrayBuffer> {
  const bytes = allocate(SECTOR_SIZE);
  const view = viewOf(bytes);
  const u64 = (at: number, value: number) =>
    view.setBigUint64(at, BigInt.asUintN(64, BigInt(value)), true);
  view.setUint32(AT.magic, MAGIC.HOSTED);
  view.setUint32(AT.version, header.version, true);
  view.setUint32(AT.flags, header.flags, true);
  u64(AT.capacity, header.capacity);
  u64(AT.grainSize, GRAIN_SECTORS);
  u64(AT.descriptorOffset, DESCRIPTOR.start);
  u64(AT.descriptorSize, DESCRIPTOR.length);
  view.setUint32(AT.tableEntries, TABLE_ENTRIES, true);
  u64(AT.redundant, header.redundant);
  u64(AT.directory, header.directory);
  u64(AT.overhead, header.overhead);
  // A transfer in text mode would change these.
  bytes.set([0x0a, 0x20, 0x0d, 0x0a], AT.newlines);
  view.setUint16(AT.compression, header.isCompressed ? 1 : 0, true);
  return bytes;
}
