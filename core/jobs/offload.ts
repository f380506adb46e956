/**
 * Copy offload: the system copies from file to file, and the bytes do not pass
 * through the program.
 *
 * @module
 */
import { checkedExtent, isInherited } from "../extents.ts";
import { withoutWrappers } from "../filter.ts";
import type { BlockNode } from "../node.ts";
import type { Part } from "./concatenation.ts";

/** A range of a protocol node. */
interface Place {
  readonly node: BlockNode;
  readonly offset: number;
  readonly length: number;
}

/**
 * Let the system copy `length` bytes of data from `offset` on, within one disk
 * of the source.
 *
 * @returns whether it did. If not, for whatever reason, copy the ordinary way,
 * which reports real errors.
 */
export async function offload(
  { disk: { node }, start }: Part,
  target: BlockNode,
  offset: number,
  length: number,
): Promise<boolean> {
  if (!target.copyFrom) return false;
  try {
    for (let done = 0; done < length;) {
      const at = offset + done;
      const place = await placeOf(node, at - start, length - done);
      if (!place) return false;
      await target.copyFrom(at, place.node, place.offset, place.length);
      done += place.length;
    }
    return true;
  } catch {
    return false;
  }
}

/** Where the first part of a range lies, if it is stored plainly in a file. */
async function placeOf(
  node: BlockNode,
  offset: number,
  length: number,
): Promise<Place | undefined> {
  // The system would bypass a filter; data of a writable image may move.
  if (node.driver.role === "filter" || !node.readOnly) return undefined;
  length = Math.min(length, node.size - offset);
  if (length <= 0) return undefined;
  if (node.driver.role === "protocol") {
    return { node: withoutWrappers(node), offset, length };
  }
  const extent = checkedExtent(node, await node.status(offset, length));
  if (isInherited(extent)) {
    const { backing } = node.children;
    return backing && await placeOf(backing, offset, extent.length);
  }
  const { zero, compressed, file, hostOffset } = extent;
  if (zero || compressed || !file || hostOffset === undefined) return undefined;
  if (!Object.values(node.children).includes(file)) return undefined;
  return await placeOf(file, hostOffset, extent.length);
}
