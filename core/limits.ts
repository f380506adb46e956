/**
 * Splitting requests to a node's limits: transfers by their maximum length,
 * zeroes and discards also at the boundaries the node prefers.
 *
 * @module
 */
import { checkSignal } from "./abort.ts";
import {
  type IoVector,
  roundDown,
  sliceVector,
  vectorLength,
} from "./bytes.ts";
import { asBlockError } from "./errors.ts";
import { wrapNode } from "./filter.ts";
import type { BlockNode, DebugOperations, WriteFlags } from "./node.ts";
import { writeZeroDataBy } from "./requests.ts";

/**
 * A node that takes requests of any offset and length, whatever the `limits` of
 * `node`; `node` itself if it has none.
 */
export async function applyLimits(node: BlockNode): Promise<BlockNode> {
  const split = splitRequests(node);
  if (unitOf(node) === 1) return split;
  const { alignRequests } = await import("./alignment.ts");
  // Align first, so that the pieces consist of whole units.
  return alignRequests(split);
}

/** What users see of nodes that the caller made: the same for all of them. */
const wrappers = new WeakMap<BlockNode, Promise<BlockNode>>();

/** As {@linkcode applyLimits}, for a node that may have other users. */
export async function applyLimitsOnce(node: BlockNode): Promise<BlockNode> {
  const known = wrappers.get(node);
  if (known) return await known;
  const making = applyLimits(node);
  wrappers.set(node, making);
  const wrapper = await making;
  wrappers.set(wrapper, making);
  return wrapper;
}

/** A wrapper that splits requests, if the limits require it. */
function splitRequests(node: BlockNode): BlockNode {
  if (!node.limits) return node;
  const transfers = splitTransfers(node);
  const writev = transfers.writev ?? node.writev?.bind(node);
  const changes = {
    ...transfers,
    ...splitZeroes(node, writev),
    ...splitDiscards(node),
  };
  if (node.debug) announceWrites(node, node.debug, changes);
  return Object.keys(changes).length > 0 ? wrapNode(node, changes) : node;
}

/** Announce each write once, into however many pieces it is split. */
function announceWrites(
  node: BlockNode,
  debug: DebugOperations,
  changes: Partial<BlockNode>,
): void {
  const writev = changes.writev ?? node.writev?.bind(node);
  const writeZeroes = changes.writeZeroes ?? node.writeZeroes?.bind(node);
  const announced = async (step: string, write: () => Promise<void>) => {
    await debug.event(step);
    try {
      await write();
    } finally {
      await debug.event("pwritev_done");
    }
  };
  if (writev) {
    changes.writev = (offset, iov, flags) =>
      announced("pwritev", () => writev(offset, iov, flags));
  }
  if (writeZeroes) {
    changes.writeZeroes = (offset, length, flags) =>
      announced("pwritev_zero", () => writeZeroes(offset, length, flags));
  }
}

function splitTransfers(node: BlockNode): Partial<BlockNode> {
  const most = node.limits?.maxTransfer;
  if (!most) return {};
  const split = (
    request: (
      offset: number,
      iov: IoVector,
      flags?: WriteFlags,
    ) => Promise<void>,
  ) =>
  async (offset: number, iov: IoVector, flags?: WriteFlags) => {
    const length = vectorLength(iov);
    for (let done = 0; done < length; done += most) {
      checkSignal(flags?.signal);
      const take = Math.min(most, length - done);
      const isLast = done + take === length;
      await request(
        offset + done,
        sliceVector(iov, done, take),
        isLast ? flags : { ...flags, placed: undefined },
      );
    }
  };
  return {
    readv: split(node.readv.bind(node)),
    ...(node.writev && { writev: split(node.writev.bind(node)) }),
  };
}

/**
 * @param writev Writes zeroes as data. Must be the verb below the alignment
 * wrapper, which holds the range already: taking it again would deadlock.
 */
function splitZeroes(
  node: BlockNode,
  writev: BlockNode["writev"],
): Partial<BlockNode> {
  const { writeZeroesAlignment, maxWriteZeroes } = node.limits!;
  if (!(writeZeroesAlignment || maxWriteZeroes)) return {};
  const unit = Math.max(writeZeroesAlignment ?? 1, unitOf(node));
  const writeZeroes: BlockNode["writeZeroes"] = async (
    offset,
    length,
    flags,
  ) => {
    for (const [start, size] of pieces(offset, length, unit, maxWriteZeroes)) {
      checkSignal(flags?.signal);
      try {
        await node.writeZeroes!(start, size, flags);
      } catch (error) {
        if (!isUnsupported(error) || flags?.noFallback || !writev) throw error;
        await writeZeroDataBy(writev, start, size, flags);
      }
    }
  };
  return { writeZeroes };
}

function splitDiscards(node: BlockNode): Partial<BlockNode> {
  const { discardAlignment, maxDiscard } = node.limits!;
  if (!(discardAlignment || maxDiscard)) return {};
  const unit = Math.max(discardAlignment ?? 1, unitOf(node));
  const discard: BlockNode["discard"] = async (
    offset,
    length,
    flags,
  ) => {
    for (const [start, size] of pieces(offset, length, unit, maxDiscard)) {
      checkSignal(flags?.signal);
      try {
        await node.discard!(start, size, flags);
      } catch (error) {
        // A piece may be too small to discard, and a discard is only a hint.
        if (!isUnsupported(error)) throw error;
      }
    }
  };
  return { discard };
}

function unitOf(node: BlockNode): number {
  return node.limits?.requestAlignment ?? 1;
}

function isUnsupported(error: unknown): boolean {
  return asBlockError(error).code === "ENOTSUP";
}

/**
 * A range split at its first and last unit boundary, and in between so that no
 * piece is longer than `most`.
 */
function* pieces(
  offset: number,
  length: number,
  unit: number,
  most = Infinity,
): Generator<[offset: number, length: number]> {
  const end = offset + length;
  const whole = most === Infinity ? most : roundDown(most, unit) || unit;
  while (offset < end) {
    const lead = offset % unit;
    let size = end - offset;
    if (lead > 0) size = Math.min(size, unit - lead);
    else if (size > unit) size = Math.min(roundDown(size, unit), whole);
    yield [offset, size];
    offset += size;
  }
}
