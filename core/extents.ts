/**
 * What ranges of a stack hold, seen through its whole backing chain.
 *
 * @module
 */
import { asBlockError, invalid } from "./errors.ts";
import type { BlockNode, Extent } from "./node.ts";
import { valueText } from "./values.ts";

/** An extent of a stack, and where in the chain its bytes come from. */
export interface ChainExtent extends Extent {
  /** Bytes from the start of the disk. */
  offset: number;
  /** How many backing files below the top its content is found. */
  depth: number;
  /**
   * Whether a layer of the chain says what it holds; otherwise it reads as
   * zeroes for want of anyone who does.
   */
  present: boolean;
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
 * but not into, `base`. What no layer above `base` holds is `unallocated`.
 */
export async function chainStatus(
  top: BlockNode,
  offset: number,
  length: number,
  base?: BlockNode,
): Promise<ChainExtent> {
  let node = top;
  for (let depth = 0;; depth++) {
    let extent: Extent;
    try {
      extent = checkedExtent(node, await node.status(offset, length));
      if (extent.recurse) extent = await refined(extent, length);
    } catch (error) {
      throw asBlockError(error);
    }
    length = Math.min(length, extent.length);
    if (extent.kind !== "unallocated") {
      return { ...extent, length, offset, depth, present: true };
    }
    const below = backingOf(node);
    if (!below || offset >= below.size) {
      return { offset, length, depth, kind: "zero", present: false };
    }
    if (below === base) {
      return { offset, length, depth, kind: "unallocated", present: false };
    }
    // What lies past a shorter backing file's end is an extent of its own.
    length = Math.min(length, below.size - offset);
    node = below;
  }
}

const KINDS = new Set<unknown>(["data", "zero", "compressed", "unallocated"]);

/**
 * What a driver says of a range, if that gets anybody further.
 *
 * @throws {BlockError} EINVAL for an extent of no length or kind.
 */
export function checkedExtent(node: BlockNode, extent: Extent): Extent {
  const { length, kind } = extent ?? {};
  if (Number.isInteger(length) && length > 0 && KINDS.has(kind)) return extent;
  throw invalid(
    `Driver '${node.driver.name}' answers status() with ` +
      `${valueText(extent)} of length ${valueText(length)} and kind ` +
      valueText(kind),
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
    kind: below.kind === "zero" ? "zero" : extent.kind,
  };
}

/**
 * All extents of a range in order, neighbours of one kind joined; `status` is
 * asked for one after the other.
 */
export async function* chainExtents(
  top: BlockNode,
  offset = 0,
  length: number = top.size - offset,
  status: (offset: number, length: number) => Promise<ChainExtent> = (
    offset,
    length,
  ) => chainStatus(top, offset, length),
): AsyncGenerator<ChainExtent> {
  const end = offset + length;
  let pending: ChainExtent | undefined;
  while (offset < end) {
    const extent = await status(offset, end - offset);
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
  return first.kind === next.kind && first.depth === next.depth &&
    first.present === next.present && first.file === next.file &&
    (first.hostOffset === undefined
      ? next.hostOffset === undefined
      : next.hostOffset === first.hostOffset + first.length);
}
