/**
 * Extents of a stack, seen through its whole backing chain.
 *
 * @module
 */
import { asBlockError, invalid } from "./errors.ts";
import type { BlockNode, Extent, RequestFlags } from "./node.ts";
import { valueText } from "./values.ts";

/**
 * An extent of a stack, and where in the chain its bytes come from. A range
 * that no layer has allocated reads as zeroes, except where no layer could have
 * a backing file: there nothing is known of it.
 *
 * @category Images
 */
export interface ChainExtent extends Extent {
  /** Bytes from the start of the disk. */
  offset: number;
  /** How many backing files below the top its content lies. */
  depth: number;
  /** Whether it is stored compressed. */
  compressed: boolean;
}

/** Whether a range is read from the layer below. */
export function isInherited({ allocated, zero }: Extent): boolean {
  return !allocated && !zero;
}

/** Whether a range has data stored, even if only zeroes. */
export function isStored({ allocated, zero, recurse }: Extent): boolean {
  // The file may have a hole where the format has data.
  return allocated && (!zero || recurse === true);
}

/** The layer below that unallocated ranges are read from; a filter's child. */
export function backingOf(node: BlockNode): BlockNode | undefined {
  return skipFilters(node).children.backing;
}

/** A node of a stack, and how it is reached from the top. */
export interface Reached {
  readonly node: BlockNode;
  /** Its role in the parent; both are absent for the top. */
  readonly role?: string;
  readonly above?: Reached;
}

/**
 * All nodes of a stack, the top one first. (Not recursive: a backing chain may
 * be longer than the call stack is deep.)
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

/** The child that holds a node's data; for a filter, its only child. */
export function primaryChild({ children }: BlockNode): BlockNode | undefined {
  return children.file ?? children.image;
}

/** The first node, from this one down, that is not a filter. */
export function skipFilters(node: BlockNode): BlockNode {
  while (node.driver.role === "filter") {
    const next = primaryChild(node) ?? node.children.backing;
    if (!next) break;
    node = next;
  }
  return node;
}

/**
 * The first extent of `[offset, offset + length)`, looking down the chain as
 * far as, but not into, `base`. A range that no layer above `base` has is
 * neither allocated nor zero.
 */
export async function chainStatus(
  top: BlockNode,
  offset: number,
  length: number,
  flags?: RequestFlags,
  base?: BlockNode,
): Promise<ChainExtent> {
  let node = top;
  let depth = 0;
  const nothing = (zero: boolean, place?: Extent): ChainExtent => ({
    offset,
    length,
    depth,
    allocated: false,
    zero,
    compressed: false,
    // Unwritten ranges may have space reserved.
    ...(place?.hostOffset !== undefined && {
      file: place.file,
      hostOffset: place.hostOffset,
    }),
  });
  for (;; depth++) {
    let extent: Extent;
    try {
      extent = checkedExtent(node, await node.status(offset, length, flags));
      if (extent.recurse) extent = await refined(extent, length, flags);
    } catch (error) {
      throw asBlockError(error);
    }
    length = Math.min(length, extent.length);
    if (!isInherited(extent)) {
      const compressed = extent.compressed === true;
      return { ...extent, compressed, length, offset, depth };
    }
    const below = backingOf(node);
    if (!below && hasNoLayers(node)) return nothing(false);
    if (!below || offset >= below.size) return nothing(true, extent);
    if (below === base) return nothing(false);
    // Split the extent at the end of a shorter backing file.
    length = Math.min(length, below.size - offset);
    node = below;
  }
}

/**
 * Whether a node never has a backing file. What it does not report as zero is
 * then unknown, such as dirty ranges of a bitmap exported over NBD.
 */
function hasNoLayers(node: BlockNode): boolean {
  const { role, name } = skipFilters(node).driver;
  return role === "protocol" || name === "raw";
}

/**
 * Check an extent that a driver returned.
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

/** A node's extent, refined by its file, which may know of holes. */
export async function refined<E extends Extent>(
  extent: E,
  length = extent.length,
  flags?: RequestFlags,
): Promise<E> {
  const { file, hostOffset } = extent;
  if (!file || hostOffset === undefined) return extent;
  const below = checkedExtent(
    file,
    await file.status(hostOffset, Math.min(extent.length, length), flags),
  );
  return {
    ...extent,
    length: Math.min(extent.length, below.length),
    zero: extent.zero || below.zero,
  };
}

/**
 * All extents of a range in order, equal neighbours merged. `status` is called
 * for one at a time.
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
  return first.allocated === next.allocated && first.zero === next.zero &&
    first.compressed === next.compressed && first.depth === next.depth &&
    first.file === next.file &&
    (first.hostOffset === undefined
      ? next.hostOffset === undefined
      : next.hostOffset === first.hostOffset + first.length);
}
