/**
 * The region table, stored twice: where the block allocation table and the
 * metadata are.
 *
 * @module
 */
import { allocate, viewOf } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import { hasChecksum, putChecksum } from "./crc32c.ts";
import { fault } from "./faults.ts";
import { guidAt, putGuid } from "./guid.ts";
import { type Header, MIB } from "./headers.ts";

const PLACES = [192 * 1024, 256 * 1024] as const;
const TABLE_SIZE = 64 * 1024;
const SIGNATURE = 0x69676572; // "regi"
const CHECKSUM_AT = 4;
const MAX_ENTRIES = 2047;
const ENTRY_SIZE = 32;

const BAT = "2dc27766-f623-4200-9d64-115e9bfd4a08";
const METADATA = "8b7ca206-4790-4b9a-b8fe-575f050f886e";

/** A part of the file. */
export interface Region {
  /** Its offset. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
}

/** The regions of an image. */
export interface Regions {
  /** The block allocation table. */
  readonly bat: Region;
  readonly metadata: Region;
  /** All regions and the log, where no block can be. */
  readonly all: readonly Region[];
}

/**
 * Read the region table.
 *
 * @throws {BlockError} EINVAL if no copy is valid, ENOTSUP if it has an unknown
 * required region.
 */
export async function readRegions(
  file: BlockNode,
  { logOffset, logLength }: Header,
): Promise<Regions> {
  const refuse = (reason: string) => fault(file.filename, "EINVAL", reason);
  const bytes = await readTable(file, PLACES[0]) ??
    await readTable(file, PLACES[1]);
  if (!bytes) throw refuse("its region tables are damaged");
  const all: Region[] = [{ offset: logOffset, length: logLength }];
  const known = new Map<string, Region>();
  const view = viewOf(bytes);
  const count = view.getUint32(8, true);
  for (let at = 16; at < 16 + count * ENTRY_SIZE; at += ENTRY_SIZE) {
    const guid = guidAt(bytes, at);
    const region = {
      offset: Number(view.getBigUint64(at + 16, true)),
      length: view.getUint32(at + 24, true),
    };
    const end = region.offset + region.length;
    if (
      region.offset < MIB || region.offset % MIB !== 0 ||
      region.length % MIB !== 0 || !Number.isSafeInteger(end)
    ) {
      throw refuse(`a region has ${region.length} bytes at ${region.offset}`);
    }
    const other = all.find((other) => overlap(other, region));
    if (other) throw refuse(overlapText(region, other));
    all.push(region);
    if (known.has(guid)) throw refuse(`it has the region ${guid} twice`);
    known.set(guid, region);
    const isRequired = (view.getUint32(at + 28, true) & 1) !== 0;
    if (isRequired && guid !== BAT && guid !== METADATA) {
      throw fault(file.filename, "ENOTSUP", `it needs the region ${guid}`);
    }
  }
  const [bat, metadata] = [known.get(BAT), known.get(METADATA)];
  if (!bat || !metadata) throw refuse("it lacks a region");
  return { bat, metadata, all };
}

async function readTable(
  file: BlockNode,
  offset: number,
): Promise<Uint8Array | undefined> {
  const bytes = allocate(TABLE_SIZE);
  await readPadded(file, offset, [bytes]);
  const view = viewOf(bytes);
  const isTable = view.getUint32(0, true) === SIGNATURE &&
    view.getUint32(8, true) <= MAX_ENTRIES && hasChecksum(bytes, CHECKSUM_AT);
  return isTable ? bytes : undefined;
}

/** Whether two regions overlap. */
export function overlap(one: Region, other: Region): boolean {
  return one.offset < other.offset + other.length &&
    other.offset < one.offset + one.length;
}

/** The message about overlapping regions, in QEMU's words. */
export function overlapText(one: Region, other: Region): string {
  const range = ({ offset, length }: Region) => `${offset}-${offset + length}`;
  return `VHDX region ${range(one)} overlaps with region ${range(other)}`;
}

/** Write both copies of the table of a new image. */
export async function writeNewRegions(
  file: BlockNode,
  bat: Region,
  metadata: Region,
): Promise<void> {
  const bytes = allocate(TABLE_SIZE);
  const view = viewOf(bytes);
  view.setUint32(0, SIGNATURE, true);
  view.setUint32(8, 2, true);
  const put = (at: number, guid: string, { offset, length }: Region) => {
    putGuid(bytes, at, guid);
    view.setBigUint64(at + 16, BigInt(offset), true);
    view.setUint32(at + 24, length, true);
    view.setUint32(at + 28, 1, true);
  };
  put(16, BAT, bat);
  put(16 + ENTRY_SIZE, METADATA, metadata);
  putChecksum(bytes, CHECKSUM_AT);
  for (const place of PLACES) await file.writev!(place, [bytes]);
}
