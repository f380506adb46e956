/**
 * The target of a copy: data is written without the zeroes in it, or
 * compressed.
 *
 * @module
 */
import type { BlockNode, WriteFlags } from "../node.ts";
import { allEnded, writeZeroes } from "../requests.ts";
import { located } from "./copy_source.ts";
import type { Job, JobNode } from "./job.ts";
import { dataEnd, zeroEnd, type ZeroRunOptions } from "./zero_runs.ts";

/** How to write to the target. */
export interface CopyTargetOptions {
  /**
   * How to treat zeroes: `fill` writes all as data, `known` zeroes the ranges
   * that the source reports as zero, and otherwise data is searched for zeroes
   * as well.
   */
  readonly zeroes: "fill" | "known" | ZeroRunOptions;
  /** Whether the target is known to read as zeroes. */
  readonly targetIsZero?: boolean;
  /** Store clusters of this size compressed, with this level. */
  readonly compression?: { clusterSize: number; level?: number };
  /** Flags of each write. */
  readonly flags?: WriteFlags;
}

/** The target disk. */
export class CopyTarget {
  readonly #job: Job;
  readonly #disk: JobNode;
  readonly #options: CopyTargetOptions;
  readonly #sparse?: ZeroRunOptions;

  constructor(job: Job, disk: JobNode, options: CopyTargetOptions) {
    this.#job = job;
    this.#disk = disk;
    this.#options = options;
    const { zeroes } = options;
    if (typeof zeroes === "object") this.#sparse = zeroes;
  }

  /** The disk's node, for one request. */
  get node(): BlockNode {
    return this.#disk.node;
  }

  /**
   * Write data and zero the rest.
   *
   * @param placed Called once later writes will be placed after all of this
   * one; never if that is unknown before the end.
   */
  async write(
    offset: number,
    bytes: Uint8Array,
    placed?: () => void,
  ): Promise<void> {
    const { compression } = this.#options;
    try {
      await this.#job.request(() =>
        compression
          ? this.#writeCompressed(offset, bytes, placed)
          : this.#writeParts(offset, bytes, placed)
      );
    } catch (error) {
      throw located("writing at byte", offset, error);
    }
  }

  async #writeParts(
    offset: number,
    bytes: Uint8Array,
    placed?: () => void,
  ): Promise<void> {
    const { flags } = this.#options;
    const sparse = this.#sparse;
    const { length } = bytes;
    for (let at = 0; at < length;) {
      const zeroes = sparse
        ? zeroEnd(bytes, at, length, offset, sparse.alignment)
        : at;
      if (zeroes > at) await this.#zero(offset + at, zeroes - at);
      const end = sparse
        ? dataEnd(bytes, zeroes, length, offset, sparse)
        : length;
      if (end > zeroes) {
        const data = [bytes.subarray(zeroes, end)];
        const ownFlags = end === length ? { ...flags, placed } : flags;
        await this.node.writev!(offset + zeroes, data, ownFlags);
      }
      at = end;
    }
  }

  /** Compress clusters with data, and zero the others. */
  async #writeCompressed(
    offset: number,
    bytes: Uint8Array,
    placed?: () => void,
  ): Promise<void> {
    const { clusterSize, level } = this.#options.compression!;
    const { length } = bytes;
    const writes: Promise<void>[] = [];
    for (let at = 0; at < length;) {
      const zeroes = this.#zeroClusters(bytes, at);
      if (zeroes > at) writes.push(this.#zero(offset + at, zeroes - at));
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
    placed?.();
    await allEnded(writes);
  }

  /** The end of the run of zero clusters at `from`. */
  #zeroClusters(bytes: Uint8Array, from: number): number {
    const { clusterSize } = this.#options.compression!;
    if (!this.#sparse) return from;
    return zeroEnd(bytes, from, bytes.length, from, clusterSize);
  }

  /** Zero a range, unless it reads as zeroes already. */
  async zero(offset: number, length: number): Promise<void> {
    await this.#job.request(() => this.#zero(offset, length));
  }

  /** As {@linkcode zero}, within a request. */
  async #zero(offset: number, length: number): Promise<void> {
    if (this.#options.targetIsZero) return;
    try {
      const flags = { ...this.#options.flags, unmap: true };
      await writeZeroes(this.node, offset, length, flags);
    } catch (error) {
      throw located("writing at byte", offset, error);
    }
  }
}
