/**
 * The header of a VDI image: 512 bytes, little-endian. (There is no
 * specification; the layout follows VirtualBox's sources and QEMU's driver.)
 *
 * @module
 */
import { allocate, divideUp, roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";

/** Bytes of the disk per entry of the block map. */
export const BLOCK_SIZE = 1024 * 1024;
/** Bytes of an entry of the block map. */
export const ENTRY_SIZE = 4;
/** A block that was never written. */
export const UNALLOCATED = 0xffffffff;
/** A discarded block, which reads as zeroes. */
export const DISCARDED = 0xfffffffe;

const SIGNATURE = 0xbeda107f;
const VERSION = 0x00010001;
/** Most blocks that QEMU's driver supports. */
const MAX_BLOCKS = 0x1fffff80;
const MAX_DISK_SIZE = MAX_BLOCKS * BLOCK_SIZE;

/** Offsets of the fields that are used. */
const AT = {
  signature: 64,
  version: 68,
  headerSize: 72,
  type: 76,
  mapOffset: 340,
  dataOffset: 344,
  sectorSize: 360,
  diskSize: 368,
  blockSize: 376,
  blockExtra: 380,
  blocks: 384,
  blocksAllocated: 388,
  imageUuid: 392,
  lastSnapshotUuid: 408,
  linkUuid: 424,
  parentUuid: 440,
} as const;

/** Image types. */
export const TYPE = { DYNAMIC: 1, STATIC: 2, DIFFERENCING: 4 } as const;

/** The parsed header. */
export interface VdiHeader {
  readonly type: number;
  /** Where the block map begins, in bytes. */
  readonly mapOffset: number;
  /** Where the first block begins, in bytes. */
  readonly dataOffset: number;
  /** Bytes of the disk, a multiple of 512. */
  readonly diskSize: number;
  /** Entries of the block map. */
  readonly blocks: number;
  /** Blocks in the file, and the number of the next one. */
  blocksAllocated: number;
  /** The raw header. */
  readonly bytes: Uint8Array;
}

function unsupported(what: string): BlockError {
  return new BlockError("ENOTSUP", `unsupported VDI image (${what})`);
}

function tooLarge(size: bigint): BlockError {
  return new BlockError(
    "ENOTSUP",
    `Unsupported VDI image size (size is 0x${size.toString(16)}, ` +
      `max supported is 0x${MAX_DISK_SIZE.toString(16)})`,
  );
}

/**
 * Read the header. Checks are in QEMU's order, which decides the message.
 *
 * @throws {BlockError} EINVAL if it is not a VDI image, ENOTSUP if it is an
 * unsupported one.
 */
export async function readHeader(file: BlockNode): Promise<VdiHeader> {
  const bytes = allocate(SECTOR_SIZE);
  await readPadded(file, 0, [bytes]);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const u32 = (at: number) => view.getUint32(at, true);
  const exactSize = view.getBigUint64(AT.diskSize, true);
  if (exactSize > BigInt(MAX_DISK_SIZE)) throw tooLarge(exactSize);
  const signature = u32(AT.signature);
  if (signature !== SIGNATURE) {
    const found = signature.toString(16).padStart(8, "0");
    throw new BlockError(
      "EINVAL",
      `Image not in VDI format (bad signature ${found})`,
    );
  }
  const version = u32(AT.version);
  if (version !== VERSION) {
    throw unsupported(`version ${version >>> 16}.${version & 0xffff}`);
  }
  const header: VdiHeader = {
    type: u32(AT.type),
    mapOffset: u32(AT.mapOffset),
    dataOffset: u32(AT.dataOffset),
    diskSize: roundUp(Number(exactSize), SECTOR_SIZE),
    blocks: u32(AT.blocks),
    blocksAllocated: u32(AT.blocksAllocated),
    bytes,
  };
  checkLayout(header, u32);
  return header;
}

function checkLayout(
  { type, mapOffset, dataOffset, diskSize, blocks, bytes }: VdiHeader,
  u32: (at: number) => number,
): void {
  const hex = (value: number) => `0x${value.toString(16)}`;
  if (mapOffset % SECTOR_SIZE !== 0) {
    throw unsupported(`unaligned block map offset ${hex(mapOffset)}`);
  }
  if (dataOffset % SECTOR_SIZE !== 0) {
    throw unsupported(`unaligned data offset ${hex(dataOffset)}`);
  }
  const sectorSize = u32(AT.sectorSize);
  if (sectorSize !== SECTOR_SIZE) {
    throw unsupported(`sector size ${sectorSize} is not 512`);
  }
  const blockSize = u32(AT.blockSize);
  if (blockSize !== BLOCK_SIZE) {
    throw unsupported(`block size ${blockSize} is not ${BLOCK_SIZE}`);
  }
  if (diskSize > blocks * BLOCK_SIZE) {
    throw unsupported(
      `disk size ${diskSize}, image bitmap has room for ${blocks * BLOCK_SIZE}`,
    );
  }
  const isSet = (at: number) => bytes.subarray(at, at + 16).some(Boolean);
  if (isSet(AT.linkUuid)) throw unsupported("non-NULL link UUID");
  if (isSet(AT.parentUuid)) throw unsupported("non-NULL parent UUID");
  if (blocks > MAX_BLOCKS) {
    throw unsupported(`too many blocks ${blocks}, max is ${MAX_BLOCKS}`);
  }
  // QEMU reads these images, but ignores the parent and the prefix.
  if (type === TYPE.DIFFERENCING) throw unsupported("differencing image");
  const extra = u32(AT.blockExtra);
  if (extra !== 0) throw unsupported(`${extra} bytes before each block`);
}

/**
 * The header of a new image.
 *
 * @throws {BlockError} ENOTSUP if the disk is too large.
 */
export function newHeader(diskSize: number, isStatic: boolean): VdiHeader {
  if (diskSize > MAX_DISK_SIZE) throw tooLarge(BigInt(diskSize));
  const blocks = divideUp(diskSize, BLOCK_SIZE);
  const bytes = allocate(SECTOR_SIZE);
  const header: VdiHeader = {
    type: isStatic ? TYPE.STATIC : TYPE.DYNAMIC,
    mapOffset: SECTOR_SIZE,
    dataOffset: SECTOR_SIZE + roundUp(blocks * ENTRY_SIZE, SECTOR_SIZE),
    diskSize,
    blocks,
    blocksAllocated: isStatic ? blocks : 0,
    bytes,
  };
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const set = (at: number, value: number) => view.setUint32(at, value, true);
  const text = "<<< bdrv virtual disk image >>>\n";
  bytes.set(new TextEncoder().encode(text));
  set(AT.signature, SIGNATURE);
  set(AT.version, VERSION);
  set(AT.headerSize, 0x180);
  set(AT.type, header.type);
  set(AT.mapOffset, header.mapOffset);
  set(AT.dataOffset, header.dataOffset);
  set(AT.sectorSize, SECTOR_SIZE);
  view.setBigUint64(AT.diskSize, BigInt(diskSize), true);
  set(AT.blockSize, BLOCK_SIZE);
  set(AT.blocks, blocks);
  crypto.getRandomValues(bytes.subarray(AT.imageUuid, AT.imageUuid + 16));
  crypto.getRandomValues(
    bytes.subarray(AT.lastSnapshotUuid, AT.lastSnapshotUuid + 16),
  );
  setBlocksAllocated(header, header.blocksAllocated);
  return header;
}

/** Set the block count, also in the raw header. */
export function setBlocksAllocated(header: VdiHeader, count: number): void {
  const { buffer, byteOffset } = header.bytes;
  header.blocksAllocated = count;
  new DataView(buffer, byteOffset).setUint32(AT.blocksAllocated, count, true);
}
