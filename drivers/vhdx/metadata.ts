/**
 * The metadata of a VHDX image: properties of its disk, and names of its
 * parent.
 *
 * @module
 */
import { allocate, viewOf } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import { fault } from "./faults.ts";
import { guidAt, newGuid, putGuid } from "./guid.ts";
import { isBlockSize, MIB } from "./headers.ts";
import type { Region } from "./regions.ts";

/** Bytes of the table; items follow it. */
const TABLE_SIZE = 64 * 1024;
const ENTRY_SIZE = 32;
const MAX_ENTRIES = 2047;
const SIGNATURE = "metadata";
/** Flags of an entry. */
const FLAG = { VIRTUAL_DISK: 2, REQUIRED: 4 } as const;
/** Bits of the file parameters. */
const PARAMETER = { LEAVE_ALLOCATED: 1, HAS_PARENT: 2 } as const;

const ITEM = {
  parameters: "caa16737-fa36-4d43-b3b6-33f0aa44e76b",
  size: "2fa54224-cd1b-4876-b211-5dbed83bf4b8",
  id: "beca12ab-b2e6-4523-93ef-c309e000c746",
  logicalSector: "8141bf1d-a96f-4709-ba47-f233a8faab5f",
  physicalSector: "cda348c7-445d-4471-9cc9-e9885251c556",
  parent: "a8d35f2d-b30b-454d-abf7-d3d84834ab0c",
} as const;

/** The type of a parent locator that names a VHDX image. */
const LOCATOR_TYPE = "b04aefb7-d19e-4a81-b789-25b8e9445913";

/** Bytes of a sector, the only supported size. */
export const SECTOR = 512;

/** The content of the metadata. */
export interface Metadata {
  /** Bytes of the disk, a multiple of 512. */
  readonly size: number;
  /** Bytes of the disk that a block holds: a power of two, 1 to 256 MiB. */
  readonly blockSize: number;
  /** The parent locator, by key; absent without a parent. */
  readonly parent?: ReadonlyMap<string, string>;
}

/**
 * Read the metadata.
 *
 * @throws {BlockError} EINVAL if it is damaged, ENOTSUP if it has an unknown
 * required item.
 */
export async function readMetadata(
  file: BlockNode,
  region: Region,
): Promise<Metadata> {
  const items = await readItems(file, region);
  const invalid = (reason: string) => fault(file.filename, "EINVAL", reason);
  const item = async (guid: string, length: number) => {
    const at = items.get(guid);
    if (!at) throw fault(file.filename, "ENOTSUP", "it lacks metadata");
    const bytes = allocate(length);
    await readPadded(file, at.offset, [bytes]);
    return viewOf(bytes);
  };
  // The other two are not used, but must be there.
  const [parameters, sizeItem, sectorItem] = await Promise.all([
    item(ITEM.parameters, 8),
    item(ITEM.size, 8),
    item(ITEM.logicalSector, 4),
    item(ITEM.id, 16),
    item(ITEM.physicalSector, 4),
  ]);
  const exactSize = sizeItem.getBigUint64(0, true);
  const sector = sectorItem.getUint32(0, true);
  const hasParent =
    (parameters.getUint32(4, true) & PARAMETER.HAS_PARENT) !== 0;
  const locator = items.get(ITEM.parent);
  if (hasParent && !locator) {
    throw invalid("it does not say what its parent is");
  }
  const blockSize = parameters.getUint32(0, true);
  if (!isBlockSize(blockSize)) {
    throw invalid(`its blocks have ${blockSize} bytes`);
  }
  if (sector !== SECTOR) {
    throw fault(file.filename, "ENOTSUP", `its sectors have ${sector} bytes`);
  }
  const size = Number(exactSize / BigInt(SECTOR)) * SECTOR;
  if (size > MAX_SIZE) throw invalid(`its disk has ${exactSize} bytes`);
  return {
    size,
    blockSize,
    ...(hasParent && { parent: await readLocator(file, locator!) }),
  };
}

/** Bytes of the largest disk: 64 TiB. */
export const MAX_SIZE = 64 * 1024 ** 4;

/** Positions of the items, by GUID. */
async function readItems(
  file: BlockNode,
  region: Region,
): Promise<Map<string, Region>> {
  const invalid = (reason: string) => fault(file.filename, "EINVAL", reason);
  const bytes = allocate(TABLE_SIZE);
  await readPadded(file, region.offset, [bytes]);
  const view = viewOf(bytes);
  const count = view.getUint16(10, true);
  const signature = String.fromCharCode(...bytes.subarray(0, 8));
  if (signature !== SIGNATURE || count > MAX_ENTRIES) {
    throw invalid("its metadata is damaged");
  }
  const known: readonly string[] = Object.values(ITEM);
  const items = new Map<string, Region>();
  for (let at = ENTRY_SIZE; at < (count + 1) * ENTRY_SIZE; at += ENTRY_SIZE) {
    const guid = guidAt(bytes, at);
    const [offset, length, flags] = [16, 20, 24].map((field) =>
      view.getUint32(at + field, true)
    );
    if (!known.includes(guid)) {
      if ((flags & FLAG.REQUIRED) === 0) continue;
      throw fault(file.filename, "ENOTSUP", `it needs the metadata ${guid}`);
    }
    if (items.has(guid)) throw invalid(`it has the metadata ${guid} twice`);
    if (offset + length > region.length) {
      throw invalid(`the metadata ${guid} is outside of its region`);
    }
    items.set(guid, { offset: region.offset + offset, length });
  }
  return items;
}

/** Keys and values of a parent locator. */
async function readLocator(
  file: BlockNode,
  { offset, length }: Region,
): Promise<Map<string, string>> {
  const bytes = allocate(Math.min(length, MIB));
  await readPadded(file, offset, [bytes]);
  const invalid = () =>
    fault(file.filename, "EINVAL", "its parent locator is damaged");
  if (bytes.length < 20) throw invalid();
  if (guidAt(bytes, 0) !== LOCATOR_TYPE) {
    throw fault(
      file.filename,
      "ENOTSUP",
      "its parent is of a kind that is not known",
    );
  }
  const view = viewOf(bytes);
  const count = view.getUint16(18, true);
  if (20 + 12 * count > bytes.length) throw invalid();
  const text = (at: number, length: number) => {
    if (at + length > bytes.length) throw invalid();
    return new TextDecoder("utf-16le").decode(bytes.subarray(at, at + length));
  };
  const entries = new Map<string, string>();
  for (let at = 20; at < 20 + 12 * count; at += 12) {
    const [key, value] = [0, 4].map((field) =>
      view.getUint32(at + field, true)
    );
    const keyLength = view.getUint16(at + 8, true);
    const valueLength = view.getUint16(at + 10, true);
    entries.set(text(key, keyLength), text(value, valueLength));
  }
  return entries;
}

/** Write the metadata of a new image. */
export async function writeNewMetadata(
  file: BlockNode,
  region: Region,
  { size, blockSize, isFixed }: {
    size: number;
    blockSize: number;
    isFixed: boolean;
  },
): Promise<void> {
  const bytes = allocate(TABLE_SIZE + 40);
  const view = viewOf(bytes);
  for (let i = 0; i < SIGNATURE.length; i++) bytes[i] = SIGNATURE.charCodeAt(i);
  let count = 0;
  let offset = TABLE_SIZE;
  const add = (guid: string, length: number, isOfDisk = true): number => {
    const at = ENTRY_SIZE * ++count;
    putGuid(bytes, at, guid);
    view.setUint32(at + 16, offset, true);
    view.setUint32(at + 20, length, true);
    const flags = FLAG.REQUIRED | (isOfDisk ? FLAG.VIRTUAL_DISK : 0);
    view.setUint32(at + 24, flags, true);
    offset += length;
    return offset - length;
  };
  const parameters = add(ITEM.parameters, 8, false);
  view.setUint32(parameters, blockSize, true);
  view.setUint32(parameters + 4, isFixed ? PARAMETER.LEAVE_ALLOCATED : 0, true);
  view.setBigUint64(add(ITEM.size, 8), BigInt(size), true);
  putGuid(bytes, add(ITEM.id, 16), newGuid());
  view.setUint32(add(ITEM.logicalSector, 4), SECTOR, true);
  view.setUint32(add(ITEM.physicalSector, 4), SECTOR, true);
  view.setUint16(10, count, true);
  await file.writev!(region.offset, [bytes]);
}
