/**
 * The header of a VDI image: 512 bytes, little-endian. (There is no
 * specification; the layout follows VirtualBox's sources and QEMU's driver.)
 *
 * @module
 */
import {
  allocate,
  divideUp,
  roundUp,
  SECTOR_SIZE,
  viewOf,
} from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
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

/** Offsets of the 32-bit fields. */
const AT = {
  signature: 64,
  version: 68,
  headerSize: 72,
  type: 76,
  mapOffset: 340,
  dataOffset: 344,
  sectorSize: 360,
  blockSize: 376,
  blockExtra: 380,
  blocks: 384,
  blocksAllocated: 388,
} as const;
/** Offset of the disk size, a 64-bit field. */
const DISK_SIZE = 368;
/** Offsets of the UUIDs: of the image, its last snapshot, and parents. */
const UUID = { own: 392, link: 424, parent: 440, size: 16 } as const;

/** Image types. */
export const TYPE = { DYNAMIC: 1, STATIC: 2, DIFFERENCING: 4 } as const;

/** A header. */
export class VdiHeader {
  /** All of it. */
  readonly bytes: Uint8Array;
  readonly type: number;
  /** Where the block map begins, in bytes. */
  readonly mapOffset: number;
  /** Where the first block begins, in bytes. */
  readonly dataOffset: number;
  /** Bytes of the disk, a multiple of 512. */
  readonly diskSize: number;
  /** Entries of the block map. */
  readonly blocks: number;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.type = this.u32("type");
    this.mapOffset = this.u32("mapOffset");
    this.dataOffset = this.u32("dataOffset");
    const size = viewOf(bytes).getBigUint64(DISK_SIZE, true);
    this.diskSize = roundUp(Number(size), SECTOR_SIZE);
    this.blocks = this.u32("blocks");
  }

  /** A field. */
  u32(field: keyof typeof AT): number {
    return viewOf(this.bytes).getUint32(AT[field], true);
  }

  /** Blocks in the file, and the number of the next one. */
  get blocksAllocated(): number {
    return this.u32("blocksAllocated");
  }

  set blocksAllocated(count: number) {
    viewOf(this.bytes).setUint32(AT.blocksAllocated, count, true);
  }
}

function unsupported(what: string): BlockError {
  return new BlockError("ENOTSUP", `unsupported VDI image (${what})`);
}

function tooLarge(size: bigint | number): BlockError {
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
  const header = new VdiHeader(bytes);
  const exactSize = viewOf(bytes).getBigUint64(DISK_SIZE, true);
  if (exactSize > BigInt(MAX_DISK_SIZE)) throw tooLarge(exactSize);
  const signature = header.u32("signature");
  if (signature !== SIGNATURE) {
    const found = signature.toString(16).padStart(8, "0");
    throw new BlockError(
      "EINVAL",
      `Image not in VDI format (bad signature ${found})`,
    );
  }
  const version = header.u32("version");
  if (version !== VERSION) {
    throw unsupported(`version ${version >>> 16}.${version & 0xffff}`);
  }
  checkLayout(header);
  return header;
}

function checkLayout(header: VdiHeader): void {
  const { type, mapOffset, dataOffset, diskSize, blocks, bytes } = header;
  if (mapOffset % SECTOR_SIZE !== 0) {
    throw unsupported(`unaligned block map offset 0x${mapOffset.toString(16)}`);
  }
  if (dataOffset % SECTOR_SIZE !== 0) {
    throw unsupported(`unaligned data offset 0x${dataOffset.toString(16)}`);
  }
  const sectorSize = header.u32("sectorSize");
  if (sectorSize !== SECTOR_SIZE) {
    throw unsupported(`sector size ${sectorSize} is not 512`);
  }
  const blockSize = header.u32("blockSize");
  if (blockSize !== BLOCK_SIZE) {
    throw unsupported(`block size ${blockSize} is not ${BLOCK_SIZE}`);
  }
  const room = blocks * BLOCK_SIZE;
  if (diskSize > room) {
    throw unsupported(
      `disk size ${diskSize}, image bitmap has room for ${room}`,
    );
  }
  const isSet = (at: number) =>
    bytes.subarray(at, at + UUID.size).some(Boolean);
  if (isSet(UUID.link)) throw unsupported("non-NULL link UUID");
  if (isSet(UUID.parent)) throw unsupported("non-NULL parent UUID");
  if (blocks > MAX_BLOCKS) {
    throw unsupported(`too many blocks ${blocks}, max is ${MAX_BLOCKS}`);
  }
  // QEMU reads these images, but ignores the parent and the prefix.
  if (type === TYPE.DIFFERENCING) throw unsupported("differencing image");
  const extra = header.u32("blockExtra");
  if (extra !== 0) throw unsupported(`${extra} bytes before each block`);
}

/**
 * Check that the file has all of the block map.
 *
 * @throws {BlockError} EINVAL if it was cut off.
 */
export function checkMapIsStored(
  { mapOffset, blocks }: VdiHeader,
  fileSize: number,
): void {
  const end = mapOffset + blocks * ENTRY_SIZE;
  if (end <= fileSize) return;
  throw invalid(
    `The block map of the VDI image ends at ${end}, after the end of the ` +
      `file (${fileSize}). Image has probably been truncated.`,
  );
}

/**
 * The header of a new image.
 *
 * @throws {BlockError} ENOTSUP if the disk is too large.
 */
export function newHeader(diskSize: number, isStatic: boolean): VdiHeader {
  if (diskSize > MAX_DISK_SIZE) throw tooLarge(diskSize);
  const blocks = divideUp(diskSize, BLOCK_SIZE);
  const fields: Record<keyof typeof AT, number> = {
    signature: SIGNATURE,
    version: VERSION,
    headerSize: 0x180,
    type: isStatic ? TYPE.STATIC : TYPE.DYNAMIC,
    mapOffset: SECTOR_SIZE,
    dataOffset: SECTOR_SIZE + roundUp(blocks * ENTRY_SIZE, SECTOR_SIZE),
    sectorSize: SECTOR_SIZE,
    blockSize: BLOCK_SIZE,
    blockExtra: 0,
    blocks,
    blocksAllocated: isStatic ? blocks : 0,
  };
  const bytes = allocate(SECTOR_SIZE);
  const view = viewOf(bytes);
  for (const [field, value] of Object.entries(fields)) {
    view.setUint32(AT[field as keyof typeof AT], value, true);
  }
  view.setBigUint64(DISK_SIZE, BigInt(diskSize), true);
  const text = "<<< bdrv virtual disk image >>>\n";
  bytes.set(new TextEncoder().encode(text));
  crypto.getRandomValues(bytes.subarray(UUID.own, UUID.link));
  return new VdiHeader(bytes);
}
