/**
 * Several disks concatenated into one.
 *
 * @module
 */
import { roundUp, SECTOR_SIZE } from "../bytes.ts";
import { nodeOf } from "../checks.ts";
import {
  type ChainExtent,
  chainStatus,
  isInherited,
  refined,
} from "../extents.ts";
import type { BlockNode, Disk, ReadFlags, RequestFlags } from "../node.ts";
import { readPadded } from "../requests.ts";
import type { Job, JobNode } from "./job.ts";

/** One of the disks. */
export interface Part {
  /** The disk. */
  readonly disk: JobNode;
  /** Where in the concatenation it begins and ends, in bytes. */
  readonly start: number;
  readonly end: number;
  /** The preferred granularity of reads, in bytes. */
  readonly alignment: number;
}

/** The range past the end of a disk: zeroes, not stored anywhere. */
const NOTHING = { depth: 0, allocated: false, zero: true, compressed: false };

/**
 * The nodes of one or more sources.
 *
 * @throws {BlockError} EINVAL for anything but images and nodes.
 */
export function sourceNodes(sources: Disk | readonly Disk[]): BlockNode[] {
  const list: readonly Disk[] = Array.isArray(sources) ? sources : [sources];
  return list.map((source) => nodeOf("The source", source));
}

/** Disks in a row, each padded with zeroes to whole sectors. */
export class Concatenation {
  readonly #job: Job;
  readonly #parts: Part[] = [];

  private constructor(job: Job) {
    this.#job = job;
  }

  /** Put `nodes` in a row. */
  static async of(
    nodes: readonly BlockNode[],
    job: Job,
  ): Promise<Concatenation> {
    const whole = new Concatenation(job);
    for (const given of nodes) {
      const start = whole.size;
      const disk = job.use(given);
      const info = await job.request(() => disk.node.info?.());
      const { clusterSize = 1 } = info ?? {};
      const { node } = disk;
      const { requestAlignment = 1 } = node.limits ?? {};
      whole.#parts.push({
        disk,
        start,
        end: start + roundUp(node.size, SECTOR_SIZE),
        alignment: Math.max(SECTOR_SIZE, requestAlignment, clusterSize),
      });
    }
    return whole;
  }

  /** The total size in bytes. */
  get size(): number {
    return this.#parts.at(-1)?.end ?? 0;
  }

  /** The disk in which the byte at `offset` lies. */
  partAt(offset: number): Part {
    return this.#parts.find(({ end }) => offset < end)!;
  }

  /**
   * The first extent of the range from `offset`, within one disk. It ends at a
   * cluster boundary of that disk where possible, so that no cluster is read
   * twice.
   *
   * @param baseOf Gets an image of the disk's backing chain: data in it or below
   * it counts as unallocated.
   * @param most Longest range to query, in bytes.
   */
  async status(
    offset: number,
    baseOf?: () => BlockNode | undefined,
    most = Infinity,
    flags?: RequestFlags,
  ): Promise<ChainExtent> {
    return await this.#job.request(() =>
      this.#status(offset, baseOf?.(), most, flags)
    );
  }

  async #status(
    offset: number,
    base: BlockNode | undefined,
    most: number,
    flags?: RequestFlags,
  ): Promise<ChainExtent> {
    const { disk: { node }, start, end, alignment } = this.partAt(offset);
    const at = offset - start;
    if (at >= node.size) {
      const length = end - offset;
      return { ...NOTHING, offset, length };
    }
    const length = Math.min(most, node.size - at);
    let extent = await chainStatus(node, at, length, flags, base);
    if (extent.sparse) extent = await refined(extent, undefined, flags);
    // What no backing file has either can only be had by reading it.
    if (!base && isInherited(extent)) extent.allocated = true;
    let known = roundUp(extent.length, SECTOR_SIZE);
    const tail = (at + known) % alignment;
    if (offset + known < end && known > tail) known -= tail;
    return { ...extent, offset, length: known };
  }

  /** Fill `bytes` from `offset` on; the range may span several disks. */
  async read(
    offset: number,
    bytes: Uint8Array,
    flags?: ReadFlags,
  ): Promise<void> {
    for (let done = 0; done < bytes.length;) {
      const { disk, start, end } = this.partAt(offset + done);
      const take = Math.min(bytes.length - done, end - offset - done);
      const at = offset + done - start;
      const part = bytes.subarray(done, done + take);
      await this.#job.request(() => readPadded(disk.node, at, [part], flags));
      done += take;
    }
  }
}
