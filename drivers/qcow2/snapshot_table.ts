/**
 * Reading and writing the snapshot table; what is not understood is preserved.
 * (Specification: "Snapshots", "Snapshot table".)
 *
 * @module
 */
import {
  allocate,
  roundDown,
  roundUp,
  SECTOR_SIZE,
  viewOf,
} from "../../core/bytes.ts";
import { asBlockError, BlockError, reasonOf } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import {
  ENTRY_SIZE,
  MAX_L1_BYTES,
  MAX_SNAPSHOT_EXTRA_BYTES,
  MAX_SNAPSHOT_TABLE_BYTES,
  NO_ICOUNT,
  readUint64,
} from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { Header } from "./header.ts";

/** Bytes of the fixed part of an entry. */
const ENTRY_LENGTH = 40;
/** Bytes of extra data that are understood. */
const KNOWN_EXTRA = 24;
/** Bytes of extra data that version 3 requires. */
const V3_EXTRA = 16;
/** Most bytes of the table, so that QEMU can address it. */
const MAX_TABLE_SPAN = 0x7fffffff;

/** One snapshot. Offsets and sizes are bytes. */
export interface SnapshotEntry {
  /** A number as text, unique in the image. */
  id: string;
  name: string;
  l1TableOffset: number;
  /** Entries of its L1 table. */
  l1Size: number;
  /** When it was taken: seconds since 1970, and nanoseconds. */
  dateSeconds: number;
  dateNanoseconds: number;
  /** How long the guest had run. */
  vmClockNanoseconds: bigint;
  /** Bytes of VM state; 0 without one. */
  vmStateSize: number;
  /** Size of the virtual disk at the time. */
  diskSize: number;
  /** Instructions that the guest had executed; 2^64 - 1 if not counted. */
  icount: bigint;
  /** Bytes of extra data in the file; may be 0 for new entries. */
  extraDataSize: number;
  /** Extra data past the known fields. */
  unknownExtraData: Uint8Array;
  /** The stored id and name, if not valid UTF-8. */
  rawId?: Uint8Array;
  rawName?: Uint8Array;
  /** Stored fields too large for a number: damage, but preserved. */
  huge?: { l1TableOffset?: bigint; vmStateSize?: bigint; diskSize?: bigint };
}

/** All snapshots of an image. */
export interface SnapshotTable {
  entries: SnapshotEntry[];
  /** Bytes that the table takes in the file. */
  byteLength: number;
}

/** What was dropped from a damaged table to make it readable. */
export interface SnapshotTableRepair {
  /** Entries dropped at the end. */
  discarded: number;
  /** Entries whose extra data was truncated. */
  shortened: number;
  /** Receives a line about each. */
  report(line: string): void;
}

/** Whether an entry lacks fields that the image's version requires. */
export function isIncomplete(entry: SnapshotEntry, version: number): boolean {
  return version >= 3 && entry.extraDataSize < V3_EXTRA;
}

/**
 * Read the snapshot table that the header refers to.
 *
 * @param repair If given, a table that is too large is truncated and the
 * changes are counted here.
 * @throws {BlockError} EFBIG if the table or extra data is too large.
 */
export async function readSnapshotTable(
  file: BlockNode,
  header: Header,
  repair?: SnapshotTableRepair,
): Promise<SnapshotTable> {
  const reader = new TableReader(file, header.snapshotsOffset);
  const entries: SnapshotEntry[] = [];
  const count = header.snapshotCount;
  // Size of the table when rewritten.
  let written = 0;
  for (let index = 0; index < count; index++) {
    const start = reader.position;
    reader.alignTo(8);
    const entry = await readEntry(reader, header, index, repair);
    const { bytes } = entry;
    written = roundUp(written, 8) + bytes;
    if (
      written > MAX_SNAPSHOT_TABLE_BYTES || reader.position > MAX_TABLE_SPAN
    ) {
      if (!repair) throw tableTooBig(count - index);
      repair.report(
        `Discarding ${count - index} overhanging snapshots ` +
          "(snapshot table is too big)",
      );
      repair.discarded += count - index;
      return { entries, byteLength: start };
    }
    entries.push(entry.entry);
  }
  return { entries, byteLength: count === 0 ? 0 : reader.position };
}

function tableTooBig(rest: number): BlockError {
  return new BlockError("EFBIG", "Snapshot table is too big", {
    hint: `You can force-remove all ${rest} overhanging snapshots with ` +
      "qemu-img check -r all",
  });
}

async function readEntry(
  reader: TableReader,
  header: Header,
  index: number,
  repair: SnapshotTableRepair | undefined,
): Promise<{ entry: SnapshotEntry; bytes: number }> {
  const view = viewOf(await reader.take(ENTRY_LENGTH));
  const idLength = view.getUint16(12);
  const nameLength = view.getUint16(14);
  const storedExtra = view.getUint32(36);
  let extraDataSize = storedExtra;
  if (storedExtra > MAX_SNAPSHOT_EXTRA_BYTES) {
    if (!repair) throw tooMuchExtra(index);
    repair.report(
      `Discarding too much extra metadata in snapshot table entry ${index} ` +
        `(${storedExtra} > ${MAX_SNAPSHOT_EXTRA_BYTES})`,
    );
    repair.shortened++;
    extraDataSize = MAX_SNAPSHOT_EXTRA_BYTES;
  }
  const extra = await reader.take(extraDataSize);
  reader.skip(storedExtra - extraDataSize);
  const idBytes = await reader.take(idLength);
  const nameBytes = await reader.take(nameLength);
  const [id, rawId] = decodeText(idBytes);
  const [name, rawName] = decodeText(nameBytes);
  const entry: SnapshotEntry = {
    id,
    name,
    l1TableOffset: readUint64(view, 0),
    l1Size: view.getUint32(8),
    dateSeconds: view.getUint32(16),
    dateNanoseconds: view.getUint32(20),
    vmClockNanoseconds: view.getBigUint64(24),
    vmStateSize: view.getUint32(32),
    diskSize: roundDown(header.size, SECTOR_SIZE),
    icount: NO_ICOUNT,
    extraDataSize,
    unknownExtraData: extra.slice(KNOWN_EXTRA),
    ...(rawId && { rawId }),
    ...(rawName && { rawName }),
  };
  readKnownExtra(entry, viewOf(extra));
  keepHuge(entry, view, viewOf(extra));
  const bytes = ENTRY_LENGTH + extraDataSize + idLength + nameLength;
  return { entry, bytes };
}

function tooMuchExtra(index: number): BlockError {
  return new BlockError(
    "EFBIG",
    `Too much extra metadata in snapshot table entry ${index}`,
    {
      hint: "You can force-remove this extra metadata with " +
        "qemu-img check -r all",
    },
  );
}

function readKnownExtra(entry: SnapshotEntry, extra: DataView): void {
  if (extra.byteLength >= 8) entry.vmStateSize = readUint64(extra, 0);
  if (extra.byteLength >= 16) entry.diskSize = readUint64(extra, 8);
  if (extra.byteLength >= 24) entry.icount = extra.getBigUint64(16);
}

/** Preserve values that a number cannot hold exactly. */
function keepHuge(
  entry: SnapshotEntry,
  fixed: DataView,
  extra: DataView,
): void {
  const { l1TableOffset, vmStateSize, diskSize } = entry;
  const huge: SnapshotEntry["huge"] = {
    ...(!Number.isSafeInteger(l1TableOffset) &&
      { l1TableOffset: fixed.getBigUint64(0) }),
    ...(!Number.isSafeInteger(vmStateSize) &&
      { vmStateSize: extra.getBigUint64(0) }),
    ...(!Number.isSafeInteger(diskSize) && { diskSize: extra.getBigUint64(8) }),
  };
  if (Object.keys(huge).length > 0) entry.huge = huge;
}

/**
 * Decode text up to a zero byte; also returns its bytes if they cannot be
 * derived from the text.
 */
function decodeText(bytes: Uint8Array): [text: string, raw?: Uint8Array] {
  const end = bytes.indexOf(0);
  const used = end < 0 ? bytes : bytes.subarray(0, end);
  try {
    return [new TextDecoder("utf-8", STRICT).decode(used)];
  } catch {
    return [new TextDecoder().decode(used), used.slice()];
  }
}

const STRICT = { fatal: true, ignoreBOM: true } as const;

/**
 * Encode a snapshot table. Every entry gets all known fields.
 *
 * @throws {BlockError} EFBIG if they are too many.
 */
export function encodeSnapshotTable(
  entries: readonly SnapshotEntry[],
): Uint8Array<ArrayBuffer> {
  const parts = entries.map(encodeEntry);
  let length = 0;
  for (const part of parts) length = roundUp(length, 8) + part.length;
  if (length > MAX_SNAPSHOT_TABLE_BYTES) throw new BlockError("EFBIG");
  const table = allocate(length);
  let at = 0;
  for (const part of parts) {
    at = roundUp(at, 8);
    table.set(part, at);
    at += part.length;
  }
  return table;
}

function encodeEntry(entry: SnapshotEntry): Uint8Array {
  const id = entry.rawId ?? new TextEncoder().encode(entry.id);
  const name = entry.rawName ?? new TextEncoder().encode(entry.name);
  if (id.length > 0xffff || name.length > 0xffff) {
    throw new BlockError("EINVAL", "Snapshot name too long");
  }
  const extra = KNOWN_EXTRA + entry.unknownExtraData.length;
  const fixed = ENTRY_LENGTH + extra;
  const bytes = allocate(fixed + id.length + name.length);
  const view = viewOf(bytes);
  const { huge } = entry;
  const { vmStateSize } = entry;
  view.setBigUint64(0, huge?.l1TableOffset ?? BigInt(entry.l1TableOffset));
  view.setUint32(8, entry.l1Size);
  view.setUint16(12, id.length);
  view.setUint16(14, name.length);
  view.setUint32(16, entry.dateSeconds);
  view.setUint32(20, entry.dateNanoseconds);
  view.setBigUint64(24, entry.vmClockNanoseconds);
  // Larger sizes are only in the extra data; old programs then see a snapshot
  // without VM state.
  view.setUint32(32, vmStateSize < 2 ** 32 ? vmStateSize : 0);
  view.setUint32(36, extra);
  view.setBigUint64(40, huge?.vmStateSize ?? BigInt(vmStateSize));
  view.setBigUint64(48, huge?.diskSize ?? BigInt(entry.diskSize));
  view.setBigUint64(56, entry.icount);
  bytes.set(entry.unknownExtraData, ENTRY_LENGTH + KNOWN_EXTRA);
  bytes.set(id, fixed);
  bytes.set(name, fixed + id.length);
  return bytes;
}

const WINDOW_BYTES = 65536;

/** Reads a part of a file from front to back, in large requests. */
class TableReader {
  readonly #file: BlockNode;
  readonly #start: number;
  /** Bytes from the start. */
  position = 0;
  #window = new Uint8Array();
  #windowStart = 0;

  constructor(file: BlockNode, start: number) {
    this.#file = file;
    this.#start = start;
  }

  skip(length: number): void {
    this.position += length;
  }

  /** Skip to the next multiple of `unit` in the file. */
  alignTo(unit: number): void {
    const at = this.#start + this.position;
    this.position = roundUp(at, unit) - this.#start;
  }

  /** The next bytes. */
  async take(length: number): Promise<Uint8Array> {
    const at = this.position - this.#windowStart;
    this.position += length;
    if (at >= 0 && at + length <= this.#window.length) {
      return this.#window.subarray(at, at + length);
    }
    const bytes = new Uint8Array(Math.max(length, WINDOW_BYTES));
    this.#windowStart = this.position - length;
    try {
      const offset = this.#start + this.#windowStart;
      await readPadded(this.#file, offset, [bytes]);
    } catch (error) {
      const { code } = asBlockError(error);
      const message = `Failed to read snapshot table: ${reasonOf(error)}`;
      throw new BlockError(code, message, { cause: error });
    }
    this.#window = bytes;
    return bytes.subarray(0, length);
  }
}

/**
 * Read the L1 table of a snapshot.
 *
 * @throws {BlockError} EINVAL or EFBIG if its entry is invalid.
 */
export async function readSnapshotL1(
  file: BlockNode,
  geometry: Geometry,
  { l1TableOffset, l1Size }: SnapshotEntry,
): Promise<Uint8Array> {
  const length = l1Size * ENTRY_SIZE;
  if (length > MAX_L1_BYTES) {
    throw new BlockError("EFBIG", "Snapshot L1 table too large");
  }
  if (!geometry.isAligned(l1TableOffset) || l1TableOffset + length >= 2 ** 53) {
    throw new BlockError("EINVAL", "Snapshot L1 table offset invalid");
  }
  const l1 = allocate(length);
  try {
    if (length > 0) await file.readv(l1TableOffset, [l1]);
  } catch (error) {
    throw asBlockError(error).prefixed(
      "Failed to read l1 table for snapshot: ",
    );
  }
  return l1;
}
