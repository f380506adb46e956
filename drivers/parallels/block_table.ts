/**
 * The block allocation table (BAT): the offset of each cluster, in sectors or
 * in clusters.
 *
 * **Write order**: the data, then the table.
 *
 * @module
 */
import type { Allocation } from "../../core/block_map.ts";
import { BLOCK, BlockTable } from "../../core/block_table.ts";
import { roundUp } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { type ChangedUnit, readEntries } from "../../core/paged_table.ts";
import { ENTRY_SIZE, HEADER_SIZE, type ParallelsHeader } from "./header.ts";

/**
 * Bytes of the table written at once. The table follows the header: larger
 * units could overlap the sector behind it.
 */
const UNIT = 64;

/** The block allocation table. */
export class ParallelsTable extends BlockTable {
  readonly #header: ParallelsHeader;
  /** Whether everything past the end of the data reads as zeroes. */
  #isCut = false;

  constructor(file: BlockNode, header: ParallelsHeader) {
    const { clusterSize: unit, dataOffset: next, entryUnit } = header;
    super(file, {
      unit,
      layout: { offset: HEADER_SIZE, entrySize: ENTRY_SIZE, unit: UNIT },
      next,
      limit: (2 ** 32 - 1) * entryUnit + unit,
    });
    this.#header = header;
  }

  /** End of the data. */
  get dataEnd(): number {
    return this.space.next;
  }

  /**
   * Visit all nonzero entries as stored in the file, with the offset that each
   * refers to.
   */
  async eachEntry(
    visit: (index: number, place: number) => void | Promise<void>,
    signal?: AbortSignal,
  ): Promise<void> {
    const { entries, entryUnit } = this.#header;
    // A table that is cut off is empty there.
    const inFile = Math.max(0, this.file.size - HEADER_SIZE);
    const length = Math.min(entries * ENTRY_SIZE, inFile - inFile % ENTRY_SIZE);
    const table = { offset: HEADER_SIZE, length, entrySize: ENTRY_SIZE };
    await readEntries(this.file, table, (view, at, index) => {
      const entry = view.getUint32(at, true);
      if (entry !== 0) return visit(index, entry * entryUnit);
    }, signal);
  }

  /** Find the end of the last cluster. */
  async examine(): Promise<void> {
    let end = this.#header.dataOffset;
    await this.eachEntry((_, place) => {
      if (this.isPlace(place)) end = Math.max(end, place + this.unit);
    });
    this.space.next = end;
  }

  /**
   * Whether a cluster can be there. QEMU 11 creates images with clusters before
   * the stated start of the data.
   */
  isPlace(place: number): boolean {
    return place >= this.#header.tableEnd && place < this.file.size;
  }

  protected placeOf(cluster: number): number | undefined {
    const page = this.table.page(cluster);
    if (!page) return undefined;
    const entry = page.getUint32(this.table.at(cluster), true);
    if (entry === 0) return BLOCK.UNALLOCATED;
    const place = entry * this.#header.entryUnit;
    return this.isPlace(place) ? place : BLOCK.DAMAGED;
  }

  protected setPlace(cluster: number, place: number): void {
    const entry = place / this.#header.entryUnit;
    this.table.page(cluster)!.setUint32(this.table.at(cluster), entry, true);
  }

  protected override async newBlocks(
    first: number,
    count: number,
  ): Promise<Allocation> {
    return this.roomAt(first, count, await this.reserve(count * this.unit));
  }

  /** Allocate space at the end of the data. */
  async reserve(length: number): Promise<number> {
    if (!this.#isCut) await this.space.exclusively(() => this.#cut());
    return await this.space.take(length);
  }

  /** Truncate the file after the last cluster: what follows may not be zero. */
  async #cut(): Promise<void> {
    if (this.#isCut) return;
    const end = this.space.next;
    if (this.file.size > end) await this.file.truncate!(end);
    this.#isCut = true;
  }

  protected async write(changes: readonly ChangedUnit[]): Promise<void> {
    const { file } = this;
    await file.flush?.();
    let at = 0;
    let iov: Uint8Array[] = [];
    for (const { offset, bytes } of changes) {
      if (iov.length > 0 && offset !== at + iov.length * UNIT) {
        await file.writev!(at, iov);
        iov = [];
      }
      if (iov.length === 0) at = offset;
      iov.push(bytes);
    }
    await file.writev!(at, iov);
    await file.flush?.();
  }

  /**
   * Truncate the file after the last cluster, and pad that to its full size.
   */
  trim(): Promise<void> {
    const { file, space } = this;
    return space.exclusively(async () => {
      const end = roundUp(space.next, this.#header.entryUnit);
      if (file.size !== end) await file.truncate!(end);
    });
  }
}
