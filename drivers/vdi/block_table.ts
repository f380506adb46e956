/**
 * The block map of a VDI image.
 *
 * **Write order**: the data, and the header, whose block count gives the next
 * free number (a count that is too high wastes space, one that is too low would
 * allocate a block twice); then, when both are durable, the map.
 *
 * @module
 */
import type { Allocation } from "../../core/block_map.ts";
import { BLOCK, BlockTable } from "../../core/block_table.ts";
import { SECTOR_SIZE } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { type ChangedUnit, writeEntries } from "../../core/paged_table.ts";
import {
  BLOCK_SIZE,
  DISCARDED,
  ENTRY_SIZE,
  TYPE,
  UNALLOCATED,
  type VdiHeader,
} from "./header.ts";

/** The block map. */
export class VdiTable extends BlockTable {
  readonly #header: VdiHeader;
  /** Blocks whose allocation was aborted. */
  readonly #spare: number[] = [];

  constructor(file: BlockNode, header: VdiHeader) {
    const { mapOffset, dataOffset, blocksAllocated } = header;
    super(file, {
      unit: BLOCK_SIZE,
      layout: { offset: mapOffset, entrySize: ENTRY_SIZE, unit: SECTOR_SIZE },
      next: dataOffset + blocksAllocated * BLOCK_SIZE,
    });
    this.#header = header;
  }

  protected placeOf(block: number): number | undefined {
    const entry = this.table.page(block)?.getUint32(this.table.at(block), true);
    if (entry === undefined) return undefined;
    return hasPlace(entry)
      ? this.#header.dataOffset + entry * BLOCK_SIZE
      : BLOCK.ZERO;
  }

  protected setPlace(block: number, place: number): void {
    const entry = (place - this.#header.dataOffset) / BLOCK_SIZE;
    this.table.page(block)!.setUint32(this.table.at(block), entry, true);
    const { blocksAllocated } = this.#header;
    this.#header.blocksAllocated = Math.max(blocksAllocated, entry + 1);
  }

  mayHaveHoles(): boolean {
    return this.#header.type === TYPE.STATIC;
  }

  protected override async newBlocks(
    first: number,
    count: number,
  ): Promise<Allocation> {
    const spare = this.#spare.pop();
    const room = spare === undefined
      ? await super.newBlocks(first, count)
      : this.roomAt(first, 1, spare);
    const { childOffset, length } = room;
    return {
      ...room,
      isZero: spare === undefined && room.isZero,
      // deno-lint-ignore require-await -- the interface is asynchronous
      abort: async () => {
        for (let at = length; at > 0; at -= BLOCK_SIZE) {
          this.#spare.push(childOffset + at - BLOCK_SIZE);
        }
      },
    };
  }

  protected async write(changes: readonly ChangedUnit[]): Promise<void> {
    const { file } = this;
    await file.writev!(0, [this.#header.bytes]);
    await file.flush?.();
    for (const { offset, bytes } of changes) {
      await file.writev!(offset, [bytes]);
    }
    await file.flush?.();
  }
}

/** Whether a block is allocated in the file. */
export function hasPlace(entry: number): boolean {
  return entry !== UNALLOCATED && entry !== DISCARDED;
}

/** Write the block map of a new image. */
export async function writeNewTable(
  file: BlockNode,
  { mapOffset: offset, dataOffset, blocks, type }: VdiHeader,
): Promise<void> {
  const table = { offset, length: dataOffset - offset, entrySize: ENTRY_SIZE };
  await writeEntries(file, table, (view, at, index) => {
    if (index >= blocks) return;
    const entry = type === TYPE.STATIC ? index : UNALLOCATED;
    view.setUint32(at, entry, true);
  });
}
