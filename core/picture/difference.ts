/**
 * A picture of where two disks differ.
 *
 * @module
 */
import { allocate, SECTOR_SIZE } from "../bytes.ts";
import { checkNode, checkOptions } from "../checks.ts";
import { asBlockError } from "../errors.ts";
import { type ChainExtent, chainStatus } from "../extents.ts";
import { Pace } from "../abort.ts";
import type { BlockNode, DirtyExtent } from "../node.ts";
import { isEqual, isZero } from "../runtime.ts";
import type { PictureOptions } from "./picture.ts";
import { Space } from "./space.ts";

/**
 * Where two disks differ.
 *
 * @category Jobs
 */
export interface Difference {
  /** The longer disk, each byte of which is the same or different. */
  readonly space: Space;
  /** Number of bytes in sectors that differ. */
  readonly bytes: number;
  /** The first ranges that differ, in whole sectors; at most 1000. */
  readonly ranges: readonly DirtyExtent[];
}

/** Bytes of each disk that are read at once. */
const REQUEST_SIZE = 1024 * 1024;
const MAX_RANGES = 1000;

/**
 * Compare two disks to their ends. Ranges known to be zero in both are not
 * read; the shorter disk counts as zero past its end.
 *
 * @throws {BlockError} if one of them cannot be read.
 *
 * @category Jobs
 */
export async function drawDifference(
  first: BlockNode,
  second: BlockNode,
  options: Omit<PictureOptions, "bitmap"> = {},
): Promise<Difference> {
  checkNode("The first disk", first);
  checkNode("The second disk", second);
  checkOptions("compare", options, {
    cells: { least: 1, most: 2 ** 20 },
    signal: "object",
    progress: "function",
  });
  const { cells = 4096, signal, progress } = options;
  const pace = new Pace(signal);
  pace.check();
  const size = Math.max(first.size, second.size);
  const space = new Space("Difference", size, cells, SECTOR_SIZE);
  const ranges: DirtyExtent[] = [];
  let bytes = 0;
  const differs = (offset: number, length: number) => {
    space.add("same", offset, length);
    space.add("different", offset, length);
    bytes += length;
    const last = ranges.at(-1);
    if (last && last.offset + last.length === offset) last.length += length;
    else if (ranges.length < MAX_RANGES) ranges.push({ offset, length });
  };
  const sides = [new Side(first, signal), new Side(second, signal)];
  try {
    for (let at = 0; at < size;) {
      const [a, b] = [await sides[0].at(at), await sides[1].at(at)];
      const end = Math.min(a.end, b.end, size);
      if (a.zero && b.zero) {
        space.add("zero", at, end - at);
        at = end;
      } else {
        const length = Math.min(end - at, REQUEST_SIZE);
        const [left, right] = await Promise.all(
          sides.map((side) => side.read(at, length)),
        );
        compareBytes(left, right, at, space, differs);
        at += length;
      }
      progress?.(at, size);
      if (pace.isDue) await pace.rest();
    }
  } catch (error) {
    throw asBlockError(error);
  }
  return { space, bytes, ranges };
}

function compareBytes(
  left: Uint8Array,
  right: Uint8Array,
  offset: number,
  space: Space,
  differs: (offset: number, length: number) => void,
): void {
  if (isEqual(left, right)) {
    const look = isZero(left) ? "zero" : "same";
    space.add(look, offset, left.length);
    return;
  }
  for (let at = 0; at < left.length; at += SECTOR_SIZE) {
    const end = Math.min(at + SECTOR_SIZE, left.length);
    if (isEqual(left.subarray(at, end), right.subarray(at, end))) {
      space.add("same", offset + at, end - at);
    } else differs(offset + at, end - at);
  }
}

/** One of the two disks. */
class Side {
  readonly #node: BlockNode;
  readonly #signal?: AbortSignal;
  readonly #buffer = allocate(REQUEST_SIZE);
  #known?: ChainExtent;

  constructor(node: BlockNode, signal?: AbortSignal) {
    this.#node = node;
    this.#signal = signal;
  }

  /** What is known from an offset on, and how far it extends. */
  async at(offset: number): Promise<{ zero: boolean; end: number }> {
    const { size } = this.#node;
    if (offset >= size) return { zero: true, end: Infinity };
    let known = this.#known;
    if (!known || known.offset + known.length <= offset) {
      known = await chainStatus(this.#node, offset, size - offset, {
        signal: this.#signal,
      });
      this.#known = known;
    }
    return { zero: known.zero, end: known.offset + known.length };
  }

  /** Bytes of the disk, valid until the next read. */
  async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = this.#buffer.subarray(0, length);
    const { zero } = await this.at(offset);
    if (zero) bytes.fill(0);
    else {
      await this.#node.readv(offset, [bytes], { signal: this.#signal });
    }
    return bytes;
  }
}
