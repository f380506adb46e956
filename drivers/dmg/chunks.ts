/**
 * The tables of a DMG, which map the disk's chunks to the file. They are in the
 * resource fork or, in newer images, in a property list.
 *
 * @module
 */
import { allocate, SECTOR_SIZE, viewOf } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { type Chunk, u64 } from "../../core/read_only.ts";
import { TableFault, type Trailer } from "./trailer.ts";

/** Kinds of chunks. */
export const KIND = {
  ZERO: 0,
  RAW: 1,
  /** Nothing was written there; reads as zeroes. */
  IGNORED: 2,
  ADC: 0x80000004,
  ZLIB: 0x80000005,
  BZIP2: 0x80000006,
  LZFSE: 0x80000007,
  LZMA: 0x80000008,
} as const;

/** Entries that do not describe a part of the disk. */
const [COMMENT, END] = [0x7ffffffe, 0xffffffff];

/** A chunk, and how it is stored. */
export interface DmgChunk extends Chunk {
  readonly kind: number;
}

/** Offsets of a table's fields and entries. */
const TABLE = { firstSector: 8, dataOffset: 24, entries: 204 } as const;
const ENTRY = { sector: 8, sectors: 16, offset: 24, length: 32 } as const;
const ENTRY_SIZE = 40;
/** Shorter resources are not such tables. */
const MIN_TABLE = TABLE.entries + ENTRY_SIZE;

/** QEMU's limits. */
const MAX_CHUNK = 64 * 1024 * 1024;
const MAX_SECTORS = MAX_CHUNK / SECTOR_SIZE;
/** Property lists of 1 MiB exist. */
const MAX_TABLES = 16 * 1024 * 1024;

/**
 * Read all tables.
 *
 * @returns the chunks in the order of the disk, without overlaps.
 * @throws {TableFault} if they are invalid.
 */
export async function readChunks(
  file: BlockNode,
  trailer: Trailer,
): Promise<DmgChunk[]> {
  const { fork, list, dataOffset } = trailer;
  const [area, tablesOf] = fork.length > 0
    ? [fork, resourcesOf] as const
    : [list, listedData] as const;
  if (area.length === 0) throw new TableFault("it has no table of chunks");
  if (area.length > MAX_TABLES) {
    throw new TableFault(`its tables have ${area.length} bytes`);
  }
  const bytes = allocate(area.length);
  await file.readv(area.offset, [bytes]);
  const chunks: DmgChunk[] = [];
  const count = { known: 0 };
  for (const table of tablesOf(bytes)) {
    for (const chunk of chunksOf(table, dataOffset, count)) chunks.push(chunk);
  }
  chunks.sort((a, b) => a.start - b.start);
  for (let i = 1; i < chunks.length; i++) {
    const [{ start, size }, next] = [chunks[i - 1], chunks[i]];
    if (next.start < start + size) {
      throw new TableFault(`chunks overlap at ${next.start}`);
    }
  }
  return chunks;
}

/** The data of all resources of a fork (Inside Macintosh, Resource Manager). */
function* resourcesOf(fork: Uint8Array): Generator<Uint8Array> {
  const view = viewOf(fork);
  if (fork.length < 16) throw new TableFault("its resource fork is too short");
  const [start, length] = [view.getUint32(0), view.getUint32(8)];
  const end = start + length;
  if (length === 0 || end > fork.length) {
    throw new TableFault("its resource fork is damaged");
  }
  for (let at = start; at < end;) {
    const size = at + 4 <= end ? view.getUint32(at) : 0;
    at += 4;
    if (size === 0 || size > end - at) {
      throw new TableFault("its resource fork is damaged");
    }
    yield fork.subarray(at, at + size);
    at += size;
  }
}

/** The content of a property list's `data` elements. */
function* listedData(list: Uint8Array): Generator<Uint8Array> {
  const text = new TextDecoder("latin1").decode(list);
  const [open, close] = ["<data>", "</data>"];
  for (let at = text.indexOf(open); at >= 0; at = text.indexOf(open, at)) {
    at += open.length;
    const end = text.indexOf(close, at);
    if (end < 0) throw new TableFault("its property list is cut off");
    yield decodeBase64(text.slice(at, end));
    at = end;
  }
}

function decodeBase64(data: string): Uint8Array {
  let text;
  try {
    text = atob(data);
  } catch {
    throw new TableFault("its property list is damaged");
  }
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** The chunks of a table; none if it is a different structure. */
function* chunksOf(
  table: Uint8Array,
  dataOffset: number,
  count: { known: number },
): Generator<DmgChunk> {
  if (table.length < MIN_TABLE) return;
  const view = viewOf(table);
  if (view.getUint32(0) !== 0x6d697368) return; // "mish"
  const base = dataOffset + u64(view, TABLE.dataOffset);
  const firstSector = u64(view, TABLE.firstSector);
  const end = table.length - ENTRY_SIZE;
  for (let at = TABLE.entries; at <= end; at += ENTRY_SIZE) {
    const kind = view.getUint32(at);
    if (kind === COMMENT || kind === END) continue;
    const sectors = u64(view, at + ENTRY.sectors);
    const stored = u64(view, at + ENTRY.length);
    const isZero = isEmpty(kind);
    checkSizes(count.known, isZero ? 0 : sectors, stored);
    count.known++;
    if (sectors === 0) continue;
    const start = (firstSector + u64(view, at + ENTRY.sector)) * SECTOR_SIZE;
    const size = sectors * SECTOR_SIZE;
    const place = base + u64(view, at + ENTRY.offset);
    if (!Number.isSafeInteger(start + size)) {
      throw new TableFault(`a chunk of ${sectors} sectors ends nowhere`);
    }
    yield { kind, start, size, place, stored };
  }
}

/** Whether chunks of a kind read as zeroes. */
export function isEmpty(kind: number): boolean {
  return kind === KIND.ZERO || kind === KIND.IGNORED;
}

function checkSizes(index: number, sectors: number, stored: number): void {
  const tooLarge = (what: string, value: number, most: number) =>
    new TableFault(
      "it has a chunk that is too large",
      `${what} ${
        BigInt(value)
      } for chunk ${index} is larger than max (${most})`,
    );
  if (sectors > MAX_SECTORS) {
    throw tooLarge("sector count", sectors, MAX_SECTORS);
  }
  if (stored > MAX_CHUNK) throw tooLarge("length", stored, MAX_CHUNK);
}
