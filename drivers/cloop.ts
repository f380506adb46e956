/**
 * The format driver `cloop`: compressed loop images of Knoppix and others,
 * read-only.
 *
 * A header of 128 bytes of text is followed by the number of blocks, a table of
 * their offsets, and the blocks, each a zlib stream. All numbers are
 * big-endian. (There is no specification; the layout follows QEMU's driver.)
 *
 * @module
 */
import { allocate, type IoVector, SECTOR_SIZE, viewOf } from "../core/bytes.ts";
import { BlockError, invalid } from "../core/errors.ts";
import type { BlockNode, ReadFlags } from "../core/node.ts";
import { PagedTable } from "../core/paged_table.ts";
import {
  type Chunk,
  ChunkReader,
  type ChunkRun,
  damaged,
  readOnlyDriver,
  ReadOnlyMap,
  u64,
} from "../core/read_only.ts";
import { readPadded } from "../core/requests.ts";
import { decompressZlib } from "../core/zlib_streams.ts";

/** Compressed loop images. */
export const cloopDriver = readOnlyDriver("cloop", async (file) => {
  const header = await readHeader(file);
  await checkOffsets(file, header);
  const size = header.blocks * header.blockSize;
  return { size, map: new CloopMap(file, header) };
});

/** Bytes of text, and of the header with the two numbers after it. */
const TEXT_SIZE = 128;
const HEADER_SIZE = TEXT_SIZE + 8;
const ENTRY_SIZE = 8;

/** QEMU's limits. */
const MAX_BLOCK = 64 * 1024 * 1024;
const MAX_BLOCKS = 536870911;
const MAX_TABLE = 512 * 1024 * 1024;

interface Header {
  /** Bytes of the disk per block, a multiple of 512. */
  readonly blockSize: number;
  /** Blocks of the disk. */
  readonly blocks: number;
}

/** Read the header, with checks in QEMU's order. */
async function readHeader(file: BlockNode): Promise<Header> {
  const bytes = allocate(HEADER_SIZE);
  await readPadded(file, 0, [bytes]);
  const view = viewOf(bytes);
  const text = String.fromCharCode(...bytes.subarray(0, TEXT_SIZE));
  const [_, version] = /^#!\/bin\/sh\n#V(\d\.\d) Format\n/.exec(text) ?? [];
  if (version !== undefined && version !== "2.0") {
    throw new BlockError("ENOTSUP", `Unsupported cloop version ${version}`);
  }
  const [blockSize, blocks] = [TEXT_SIZE, TEXT_SIZE + 4].map((at) =>
    view.getUint32(at)
  );
  if (blockSize % SECTOR_SIZE !== 0) {
    throw invalid(`block_size ${blockSize} must be a multiple of 512`);
  }
  if (blockSize === 0) throw invalid("block_size cannot be zero");
  if (blockSize > MAX_BLOCK) {
    throw invalid(`block_size ${blockSize} must be 64 MB or less`);
  }
  if (blocks > MAX_BLOCKS) {
    throw invalid(`n_blocks ${blocks} must be ${MAX_BLOCKS} or less`);
  }
  if ((blocks + 1) * ENTRY_SIZE > MAX_TABLE) {
    throw invalid(
      "image requires too many offsets, try increasing block size",
    );
  }
  return { blockSize, blocks };
}

/** Bytes of the table that are checked at once. */
const PART = 64 * 1024;

/** Refuse an invalid table; it may be large, and is not kept. */
async function checkOffsets(
  file: BlockNode,
  { blocks }: Header,
): Promise<void> {
  // Past the end of the file everything reads as zero, and a few zeroes
  // suffice.
  const length = Math.min((blocks + 1) * ENTRY_SIZE, file.size + PART);
  let last = 0;
  for (let at = 0; at < length; at += PART) {
    const bytes = allocate(Math.min(PART, length - at));
    await readPadded(file, HEADER_SIZE + at, [bytes]);
    const view = viewOf(bytes);
    for (let i = 0; i + ENTRY_SIZE <= bytes.length; i += ENTRY_SIZE) {
      // Losing precision is harmless: no file is that large.
      const offset = view.getUint32(i) * 2 ** 32 + view.getUint32(i + 4);
      const index = (at + i) / ENTRY_SIZE;
      if (index > 0) checkOffset(index, last, offset);
      last = offset;
    }
  }
}

function checkOffset(index: number, last: number, offset: number): void {
  if (offset < last) {
    throw invalid(
      `offsets not monotonically increasing at index ${index}, ` +
        "image file is corrupt",
    );
  }
  if (offset - last > 2 * MAX_BLOCK) {
    throw invalid(
      `invalid compressed block size at index ${index}, image file is corrupt`,
    );
  }
}

class CloopMap extends ReadOnlyMap<ChunkRun<Chunk>> {
  readonly #header: Header;
  readonly #table: PagedTable;
  readonly #reader = new ChunkReader<Chunk>(
    async ({ start }, stored, target) => {
      if (await decompressZlib(stored, target)) return;
      throw damaged(`The block at ${start} is not a zlib stream`);
    },
  );

  constructor(file: BlockNode, header: Header) {
    super(file);
    this.#header = header;
    this.#table = new PagedTable(file, {
      offset: HEADER_SIZE,
      entrySize: ENTRY_SIZE,
      unit: SECTOR_SIZE,
    });
  }

  override useFile(file: BlockNode): void {
    super.useFile(file);
    this.#table.useFile(file);
  }

  lookup(offset: number, length: number): ChunkRun<Chunk> | undefined {
    const { blockSize } = this.#header;
    const block = Math.floor(offset / blockSize);
    const place = this.#entry(block);
    const end = this.#entry(block + 1);
    if (place === undefined || end === undefined) return undefined;
    const start = block * blockSize;
    const chunk = { start, size: blockSize, place, stored: end - place };
    const left = start + blockSize - offset;
    return { kind: "special", length: Math.min(length, left), chunk };
  }

  async find(offset: number, length: number): Promise<ChunkRun<Chunk>> {
    const block = Math.floor(offset / this.#header.blockSize);
    for (;;) {
      const run = this.lookup(offset, length);
      if (run) return run;
      const missing = [block, block + 1].filter((i) => !this.#table.page(i));
      await Promise.all(missing.map((index) => this.#table.load(index)));
    }
  }

  readSpecial(
    { chunk }: ChunkRun<Chunk>,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    return this.#reader.read(this.file, chunk!, offset, iov, flags);
  }

  /** Offset of a block, if its entry is in memory. */
  #entry(index: number): number | undefined {
    const page = this.#table.page(index);
    return page && u64(page, this.#table.at(index));
  }
}
