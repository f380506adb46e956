/**
 * The format driver `asif`: sparse images of macOS 26, read-only.
 *
 * A directory refers to tables, whose entries, in groups, refer to the chunks
 * of the disk. The last entry of a group refers to a chunk of states, two bits
 * for each sector of the group's chunks. All numbers are big-endian.
 *
 * Apple has published nothing about the format; docs/formats/asif.md says how
 * it was determined.
 *
 * @module
 */
import type { Run } from "../core/block_map.ts";
import { allocate, isExactSize, isPowerOfTwo, viewOf } from "../core/bytes.ts";
import { BlockError, invalid } from "../core/errors.ts";
import type { BlockNode } from "../core/node.ts";
import { PagedTable } from "../core/paged_table.ts";
import {
  damaged,
  readOnlyDriver,
  ReadOnlyMap,
  u64,
} from "../core/read_only.ts";
import { readPadded } from "../core/requests.ts";

/** Apple's sparse images. */
export const asifDriver = readOnlyDriver("asif", async (file, { purpose }) => {
  const header = await readHeader(file);
  const { size, chunkSize: clusterSize } = header;
  const map = new AsifMap(file, header);
  if (purpose !== "info") await map.preload();
  return { size, map, info: { clusterSize } };
});

/** Offsets of the fields that are used. */
const AT = {
  version: 4,
  directories: [16, 24],
  sectors: 48,
  maxSectors: 56,
  chunkSize: 64,
  sectorSize: 68,
} as const;
const HEADER_SIZE = 80;
const VERSION = 1;
/**
 * Bytes of an entry, and of the sequence number at the start of a directory.
 */
const ENTRY_SIZE = 8;
/** Larger chunks are not known; Apple's have 1 MiB. */
const MAX_CHUNK = 64 * 1024 * 1024;
const SECTOR_SIZES = [512, 4096];

interface Header {
  /** Bytes of the disk. */
  readonly size: number;
  readonly sectorSize: number;
  readonly chunkSize: number;
  /** Offset of the newer directory. */
  readonly directory: number;
  /** Chunks of the disk per group, and groups per table. */
  readonly groupChunks: number;
  readonly tableGroups: number;
}

async function readHeader(file: BlockNode): Promise<Header> {
  const bytes = allocate(HEADER_SIZE);
  await readPadded(file, 0, [bytes]);
  const view = viewOf(bytes);
  if (view.getUint32(0) !== 0x73686477) { // "shdw"
    throw invalid("Image not in ASIF format");
  }
  const version = view.getUint32(AT.version);
  if (version !== VERSION) {
    throw new BlockError("ENOTSUP", `Unsupported ASIF version ${version}`);
  }
  const chunkSize = view.getUint32(AT.chunkSize);
  const sectorSize = view.getUint16(AT.sectorSize);
  if (!SECTOR_SIZES.includes(sectorSize)) {
    throw invalid(`Invalid ASIF sector size ${sectorSize}`);
  }
  const groupChunks = 4 * sectorSize;
  const tableGroups = Math.floor(chunkSize / ((groupChunks + 1) * ENTRY_SIZE));
  if (!isPowerOfTwo(chunkSize) || tableGroups < 1 || chunkSize > MAX_CHUNK) {
    throw invalid(`Invalid ASIF chunk size ${chunkSize}`);
  }
  const [sectors, most] = [u64(view, AT.sectors), u64(view, AT.maxSectors)];
  const size = sectors * sectorSize;
  if (!isExactSize(size)) {
    throw new BlockError("EFBIG", "The disk of the ASIF image is too large");
  }
  if (sectors > most) {
    throw invalid(`ASIF disk has ${sectors} sectors, but at most ${most}`);
  }
  const directory = await newerDirectory(
    file,
    AT.directories.map((at) => u64(view, at)),
  );
  return { size, sectorSize, chunkSize, directory, groupChunks, tableGroups };
}

/**
 * The directory with the higher sequence number: they are written alternately.
 */
async function newerDirectory(
  file: BlockNode,
  offsets: readonly number[],
): Promise<number> {
  let newest = { number: -1n, offset: 0 };
  for (const offset of offsets) {
    if (offset % ENTRY_SIZE !== 0 || offset + ENTRY_SIZE > file.size) {
      throw invalid(`Invalid offset ${BigInt(offset)} of an ASIF directory`);
    }
    const bytes = allocate(ENTRY_SIZE);
    await file.readv(offset, [bytes]);
    const number = viewOf(bytes).getBigUint64(0);
    if (number > newest.number) newest = { number, offset };
  }
  return newest.offset;
}

/** States of a chunk, the two highest bits of its entry. */
const CHUNK = { ABSENT: 0, WHOLE: 1, PARTIAL: 3 } as const;
/** States of a sector in a partial chunk. */
const SECTOR = { ABSENT: 0, WRITTEN: 1 } as const;
/** Bits of the high half of an entry that are part of a chunk's number. */
const NUMBER_BITS = 0x7fffff;
const SECTORS_PER_BYTE = 4;

/** An entry of a table. */
interface Entry {
  readonly state: number;
  /** Offset of the chunk in the file. */
  readonly place: number;
}

/** Entries that must be loaded to map an offset. */
class Missing {
  /** Their offsets in the file. */
  readonly places: readonly number[];

  constructor(...places: number[]) {
    this.places = places;
  }
}

class AsifMap extends ReadOnlyMap {
  readonly #header: Header;
  /** The file as a paged table, for all of its tables. */
  readonly #tables: PagedTable;

  constructor(file: BlockNode, header: Header) {
    super(file);
    this.#header = header;
    this.#tables = new PagedTable(file, {
      offset: 0,
      entrySize: ENTRY_SIZE,
      unit: 512,
    });
  }

  override useFile(file: BlockNode): void {
    super.useFile(file);
    this.#tables.useFile(file);
  }

  lookup(offset: number, length: number): Run | undefined {
    try {
      const run = this.#runAt(offset, length);
      return run instanceof Missing ? undefined : run;
    } catch {
      return undefined; // `find` loads it.
    }
  }

  async find(offset: number, length: number): Promise<Run> {
    for (;;) {
      const run = this.#runAt(offset, length);
      if (!(run instanceof Missing)) return run;
      await this.#load(run);
    }
  }

  /** Load the start of the directory, which is enough for most disks. */
  async preload(): Promise<void> {
    await this.#tables.load(this.#header.directory / ENTRY_SIZE);
  }

  async #load({ places }: Missing): Promise<void> {
    await Promise.all(places.map((at) => this.#tables.load(at / ENTRY_SIZE)));
  }

  #runAt(offset: number, length: number): Run | Missing {
    const { chunkSize, groupChunks, tableGroups } = this.#header;
    const from = offset % chunkSize;
    const most = Math.min(length, chunkSize - from);
    const chunk = Math.floor(offset / chunkSize);
    const tableChunks = groupChunks * tableGroups;
    const table = this.#tableAt(Math.floor(chunk / tableChunks));
    if (table instanceof Missing) return table;
    const zero: Run = { kind: "zero", length: most };
    if (table === 0) return zero;
    const inTable = chunk % tableChunks;
    const group = table +
      Math.floor(inTable / groupChunks) * (groupChunks + 1) * ENTRY_SIZE;
    const inGroup = inTable % groupChunks;
    const [entryAt, statesAt] = [inGroup, groupChunks].map((index) =>
      group + index * ENTRY_SIZE
    );
    const entry = this.#entryAt(entryAt);
    // A partial chunk needs both.
    if (entry instanceof Missing) return new Missing(entryAt, statesAt);
    const { state, place } = entry;
    if (state === CHUNK.ABSENT && place === 0) return zero;
    if (place === 0 || (state !== CHUNK.WHOLE && state !== CHUNK.PARTIAL)) {
      throw unknown(`the chunk at ${offset - from}`, state);
    }
    if (state === CHUNK.WHOLE) return this.#data(place + from, most);
    const states = this.#entryAt(statesAt);
    if (states instanceof Missing) return states;
    if (states.place === 0) {
      throw damaged(`The states of the sectors are missing at ${offset}`);
    }
    return this.#partOf(states.place, inGroup, from, most, place);
  }

  /** The first run in a partial chunk. */
  #partOf(
    states: number,
    inGroup: number,
    from: number,
    most: number,
    place: number,
  ): Run | Missing {
    const { sectorSize, chunkSize } = this.#header;
    const first = inGroup * (chunkSize / sectorSize);
    const end = first + Math.ceil((from + most) / sectorSize);
    let sector = first + Math.floor(from / sectorSize);
    const state = this.#stateOf(states, sector);
    if (state instanceof Missing) return state;
    if (state !== SECTOR.ABSENT && state !== SECTOR.WRITTEN) {
      throw unknown(`a sector of the chunk at ${place} of the file`, state);
    }
    // A run may end with a page of states.
    do sector++; while (
      sector < end && this.#stateOf(states, sector) === state
    );
    const length = Math.min(most, (sector - first) * sectorSize - from);
    return state === SECTOR.ABSENT
      ? { kind: "zero", length }
      : this.#data(place + from, length);
  }

  #stateOf(states: number, sector: number): number | Missing {
    const at = states + Math.floor(sector / SECTORS_PER_BYTE);
    const index = Math.floor(at / ENTRY_SIZE);
    const page = this.#tables.page(index);
    if (!page) return new Missing(index * ENTRY_SIZE);
    const byte = page.getUint8(this.#tables.at(index) + at % ENTRY_SIZE);
    return byte >> 2 * (sector % SECTORS_PER_BYTE) & 3;
  }

  #data(childOffset: number, length: number): Run {
    if (childOffset + length > this.file.size) {
      throw damaged(`A chunk goes past the end of the file at ${childOffset}`);
    }
    return { kind: "data", length, child: this.file, childOffset };
  }

  /** Offset of a table; 0 if there is none. */
  #tableAt(index: number): number | Missing {
    const at = this.#header.directory + ENTRY_SIZE * (1 + index);
    const entry = this.#entryAt(at);
    return entry instanceof Missing ? entry : entry.place;
  }

  #entryAt(at: number): Entry | Missing {
    const { chunkSize } = this.#header;
    if (at + ENTRY_SIZE > this.file.size) {
      throw damaged("A table goes past the end of the file");
    }
    const index = at / ENTRY_SIZE;
    const page = this.#tables.page(index);
    if (!page) return new Missing(at);
    const where = this.#tables.at(index);
    const high = page.getUint32(where);
    const number = (high & NUMBER_BITS) * 2 ** 32 + page.getUint32(where + 4);
    return { state: high >>> 30, place: number * chunkSize };
  }
}

/** The error for an unknown state, whose meaning is not guessed. */
function unknown(what: string, state: number): BlockError {
  return new BlockError("ENOTSUP", `Unknown state ${state} of ${what}`);
}
