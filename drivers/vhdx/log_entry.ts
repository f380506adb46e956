/**
 * Log entries of a VHDX image: a header, descriptors, and the data sectors they
 * describe. Everything is in sectors of 4096 bytes, of which the log is a ring
 * buffer.
 *
 * @module
 */
import { allocate, divideUp, viewOf } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import type { ChangedUnit } from "../../core/paged_table.ts";
import { readPadded } from "../../core/requests.ts";
import { Checksum, putChecksum } from "./crc32c.ts";
import { guidAt, putGuid } from "./guid.ts";
import type { Region } from "./regions.ts";

/** Bytes of a sector of the log. */
export const LOG_SECTOR = 4096;

const ENTRY_SIGNATURE = 0x65676f6c; // "loge"
const DATA_SIGNATURE = 0x61746164; // "data"
const DESCRIPTOR = { ZERO: 0x6f72657a, DATA: 0x63736564 } as const; // "desc"
const HEADER_SIZE = 64;
const DESCRIPTOR_SIZE = 32;

/** Offsets of the fields in an entry's header. */
const AT = {
  checksum: 4,
  length: 8,
  tail: 12,
  sequence: 16,
  count: 24,
  logGuid: 32,
  flushedSize: 48,
  lastSize: 56,
} as const;

/** The header of an entry. */
export interface LogEntry {
  /** Its offset in the log. */
  readonly offset: number;
  /** Bytes of the whole entry. */
  readonly length: number;
  /** Offset of the oldest entry needed along with it. */
  readonly tail: number;
  readonly sequence: bigint;
  /** Number of descriptors. */
  readonly count: number;
  /** Durable size of the file when it was written. */
  readonly flushedSize: bigint;
  /** Size that the file must have after replaying. */
  readonly lastSize: bigint;
}

/** A change to the file. */
export type LogStep =
  | { readonly kind: "zero"; readonly offset: bigint; readonly length: bigint }
  | {
    readonly kind: "data";
    readonly offset: bigint;
    readonly bytes: Uint8Array;
  };

/** Reads sectors of the log in order, from the last one back to the first. */
class RingCursor {
  readonly #file: BlockNode;
  readonly #log: Region;
  #at: number;
  #buffer = allocate(0);
  #left = 0;

  constructor(file: BlockNode, log: Region, at: number) {
    this.#file = file;
    this.#log = log;
    this.#at = at % log.length;
  }

  /** The next sector, valid until the following one is requested. */
  async next(): Promise<Uint8Array> {
    if (this.#left === 0) {
      const length = Math.min(16 * LOG_SECTOR, this.#log.length - this.#at);
      this.#buffer = allocate(length);
      this.#left = length;
      await readPadded(this.#file, this.#log.offset + this.#at, [this.#buffer]);
    }
    const start = this.#buffer.length - this.#left;
    this.#left -= LOG_SECTOR;
    this.#at = (this.#at + LOG_SECTOR) % this.#log.length;
    return this.#buffer.subarray(start, start + LOG_SECTOR);
  }
}

/** The header in the first sector of an entry; `undefined` if there is none. */
export function entryIn(
  sector: Uint8Array,
  offset: number,
  log: Region,
  guid: string,
): LogEntry | undefined {
  const view = viewOf(sector);
  if (view.getUint32(0, true) !== ENTRY_SIGNATURE) return undefined;
  if (guidAt(sector, AT.logGuid) !== guid) return undefined;
  const entry: LogEntry = {
    offset,
    length: view.getUint32(AT.length, true),
    tail: view.getUint32(AT.tail, true),
    sequence: view.getBigUint64(AT.sequence, true),
    count: view.getUint32(AT.count, true),
    flushedSize: view.getBigUint64(AT.flushedSize, true),
    lastSize: view.getBigUint64(AT.lastSize, true),
  };
  const { length, tail, sequence, count } = entry;
  const isEntry = sequence > 0n && length % LOG_SECTOR === 0 &&
    tail % LOG_SECTOR === 0 && tail < log.length && length <= log.length &&
    descriptorSectors(count) * LOG_SECTOR <= length;
  return isEntry ? entry : undefined;
}

/** Sectors that the header and the descriptors take. */
function descriptorSectors(count: number): number {
  return divideUp(HEADER_SIZE + count * DESCRIPTOR_SIZE, LOG_SECTOR);
}

/** Search each sector of the log for entries with a GUID. */
export async function entriesOf(
  file: BlockNode,
  log: Region,
  guid: string,
): Promise<LogEntry[]> {
  const found: LogEntry[] = [];
  const cursor = new RingCursor(file, log, 0);
  // Past the end of the file, the log is zero.
  const end = Math.min(log.length, file.size - log.offset);
  for (let offset = 0; offset < end; offset += LOG_SECTOR) {
    const entry = entryIn(await cursor.next(), offset, log, guid);
    if (entry) found.push(entry);
  }
  return found;
}

/** Whether an entry is complete, by its checksum and content. */
export async function isWhole(
  file: BlockNode,
  log: Region,
  entry: LogEntry,
): Promise<boolean> {
  const cursor = new RingCursor(file, log, entry.offset);
  const sum = new Checksum();
  const descriptorEnd = descriptorSectors(entry.count);
  let expected = 0;
  let data = 0;
  for (let i = 0; i < entry.length / LOG_SECTOR; i++) {
    const sector = await cursor.next();
    if (i === 0) expected = viewOf(sector).getUint32(AT.checksum, true);
    sum.add(sector, i === 0 ? AT.checksum : undefined);
    if (i < descriptorEnd) {
      for (const at of descriptorsIn(i, entry.count)) {
        const kind = kindOf(sector, at, entry);
        if (!kind) return false;
        if (kind === "data") data++;
      }
    } else if (data > 0) {
      if (!isData(sector, entry)) return false;
      data--;
    }
  }
  return data === 0 && sum.value === expected;
}

/** Offsets of the descriptors in a sector of an entry. */
function* descriptorsIn(sector: number, count: number): Generator<number> {
  const end = HEADER_SIZE + count * DESCRIPTOR_SIZE - sector * LOG_SECTOR;
  const first = sector === 0 ? HEADER_SIZE : 0;
  for (let at = first; at < Math.min(end, LOG_SECTOR); at += DESCRIPTOR_SIZE) {
    yield at;
  }
}

function kindOf(
  sector: Uint8Array,
  at: number,
  { sequence }: LogEntry,
): "zero" | "data" | undefined {
  const view = viewOf(sector);
  const isAligned = (view.getUint32(at + 16, true) & LOG_SECTOR - 1) === 0;
  if (view.getBigUint64(at + 24, true) !== sequence || !isAligned) {
    return undefined;
  }
  switch (view.getUint32(at, true)) {
    case DESCRIPTOR.DATA:
      return "data";
    case DESCRIPTOR.ZERO:
      return (view.getUint32(at + 8, true) & LOG_SECTOR - 1) === 0
        ? "zero"
        : undefined;
  }
}

function isData(sector: Uint8Array, { sequence }: LogEntry): boolean {
  const view = viewOf(sector);
  const high = BigInt(view.getUint32(4, true));
  const low = BigInt(view.getUint32(LOG_SECTOR - 4, true));
  return view.getUint32(0, true) === DATA_SIGNATURE &&
    (high << 32n | low) === sequence;
}

/** The changes of an entry, in order; each is valid until the next. */
export async function* stepsOf(
  file: BlockNode,
  log: Region,
  entry: LogEntry,
): AsyncGenerator<LogStep> {
  const sectors = descriptorSectors(entry.count);
  const descriptors = new RingCursor(file, log, entry.offset);
  const data = new RingCursor(file, log, entry.offset + sectors * LOG_SECTOR);
  for (let i = 0; i < sectors; i++) {
    const sector = await descriptors.next();
    const view = viewOf(sector);
    for (const at of descriptorsIn(i, entry.count)) {
      const offset = view.getBigUint64(at + 16, true);
      if (kindOf(sector, at, entry) === "zero") {
        const length = view.getBigUint64(at + 8, true);
        yield { kind: "zero", offset, length };
        continue;
      }
      // Part of a log sector is replaced by marks; the descriptor holds the
      // original.
      const bytes = (await data.next()).slice();
      bytes.set(sector.subarray(at + 8, at + 16), 0);
      bytes.set(sector.subarray(at + 4, at + 8), LOG_SECTOR - 4);
      yield { kind: "data", offset, bytes };
    }
  }
}

/** How many sectors an entry of at most this many bytes can change. */
export function capacityOf(bytes: number): number {
  const sectors = bytes / LOG_SECTOR;
  let count = sectors - 1;
  while (count + descriptorSectors(count) > sectors) count--;
  return count;
}

/**
 * An entry that needs no others.
 *
 * @param offset Its offset in the log.
 * @param changes Sectors of the file.
 * @param size Size of the file.
 */
export function newEntry(
  guid: string,
  offset: number,
  changes: readonly ChangedUnit[],
  size: number,
): Uint8Array {
  const count = changes.length;
  const sectors = descriptorSectors(count);
  const bytes = allocate((sectors + count) * LOG_SECTOR);
  const view = viewOf(bytes);
  const sequence = 1n;
  view.setUint32(0, ENTRY_SIGNATURE, true);
  view.setUint32(AT.length, bytes.length, true);
  view.setUint32(AT.tail, offset, true);
  view.setBigUint64(AT.sequence, sequence, true);
  view.setUint32(AT.count, count, true);
  putGuid(bytes, AT.logGuid, guid);
  view.setBigUint64(AT.flushedSize, BigInt(size), true);
  view.setBigUint64(AT.lastSize, BigInt(size), true);
  for (const [i, change] of changes.entries()) {
    const at = HEADER_SIZE + i * DESCRIPTOR_SIZE;
    const data = (sectors + i) * LOG_SECTOR;
    view.setUint32(at, DESCRIPTOR.DATA, true);
    bytes.set(change.bytes.subarray(LOG_SECTOR - 4), at + 4);
    bytes.set(change.bytes.subarray(0, 8), at + 8);
    view.setBigUint64(at + 16, BigInt(change.offset), true);
    view.setBigUint64(at + 24, sequence, true);
    bytes.set(change.bytes, data);
    view.setUint32(data, DATA_SIGNATURE, true);
    view.setUint32(data + 4, Number(sequence >> 32n), true);
    const low = Number(sequence & 0xffffffffn);
    view.setUint32(data + LOG_SECTOR - 4, low, true);
  }
  putChecksum(bytes, AT.checksum);
  return bytes;
}
