/**
 * Requests composed of a node's verbs.
 *
 * @module
 */
import {
  allocate,
  fillVector,
  type IoVector,
  sliceVector,
  vectorLength,
} from "./bytes.ts";
import { checkSignal } from "./abort.ts";
import { cannotWrite } from "./checks.ts";
import { asBlockError, BlockError } from "./errors.ts";
import type {
  BlockNode,
  Breakpoints,
  ReadFlags,
  WriteFlags,
  ZeroFlags,
} from "./node.ts";

const ZEROES = allocate(256 * 1024);

/**
 * Make a range of a node read as zeroes: by the driver's `writeZeroes` or,
 * failing that, by writing zeroes as data.
 */
export async function writeZeroes(
  node: BlockNode,
  offset: number,
  length: number,
  flags?: ZeroFlags,
): Promise<void> {
  if (node.writeZeroes) {
    try {
      return await node.writeZeroes(offset, length, flags);
    } catch (error) {
      if (asBlockError(error).code !== "ENOTSUP" || flags?.noFallback) {
        throw error;
      }
    }
  } else if (flags?.noFallback) {
    throw new BlockError("ENOTSUP");
  }
  await writeZeroData(node, offset, length, flags);
}

/** Write zeroes to a range of a node as data. */
export async function writeZeroData(
  node: BlockNode,
  offset: number,
  length: number,
  flags?: WriteFlags,
): Promise<void> {
  if (!node.writev) throw cannotWrite("Cannot write zeroes", node);
  await writeZeroDataBy(node.writev.bind(node), offset, length, flags);
}

/** As {@linkcode writeZeroData}, through a given `writev`. */
export async function writeZeroDataBy(
  writev: NonNullable<BlockNode["writev"]>,
  offset: number,
  length: number,
  flags?: WriteFlags,
): Promise<void> {
  for (let done = 0; done < length;) {
    checkSignal(flags?.signal);
    const take = Math.min(ZEROES.length, length - done);
    await writev(offset + done, [ZEROES.subarray(0, take)], flags);
    done += take;
  }
}

/** Read from a node that may be shorter than the range: zeroes past its end. */
export async function readPadded(
  node: BlockNode,
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
): Promise<void> {
  const length = vectorLength(iov);
  const inside = Math.max(0, Math.min(length, node.size - offset));
  if (inside > 0) await node.readv(offset, sliceVector(iov, 0, inside), flags);
  if (inside < length) fillVector(iov, inside, length - inside);
}

/** The breakpoints of the nearest node, from this one down, that has any. */
export function breakpointsOf(node: BlockNode): Breakpoints | undefined {
  for (let at: BlockNode | undefined = node; at; at = at.children.file) {
    if (at.debug?.breakpoints) return at.debug.breakpoints;
  }
  return undefined;
}
