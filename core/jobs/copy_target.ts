/**
 * What is copied to: data is written without the zeroes in it, or compressed.
 *
 * @module
 */
import type { BlockNode, WriteFlags } from "../node.ts";
import { writeZeroes } from "../requests.ts";
import { located } from "./copy_source.ts";
import { dataEnd, zeroEnd, type ZeroRunOptions } from "./zero_runs.ts";

/** How to write what is copied. */
export interface CopyTargetOptions {
  /**
   * What becomes of zeroes: with `fill` all are written as data, with `known`
   * ranges that the source knows to be zero are zeroed, and else data is
   * searched for them as well.
   */
  readonly zeroes: "fill" | "known" | ZeroRunOptions;
  /** Whether the target is known to read as zeroes. */
  readonly targetIsZero?: boolean;
  /** Store clusters of this size compressed, so hard. */
  readonly compression?: { clusterSize: number; level?: number };
  /** Wishes that go with each write. */
  readonly flags?: WriteFlags;
}

/** A disk that is written to. */
export class CopyTarget {
  /** The disk. */
  readonly node: BlockNode;
  readonly #options: CopyTargetOptions;
  readonly #sparse?: ZeroRunOptions;

  constructor(node: BlockNode, options: CopyTargetOptions) {
    this.node = node;
    this.#options = options;
    const { zeroes } = options;
    if (typeof zeroes === "object") this.#sparse = zeroes;
  }

  /**
   * Write what is not zero, and zero the rest.
   *
   * @param begun Called when the last part of it is under way, and what is
   * written next need not wait for it: it will come after it.
   */
  async write(
    offset: number,
    bytes: Uint8Array,
    begun?: () => void,
  ): Promise<void> {
    try {
      if (this.#options.compression) {
        return await this.#writeCompressed(offset, bytes, begun);
      }
      await this.#writeParts(offset, bytes, begun);
    } catch (error) {
      throw located("writing at byte", offset, error);
    }
  }

  async #writeParts(
    offset: number,
    bytes: Uint8Array,
    begun?: () => void,
  ): Promise<void> {
    const { flags } = this.#options;
    const sparse = this.#sparse;
    const { length } = bytes;
    for (let at = 0; at < length;) {
      const zeroes = sparse
        ? zeroEnd(bytes, at, length, offset, sparse.alignment)
        : at;
      if (zeroes > at) await this.zero(offset + at, zeroes - at);
      const end = sparse
        ? dataEnd(bytes, zeroes, length, offset, sparse)
        : length;
      if (end > zeroes) {
        const place = offset + zeroes;
        const data = bytes.subarray(zeroes, end);
        const written = this.node.writev!(place, [data], flags);
        if (end === length && this.#isOneStep(place, data.length)) begun?.();
        await written;
      }
      at = end;
    }
  }

  /**
   * Whether all clusters of a write find their places at once. One that shares
   * its first or last, meets some that have a place, or goes on in another
   * table takes several steps: the next write would overtake it, and its
   * clusters come to lie in between.
   */
  #isOneStep(offset: number, length: number): boolean {
    const { writeZeroesAlignment: clusterSize = 1 } = this.node.limits ?? {};
    if (clusterSize === 1) return true;
    // As in qcow2: a table takes a cluster, an entry 8 bytes.
    const coverage = clusterSize * clusterSize / 8;
    return (this.#options.targetIsZero ?? false) &&
      offset % clusterSize === 0 && length % clusterSize === 0 &&
      offset % coverage + length <= coverage;
  }

  /** Compress clusters that are not zero, and zero the others. */
  async #writeCompressed(
    offset: number,
    bytes: Uint8Array,
    begun?: () => void,
  ): Promise<void> {
    const { clusterSize, level } = this.#options.compression!;
    const { length } = bytes;
    const writes: Promise<void>[] = [];
    for (let at = 0; at < length;) {
      const zeroes = this.#zeroClusters(bytes, at);
      if (zeroes > at) writes.push(this.zero(offset + at, zeroes - at));
      let end = zeroes;
      while (end < length && this.#zeroClusters(bytes, end) === end) {
        end = Math.min(length, end + clusterSize);
      }
      if (end > zeroes) {
        const data = [bytes.subarray(zeroes, end)];
        const place = offset + zeroes;
        writes.push(this.node.writeCompressed!(place, data, { level }));
      }
      at = end;
    }
    begun?.();
    await Promise.all(writes);
  }

  /** Where the whole clusters of zeroes that begin at `from` end. */
  #zeroClusters(bytes: Uint8Array, from: number): number {
    const { clusterSize } = this.#options.compression!;
    if (!this.#sparse) return from;
    return zeroEnd(bytes, from, bytes.length, from, clusterSize);
  }

  /** Have a range read as zeroes, unless it does. */
  async zero(offset: number, length: number): Promise<void> {
    if (this.#options.targetIsZero) return;
    try {
      const flags = { ...this.#options.flags, unmap: true };
      await writeZeroes(this.node, offset, length, flags);
    } catch (error) {
      throw located("writing at byte", offset, error);
    }
  }
}
