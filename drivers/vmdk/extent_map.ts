/**
 * The map of a disk: its extents in a row.
 *
 * @module
 */
import type { Allocation, BlockMap, Place, Run } from "../../core/block_map.ts";
import { type IoVector, isPowerOfTwo, SECTOR_SIZE } from "../../core/bytes.ts";
import type { ReadFlags } from "../../core/node.ts";
import type { Extent } from "./extent.ts";

/** Larger than any disk. */
const EVERYTHING = 2 ** 53;

/** The map of a disk. */
export class ExtentMap implements BlockMap {
  readonly unit: number;
  readonly extents: readonly Extent[];

  constructor(extents: readonly Extent[]) {
    this.extents = extents;
    this.unit = unitOf(extents);
  }

  /** Bytes of the disk. */
  get size(): number {
    return this.extents.at(-1)?.end ?? 0;
  }

  /** The extent that holds a byte of the disk. */
  at(offset: number): Extent {
    const { extents } = this;
    let [low, high] = [0, extents.length - 1];
    while (low < high) {
      const middle = low + high >> 1;
      if (offset < extents[middle].end) high = middle;
      else low = middle + 1;
    }
    return extents[low];
  }

  lookup(offset: number, length: number): Run | undefined {
    const extent = this.at(offset);
    return extent.lookup(offset, Math.min(length, extent.end - offset));
  }

  find(offset: number, length: number): Promise<Run> {
    const extent = this.at(offset);
    return extent.find(offset, Math.min(length, extent.end - offset));
  }

  inPlace(offset: number, length: number): Place | undefined {
    const extent = this.at(offset);
    return extent.inPlace(offset, Math.min(length, extent.end - offset));
  }

  allocate(offset: number, length: number): Promise<Allocation> {
    const extent = this.at(offset);
    return extent.allocate(offset, Math.min(length, extent.end - offset));
  }

  readSpecial(
    _run: Run,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    return this.at(offset).readCompressed!(offset, iov, flags);
  }

  mayHaveHoles({ child, childOffset }: Run): boolean {
    // Only flat extents have holes: grains are allocated when written.
    return childOffset !== undefined &&
      this.extents.some(({ file, grainSize }) =>
        file === child && grainSize === undefined
      );
  }
}

/** Where grain sizes do not divide each other, the unit is the whole disk. */
function unitOf(extents: readonly Extent[]): number {
  const sizes = extents.flatMap(({ grainSize }) => grainSize ?? []);
  const largest = Math.max(SECTOR_SIZE, ...sizes);
  const fits = sizes.every(isPowerOfTwo) &&
    extents.every(({ start }) => start % largest === 0);
  return fits || sizes.length === 0 ? largest : EVERYTHING;
}
