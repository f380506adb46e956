/**
 * The block allocation table of a VHDX image. An entry holds the state and
 * offset of a block. The entries of each chunk are followed by one for its
 * sector bitmap, which differencing images use.
 *
 * Changes go through the log.
 *
 * @module
 */
import type { Run } from "../../core/block_map.ts";
import { BLOCK, BlockTable } from "../../core/block_table.ts";
import { divideUp, roundUp } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import {
  type ChangedUnit,
  type TableExtent,
  writeEntries,
} from "../../core/paged_table.ts";
import { readPadded } from "../../core/requests.ts";
import { SectorBitmaps } from "../../core/sector_bitmaps.ts";
import { MIB } from "./headers.ts";
import type { Log } from "./log.ts";
import { LOG_SECTOR } from "./log_entry.ts";
import { type Metadata, SECTOR } from "./metadata.ts";
import { overlap, overlapText, type Regions } from "./regions.ts";

const ENTRY_SIZE = 8;
/** Sectors of a chunk: bits of a sector bitmap, a block of 1 MiB. */
const CHUNK_SECTORS = 8 * MIB;

/** Blocks whose bitmaps are kept in memory; each has at most 64 KiB. */
const MAX_BITMAPS = 64;

/** States of blocks. */
export const STATE = {
  NOT_PRESENT: 0,
  UNDEFINED: 1,
  ZERO: 2,
  UNMAPPED: 3,
  UNMAPPED_V095: 5,
  PRESENT: 6,
  PARTIAL: 7,
} as const;

/** Numbers of blocks and entries, and the order of the entries. */
export class TableShape {
  /** Blocks of the disk. */
  readonly blocks: number;
  /** Blocks of a chunk, after which a bitmap's entry follows. */
  readonly ratio: number;
  /** Entries that the table must have. */
  readonly entries: number;

  constructor({ size, blockSize, parent }: Metadata) {
    this.blocks = divideUp(size, blockSize);
    this.ratio = CHUNK_SECTORS * SECTOR / blockSize;
    this.entries = parent
      ? divideUp(this.blocks, this.ratio) * (this.ratio + 1)
      : this.blocks && this.blocks + Math.floor((this.blocks - 1) / this.ratio);
  }

  /** The extent of a table at an offset. */
  tableAt(offset: number): TableExtent {
    const length = this.entries * ENTRY_SIZE;
    return { offset, length, entrySize: ENTRY_SIZE };
  }

  /** The entry of a block. */
  entryOf(block: number): number {
    return block + Math.floor(block / this.ratio);
  }

  /** The entry of a block's sector bitmap. */
  bitmapOf(block: number): number {
    return Math.floor(block / this.ratio) * (this.ratio + 1) + this.ratio;
  }

  /** The block of an entry; `undefined` for that of a bitmap. */
  blockOf(entry: number): number | undefined {
    const inChunk = entry % (this.ratio + 1);
    const chunk = Math.floor(entry / (this.ratio + 1));
    return inChunk === this.ratio ? undefined : chunk * this.ratio + inChunk;
  }
}

/** The block allocation table. */
export class VhdxTable extends BlockTable {
  readonly isSparse = true;
  readonly #metadata: Metadata;
  readonly #regions: Regions;
  readonly #log: Log;
  readonly #shape: TableShape;
  readonly #bitmaps: SectorBitmaps;

  constructor(
    file: BlockNode,
    metadata: Metadata,
    regions: Regions,
    log: Log,
  ) {
    const { offset } = regions.bat;
    super(file, {
      unit: metadata.blockSize,
      layout: { offset, entrySize: ENTRY_SIZE, unit: LOG_SECTOR },
    });
    this.#metadata = metadata;
    this.#regions = regions;
    this.#log = log;
    this.#shape = new TableShape(metadata);
    this.#bitmaps = new SectorBitmaps(metadata.blockSize, MAX_BITMAPS);
  }

  /** Switch to another file with the same content, also for the log. */
  override useFile(file: BlockNode): void {
    super.useFile(file);
    this.#log.useFile(file);
    // What follows the content need not be zero.
    this.space.next = Math.max(this.space.next, roundUp(file.size, MIB));
  }

  /**
   * Check all entries, and find the end of the last block.
   *
   * @param report Receives faults of blocks, in QEMU's words.
   * @returns the number of misplaced blocks.
   */
  async examine(
    report: (line: string) => void,
    signal?: AbortSignal,
  ): Promise<number> {
    const hasParent = this.#metadata.parent !== undefined;
    let end = roundUp(this.file.size, MIB);
    let faults = 0;
    await this.table.readAll(this.#shape.entries, (view, at, entry) => {
      const state = stateAt(view, at);
      const block = this.#shape.blockOf(entry);
      const isThere = state === STATE.PRESENT ||
        (state === STATE.PARTIAL && hasParent);
      if (!isThere || block === undefined) return;
      const offset = offsetAt(view, at);
      for (const problem of this.#problemsOf(entry, block, offset)) {
        report(problem);
        faults++;
      }
      end = Math.max(end, offset + this.unit);
    }, signal);
    this.space.next = Math.max(this.space.next, end);
    return faults;
  }

  /** Faults of a block's offset. */
  *#problemsOf(
    entry: number,
    block: number,
    offset: number,
  ): Generator<string> {
    const { size: fileSize } = this.file;
    const { size, blockSize } = this.#metadata;
    if (offset > 2 ** 63 - blockSize) {
      yield `VHDX BAT entry ${entry} offset overflow.`;
    }
    // QEMU has created images whose last block ends with the disk.
    const last = offset + Math.min(blockSize, size - block * blockSize);
    const pastEnd = (what: string, place: bigint) =>
      `VHDX BAT entry ${entry} ${what} offset ${place} points after ` +
      `end of file (${fileSize}). Image has probably been truncated.`;
    if (offset >= fileSize) yield pastEnd("start", BigInt(offset));
    else if (last > fileSize) yield pastEnd("end", BigInt(last) - 1n);
    const place = { offset, length: blockSize };
    const other = [{ offset: 0, length: MIB }, ...this.#regions.all]
      .find((other) => overlap(place, other));
    if (other) yield overlapText(place, other);
  }

  protected override entryOf(block: number): number {
    return this.#shape.entryOf(block);
  }

  protected placeOf(block: number): number | undefined {
    const entry = this.#shape.entryOf(block);
    const page = this.table.page(entry);
    if (!page) return undefined;
    const at = this.table.at(entry);
    const hasParent = this.#metadata.parent !== undefined;
    switch (stateAt(page, at)) {
      case STATE.NOT_PRESENT:
        return hasParent ? BLOCK.UNALLOCATED : BLOCK.ZERO;
      case STATE.UNDEFINED:
      case STATE.ZERO:
      case STATE.UNMAPPED:
      case STATE.UNMAPPED_V095:
        return BLOCK.ZERO;
      case STATE.PRESENT:
        return offsetAt(page, at);
      case STATE.PARTIAL:
        return hasParent ? BLOCK.PARTIAL : BLOCK.DAMAGED;
      default:
        return BLOCK.DAMAGED;
    }
  }

  protected setPlace(block: number, place: number): void {
    const entry = this.#shape.entryOf(block);
    const page = this.table.page(entry)!;
    putEntry(page, this.table.at(entry), STATE.PRESENT, place);
  }

  protected override damaged(block: number): BlockError {
    return new BlockError(
      "EIO",
      `The entry of block ${block} of the VHDX image is damaged`,
    );
  }

  protected override lookupPartial(
    block: number,
    offset: number,
    length: number,
  ): Run | undefined {
    const inBlock = offset % this.unit;
    const most = Math.min(length, this.unit - inBlock);
    const run = this.#bitmaps.run(block, inBlock, most);
    if (!run) return undefined;
    if (!run.isHere) return { length: run.length, kind: "unallocated" };
    const entry = this.#shape.entryOf(block);
    const place = offsetAt(this.table.page(entry)!, this.table.at(entry));
    return {
      length: run.length,
      kind: "data",
      child: this.file,
      childOffset: place + inBlock,
    };
  }

  protected override async loadPartial(block: number): Promise<void> {
    const entry = this.#shape.bitmapOf(block);
    let page: DataView | undefined;
    while (!(page = this.table.page(entry))) await this.table.load(entry);
    const at = this.table.at(entry);
    const offset = offsetAt(page, at);
    const isThere = stateAt(page, at) === STATE.PRESENT && offset >= MIB &&
      offset + MIB <= this.file.size;
    if (!isThere) {
      throw new BlockError(
        "EIO",
        `The VHDX image lacks the sector bitmap of block ${block}`,
      );
    }
    await this.#bitmaps.load(block, async (bitmap) => {
      const start = offset + block % this.#shape.ratio * bitmap.length;
      await readPadded(this.file, start, [bitmap]);
    });
  }

  protected write(changes: readonly ChangedUnit[]): Promise<void> {
    return this.#log.write(changes);
  }
}

function stateAt(view: DataView, at: number): number {
  return view.getUint32(at, true) & 7;
}

/** An offset in bytes; an inexact one is invalid anyway. */
function offsetAt(view: DataView, at: number): number {
  const low = view.getUint32(at, true);
  return view.getUint32(at + 4, true) * 2 ** 32 + (low - low % MIB);
}

function putEntry(
  view: DataView,
  at: number,
  state: number,
  offset: number,
): void {
  view.setUint32(at, offset % 2 ** 32 + state, true);
  view.setUint32(at + 4, Math.floor(offset / 2 ** 32), true);
}

/**
 * Write the table of a new image.
 *
 * @param offset Offset of the table.
 * @param state The state of all blocks.
 * @param dataOffset Offset of the first block; the others follow.
 */
export async function writeNewTable(
  file: BlockNode,
  offset: number,
  { metadata, state, dataOffset }: {
    metadata: Metadata;
    state: number;
    dataOffset: number;
  },
): Promise<void> {
  if (state === STATE.NOT_PRESENT) return;
  const shape = new TableShape(metadata);
  await writeEntries(file, shape.tableAt(offset), (view, at, entry) => {
    const block = shape.blockOf(entry);
    if (block === undefined) return;
    const place = state === STATE.PRESENT
      ? dataOffset + block * metadata.blockSize
      : 0;
    putEntry(view, at, state, place);
  });
}
