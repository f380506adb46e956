/**
 * Requests cut to what a node takes at once: no longer than its largest, and
 * zeroes and discards at the borders it prefers.
 *
 * @module
 */
import { alignRequests } from "./alignment.ts";
import {
  type IoVector,
  roundDown,
  sliceVector,
  vectorLength,
} from "./bytes.ts";
import { asBlockError } from "./errors.ts";
import type { BlockNode, WriteFlags } from "./node.ts";
import { writeZeroDataBy } from "./requests.ts";

/**
 * Let a node take requests of any offset and length, whatever its `limits`
 * say: the node's methods are replaced where they need it.
 */
export function applyLimits(node: BlockNode): BlockNode {
  // Rounding is done first, so that the pieces begin and end at whole units.
  return alignRequests(splitRequests(node));
}

function splitRequests(node: BlockNode): BlockNode {
  if (!node.limits) return node;
  splitTransfers(node);
  splitZeroes(node);
  splitDiscards(node);
  return node;
}

function splitTransfers(node: BlockNode): void {
  const most = node.limits?.maxTransfer;
  if (!most) return;
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
      const take = Math.min(most, length - done);
      const isLast = done + take === length;
      await request(
        offset + done,
        sliceVector(iov, done, take),
        isLast ? flags : { ...flags, placed: undefined },
      );
    }
  };
  node.readv = split(node.readv.bind(node));
  if (node.writev) node.writev = split(node.writev.bind(node));
}

function splitZeroes(node: BlockNode): void {
  const { writeZeroesAlignment, maxWriteZeroes } = node.limits!;
  const writeZeroes = node.writeZeroes?.bind(node);
  if (!writeZeroes || !(writeZeroesAlignment || maxWriteZeroes)) return;
  const unit = Math.max(writeZeroesAlignment ?? 1, unitOf(node));
  // As it is now: what rounds requests holds the range already when this runs,
  // and to wait for it once more would be to wait for oneself.
  const writev = node.writev?.bind(node);
  node.writeZeroes = async (offset, length, flags) => {
    for (const [start, size] of pieces(offset, length, unit, maxWriteZeroes)) {
      try {
        await writeZeroes(start, size, flags);
      } catch (error) {
        if (!isUnsupported(error) || flags?.noFallback || !writev) throw error;
        await writeZeroDataBy(writev, start, size, flags);
      }
    }
  };
}

function splitDiscards(node: BlockNode): void {
  const { discardAlignment, maxDiscard } = node.limits!;
  const discard = node.discard?.bind(node);
  if (!discard || !(discardAlignment || maxDiscard)) return;
  const unit = Math.max(discardAlignment ?? 1, unitOf(node));
  node.discard = async (offset, length) => {
    for (const [start, size] of pieces(offset, length, unit, maxDiscard)) {
      try {
        await discard(start, size);
      } catch (error) {
        // Some pieces may be too small; a discard is no more than a hint.
        if (!isUnsupported(error)) throw error;
      }
    }
  };
}

function unitOf(node: BlockNode): number {
  return node.limits?.requestAlignment ?? 1;
}

function isUnsupported(error: unknown): boolean {
  return asBlockError(error).code === "ENOTSUP";
}

/**
 * A range cut at the first and the last border between units that it contains,
 * and in between so that no piece is longer than `most`.
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
