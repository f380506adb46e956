/**
 * What ranges of a stack hold, seen through its whole backing chain.
 *
 * @module
 */
import { asBlockError, invalid } from "./errors.ts";
import type { BlockNode, Extent } from "./node.ts";
import { valueText } from "./values.ts";

/**
 * An extent of a stack, and where in the chain its bytes come from. What no
 * layer of a whole chain has allocated reads as zeroes.
 */
export interface ChainExtent extends Extent {
  /** Bytes from the start of the disk. */
  offset: number;
  /** How many backing files below the top its content is found. */
  depth: number;
  /** Whether it is stored compressed. */
  compressed: boolean;
}

/** Whether what a range reads as is left to the layer below. */
export function isInherited({ allocated, zero }: Extent): boolean {
  return !allocated && !zero;
}

/** Whether data is stored for a range, even if only zeroes. */
export function isStored({ allocated, zero, recurse }: Extent): boolean {
  // The file below may have a hole where a format has data.
  return allocated && (!zero || recurse === true);
}

/**
 * The layer below that a node leaves unallocated ranges to; of a filter, its
 * filtered child.
 */
export function backingOf(node: BlockNode): BlockNode | undefined {
  return skipFilters(node).children.backing;
}

/** A node of a stack, and how it is reached from the top. */
export interface Reached {
  readonly node: BlockNode;
  /** What it is to the one above; both absent for the top. */
  readonly role?: string;
  readonly above?: Reached;
}

/**
 * All nodes of a stack, the top one first. (Not one call within another: chains
 * of backing files may be longer than the stack of calls is deep.)
 */
export function* nodesOf(top: BlockNode): Generator<Reached> {
  const pending: Reached[] = [{ node: top }];
  for (let next; (next = pending.pop());) {
    yield next;
    const children = Object.entries(next.node.children).reverse();
    for (const [role, node] of children) {
      if (node) pending.push({ node, role, above: next });
    }
  }
}

/** The node below from which a node has its data; of a filter, its only one. */
export function primaryChild({ children }: BlockNode): BlockNode | undefined {
  return children.file ?? children.image;
}

/** The node that says what ranges hold: filters hand the question down. */
export function skipFilters(node: BlockNode): BlockNode {
  while (node.driver.role === "filter") {
    const next = primaryChild(node) ?? node.children.backing;
    if (!next) break;
    node = next;
  }
  return node;
}

/**
 * The first extent of `[offset, offset + length)`, looking down the chain to,
 * but not into, `base`. What no layer above `base` holds is left to that: it is
 * neither allocated nor zero.
 */
export async function chainStatus(
  top: BlockNode,
  offset: number,
  length: number,
  base?: BlockNode,
): Promise<ChainExtent> {
  let node = top;
  let depth = 0;
  const nothing = (zero: boolean): ChainExtent => (
    { offset, length, depth, allocated: false, zero, compressed: false }
  );
  for (;; depth++) {
    let extent: Extent;
    try {
      extent = checkedExtent(node, await node.status(offset, length));
      if (extent.recurse) extent = await refined(extent, length);
    } catch (error) {
      throw asBlockError(error);
    }
    length = Math.min(length, extent.length);
    if (!isInherited(extent)) {
      const compressed = extent.compressed === true;
      return { ...extent, compressed, length, offset, depth };
    }
    const below = backingOf(node);
    // What has a place in spite of that is not left to anybody.
    if (!below && extent.hostOffset !== undefined) {
      return { ...extent, compressed: false, length, offset, depth };
    }
    if (!below || offset >= below.size) return nothing(true);
    if (below === base) return nothing(false);
    // What lies past a shorter backing file's end is an extent of its own.
    length = Math.min(length, below.size - offset);
    node = below;
  }
}

/**
 * What a driver says of a range, if that gets anybody further.
 *
 * @throws {BlockError} EINVAL for an extent without a length, or one that does
 * not say whether it is allocated and zero.
 */
export function checkedExtent(node: BlockNode, extent: Extent): Extent {
  const { length, allocated, zero, compressed = false } = extent ?? {};
  if (
    Number.isInteger(length) && length > 0 && typeof allocated === "boolean" &&
    typeof zero === "boolean" && typeof compressed === "boolean"
  ) return extent;
  throw invalid(
    `Driver '${node.driver.name}' answers status() with ` +
      `${valueText(extent)}: length ${valueText(length)}, allocated ` +
      `${valueText(allocated)}, zero ${valueText(zero)}, compressed ` +
      valueText(compressed),
  );
}

/** A node's answer, refined by its file, which may know of holes. */
async function refined(extent: Extent, length: number): Promise<Extent> {
  const { file, hostOffset } = extent;
  if (!file || hostOffset === undefined) return extent;
  const below = checkedExtent(
    file,
    await file.status(hostOffset, Math.min(extent.length, length)),
  );
  return {
    ...extent,
    length: Math.min(extent.length, below.length),
    zero: extent.zero || below.zero,
  };
}

/** All extents of a range in order, alike neighbours joined. */
export async function* chainExtents(
  top: BlockNode,
  offset = 0,
  length: number = top.size - offset,
): AsyncGenerator<ChainExtent> {
  const end = offset + length;
  let pending: ChainExtent | undefined;
  while (offset < end) {
    const extent = await chainStatus(top, offset, end - offset);
    offset += extent.length;
    if (pending && continues(pending, extent)) {
      pending.length += extent.length;
    } else {
      if (pending) yield pending;
      pending = extent;
    }
  }
  if (pending) yield pending;
}

function continues(first: ChainExtent, next: ChainExtent): boolean {
  return first.allocated === next.allocated && first.zero === next.zero &&
    first.compressed === next.compressed && first.depth === next.depth &&
    first.file === next.file &&
    (first.hostOffset === undefined
      ? next.hostOffset === undefined
      : next.hostOffset === first.hostOffset + first.length);
}
