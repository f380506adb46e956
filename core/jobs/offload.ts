/**
 * Copying by the system, from file to file, without the bytes passing through
 * here.
 *
 * @module
 */
import { checkedExtent, isInherited } from "../extents.ts";
import { withoutWrappers } from "../filter.ts";
import type { BlockNode } from "../node.ts";
import type { Part } from "./concatenation.ts";

/** A range of a protocol's node. */
interface Place {
  readonly node: BlockNode;
  readonly offset: number;
  readonly length: number;
}

/**
 * Have the system copy `length` bytes of data from `offset` on, which lie in
 * one disk of a row.
 *
 * @returns whether it did. If not, that may have any reason: the ordinary way
 * tells it.
 */
export async function offload(
  { node, start }: Part,
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

/** Where the first part of a range lies, if plainly in a file. */
async function placeOf(
  node: BlockNode,
  offset: number,
  length: number,
): Promise<Place | undefined> {
  // What a filter does to requests, the system would not do. In an image that
  // is written to, data may move while it is being copied.
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
