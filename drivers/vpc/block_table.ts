/**
 * The block allocation table of a dynamic VHD image. An entry is the sector at
 * which a block begins, with its sector bitmap.
 *
 * Sectors not set in the bitmap read as zeroes; in a differencing image, as its
 * parent.
 *
 * **Write order**: data, bitmaps of new blocks, and the footer after them;
 * then, when those are durable, the table and other bitmaps. Until then the
 * image has no footer at its end, or one followed by blocks that nothing refers
 * to; its copy at the start is never written.
 *
 * @module
 */
import type { Allocation, Run } from "../../core/block_map.ts";
import { BLOCK, BlockTable } from "../../core/block_table.ts";
import {
  allocate,
  divideUp,
  roundDown,
  roundUp,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import { invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { type ChangedUnit, writeEntries } from "../../core/paged_table.ts";
import { readPadded } from "../../core/requests.ts";
import {
  DYNAMIC_HEADER_SIZE,
  type DynamicHeader,
  type Footer,
  FOOTER_SIZE,
  isSound,
  truncated,
  TYPE,
  UNALLOCATED,
} from "./footer.ts";
import { SectorBitmaps } from "./sector_bitmaps.ts";

const ENTRY_SIZE = 4;

/** The block allocation table. */
export class VpcTable extends BlockTable {
  readonly isSparse = true;
  readonly #footer: Footer;
  readonly #header: DynamicHeader;
  readonly #bitmaps: SectorBitmaps;

  constructor(file: BlockNode, footer: Footer, header: DynamicHeader) {
    const { blockSize, tableOffset } = header;
    super(file, {
      unit: blockSize,
      layout: { offset: tableOffset, entrySize: ENTRY_SIZE, unit: SECTOR_SIZE },
      limit: UNALLOCATED * SECTOR_SIZE,
    });
    this.#footer = footer;
    this.#header = header;
    this.#bitmaps = new SectorBitmaps(file, header);
  }

  /** Switch to another file with the same content. */
  override useFile(file: BlockNode): void {
    super.useFile(file);
    this.#bitmaps.useFile(file);
  }

  /**
   * Check all entries, and find the end of the last block.
   *
   * @throws {BlockError} EINVAL if a block is misplaced.
   */
  async examine(): Promise<void> {
    const { tableOffset, entries } = this.#header;
    const length = entries * ENTRY_SIZE;
    let end = roundUp(tableOffset + length, SECTOR_SIZE);
    await this.table.readAll(entries, (view, at, index) => {
      const entry = view.getUint32(at);
      if (entry !== UNALLOCATED) {
        end = Math.max(end, this.#checkedEnd(index, entry));
      }
    });
    const fileEnd = roundUp(this.file.size, SECTOR_SIZE);
    if (end > fileEnd) throw truncated();
    // If the file does not end with a footer (it may be a device), nothing
    // refers to what is there.
    this.space.next = end;
    if (fileEnd - FOOTER_SIZE < end) return;
    const last = allocate(FOOTER_SIZE);
    await readPadded(this.file, fileEnd - FOOTER_SIZE, [last]);
    if (isSound(last)) this.space.next = fileEnd - FOOTER_SIZE;
  }

  /** The end of a block, which must not overlap metadata. */
  #checkedEnd(index: number, entry: number): number {
    const { tableOffset, entries, blockSize } = this.#header;
    const start = entry * SECTOR_SIZE;
    const end = start + this.#bitmaps.size + blockSize;
    const headerAt = Number(this.#footer.dataOffset);
    const overlaps = (offset: number, length: number) =>
      start < offset + length && offset < end;
    if (
      overlaps(0, FOOTER_SIZE) || overlaps(headerAt, DYNAMIC_HEADER_SIZE) ||
      overlaps(tableOffset, entries * ENTRY_SIZE)
    ) {
      throw invalid(
        `block ${index} of the VHD image overlaps its headers`,
      );
    }
    return end;
  }

  /** An entry; `undefined` if it must be loaded first. */
  #entry(block: number): number | undefined {
    return this.table.page(block)?.getUint32(this.table.at(block));
  }

  /** Offset of a block's sectors, after its bitmap. */
  #dataOf(entry: number): number {
    return entry * SECTOR_SIZE + this.#bitmaps.size;
  }

  /** The kind of ranges that the image has nothing of. */
  get #absent(): "unallocated" | "zero" {
    const hasParent = this.#footer.type === TYPE.DIFFERENCING;
    return hasParent ? "unallocated" : "zero";
  }

  protected placeOf(block: number): number | undefined {
    const entry = this.#entry(block);
    if (entry === undefined) return undefined;
    if (entry === UNALLOCATED) {
      return this.#absent === "zero" ? BLOCK.ZERO : BLOCK.UNALLOCATED;
    }
    return this.#bitmaps.isFull(block) ? this.#dataOf(entry) : BLOCK.PARTIAL;
  }

  protected setPlace(block: number, place: number): void {
    const entry = (place - this.#bitmaps.size) / SECTOR_SIZE;
    this.table.page(block)!.setUint32(this.table.at(block), entry);
    this.#bitmaps.fill(block, entry * SECTOR_SIZE);
  }

  protected override lookupPartial(
    block: number,
    offset: number,
    length: number,
  ): Run | undefined {
    const inBlock = offset % this.unit;
    const first = Math.floor(inBlock / SECTOR_SIZE);
    const last = Math.min(this.unit, inBlock + length);
    const most = divideUp(last, SECTOR_SIZE) - first;
    const sectors = this.#bitmaps.run(block, first, most);
    if (!sectors) return undefined;
    const end = (first + sectors.count) * SECTOR_SIZE;
    const run = Math.min(length, end - inBlock);
    if (!sectors.isHere) return { length: run, kind: this.#absent };
    return {
      length: run,
      kind: "data",
      child: this.file,
      childOffset: this.#dataOf(this.#entry(block)!) + inBlock,
    };
  }

  protected override loadPartial(block: number): Promise<void> {
    return this.#bitmaps.load(block, this.#entry(block)! * SECTOR_SIZE);
  }

  protected override async makeRoom(
    offset: number,
    length: number,
  ): Promise<Allocation> {
    const block = Math.floor(offset / this.unit);
    let entry: number | undefined;
    while ((entry = this.#entry(block)) === undefined) {
      await this.table.load(block);
    }
    return entry === UNALLOCATED
      ? await this.newBlocks(block)
      : this.#newSectors(block, entry, offset, length);
  }

  /** Allocate sectors of a block that is already in the file. */
  #newSectors(
    block: number,
    entry: number,
    offset: number,
    length: number,
  ): Allocation {
    const start = roundDown(offset, SECTOR_SIZE);
    const end = roundUp(offset + length, SECTOR_SIZE);
    const inBlock = start % this.unit;
    return {
      start,
      length: end - start,
      child: this.file,
      childOffset: this.#dataOf(entry) + inBlock,
      isZero: false,
      replaces: false,
      commit: async () => {
        // The page may have been evicted meanwhile.
        while (!this.lookup(start, 1)) await this.find(start, 1);
        const [first, count] = [inBlock, end - start].map((bytes) =>
          bytes / SECTOR_SIZE
        );
        this.#bitmaps.set(block, entry * SECTOR_SIZE, first, count);
      },
      abort: () => Promise.resolve(),
    };
  }

  /** The new block's bitmap goes where the footer was. */
  protected override async newBlocks(block: number): Promise<Allocation> {
    const { size } = this.#bitmaps;
    const place = await this.space.take(size + this.unit);
    return this.roomAt(block, 1, place + size);
  }

  override async map(block: number, place: number): Promise<void> {
    await super.map(block, place);
    if (this.#bitmaps.manyAreNew) await this.#writeNewBitmaps();
  }

  /** A bitmap may be where the footer would otherwise be written. */
  #writeNewBitmaps(): Promise<void> {
    return this.space.exclusively(() => this.#bitmaps.writeNew());
  }

  protected override get isDirty(): boolean {
    return this.table.isDirty || this.#bitmaps.isDirty;
  }

  protected override endFile(): Promise<void> {
    return this.space.trim(this.#footer.bytes);
  }

  protected write(units: readonly ChangedUnit[]): Promise<void> {
    return this.#bitmaps.writeChanges(async (bitmaps) => {
      await this.#writeNewBitmaps();
      await this.file.flush?.();
      for (const { offset, bytes } of [...units, ...bitmaps]) {
        await this.file.writev!(offset, [bytes]);
      }
      await this.file.flush?.();
    });
  }
}

/** Write the table of a new image. */
export async function writeNewTable(
  file: BlockNode,
  offset: number,
  entries: number,
): Promise<void> {
  const length = roundUp(entries * ENTRY_SIZE, SECTOR_SIZE);
  const table = { offset, length, entrySize: ENTRY_SIZE };
  await writeEntries(
    file,
    table,
    (view, at) => view.setUint32(at, UNALLOCATED),
  );
}
