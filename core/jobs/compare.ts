/**
 * Comparing two disks.
 *
 * @module
 */
import { allocate, SECTOR_SIZE } from "../bytes.ts";
import { checkOptions, nodeOf } from "../checks.ts";
import { asBlockError, BlockError, detailOf, strerror } from "../errors.ts";
import { type ChainExtent, chainStatus, isStored } from "../extents.ts";
import type { BlockNode, Disk } from "../node.ts";
import { nameOf } from "../node_names.ts";
import { isEqual, isZero } from "../runtime.ts";
import { Job, type JobNode } from "./job.ts";
import { Pace } from "../abort.ts";

/**
 * How to compare.
 *
 * @category Jobs
 */
export interface CompareOptions {
  /**
   * Whether size and allocation must agree as well; otherwise a longer disk
   * equals a shorter one if the rest is zero. Default: false.
   */
  strict?: boolean;
  /** The names of the two in messages. Default: their own. */
  names?: readonly [string, string];
  /** Ends the job with ECANCELED. */
  signal?: AbortSignal;
  /** Receives how many bytes are done, and the total. */
  progress?(done: number, total: number): void;
}

/**
 * The result of a comparison.
 *
 * @category Jobs
 */
export type CompareResult =
  | { outcome: "identical" }
  /** The sector at `offset` is the first to differ. */
  | { outcome: "content"; offset: number }
  /** The sizes differ; in strict comparisons. */
  | { outcome: "size" }
  /** At `offset` only one is allocated; in strict comparisons. */
  | { outcome: "status"; offset: number };

/**
 * A disk that could not be compared.
 *
 * @category Jobs
 */
export class CompareError extends BlockError {
  /** What failed: getting the allocation status, or reading. */
  readonly stage: "status" | "read";
  /** Where it failed; everything before it is equal. */
  readonly offset: number;

  /** Thrown by {@linkcode compare}. */
  constructor(
    stage: "status" | "read",
    offset: number,
    message: string,
    cause: BlockError,
  ) {
    const detail = detailOf(cause);
    super(cause.code, message + detail, { cause, detail });
    this.stage = stage;
    this.offset = offset;
  }
}

/** Bytes of one request. */
const REQUEST_SIZE = 1024 * 1024;

/**
 * Whether two disks have the same content. Ranges that are known to be zero
 * in both are not read.
 *
 * @throws {CompareError} if one of them cannot be read.
 *
 * @example
 * ```ts
 * import { compare, createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const a = { driver: "memory", store: new MemoryStore() };
 * const b = { driver: "memory", store: new MemoryStore() };
 * await createImage("raw", a, { size: 1 << 20 });
 * await createImage("qcow2", b, { size: 1 << 20 });
 * await using first = await openImage({ driver: "raw", file: a });
 * await using second = await openImage({ driver: "qcow2", file: b });
 * const result = await compare(first, second);
 * assertEquals(result.outcome, "identical");
 * ```
 *
 * @category Jobs
 */
export async function compare(
  first: Disk,
  second: Disk,
  options: CompareOptions = {},
): Promise<CompareResult> {
  const a = nodeOf("The first disk", first);
  const b = nodeOf("The second disk", second);
  checkOptions("compare", options, {
    strict: "boolean",
    names: "object",
    signal: "object",
    progress: "function",
  });
  try {
    await using job = new Job(options.signal);
    return await new Comparison(job, a, b, options).run();
  } catch (error) {
    throw asBlockError(error);
  }
}

class Comparison {
  readonly #job: Job;
  readonly #first: JobNode;
  readonly #second: JobNode;
  readonly #options: CompareOptions;
  readonly #pace: Pace;
  readonly #buffers: [Uint8Array, Uint8Array] = [
    allocate(REQUEST_SIZE),
    allocate(REQUEST_SIZE),
  ];

  constructor(
    job: Job,
    first: BlockNode,
    second: BlockNode,
    options: CompareOptions,
  ) {
    this.#job = job;
    this.#first = job.use(first);
    this.#second = job.use(second);
    this.#options = options;
    this.#pace = new Pace(options.signal);
  }

  async run(): Promise<CompareResult> {
    this.#pace.check();
    const [a, b] = [this.#first, this.#second];
    const sizes = [a.node.size, b.node.size];
    const { strict } = this.#options;
    if (strict && sizes[0] !== sizes[1]) return { outcome: "size" };
    const common = Math.min(...sizes);
    const known: [ChainExtent?, ChainExtent?] = [];
    for (let offset = 0; offset < common;) {
      const inA = known[0] = await this.#extentAt(a, offset, known[0]);
      const inB = known[1] = await this.#extentAt(b, offset, known[1]);
      if (strict && !isAllocatedAlike(a.node, inA, b.node, inB)) {
        return { outcome: "status", offset };
      }
      const end = Math.min(
        unitEnd(inA, offset),
        unitEnd(inB, offset),
        common,
      );
      const different = await this.#compareRange(
        offset,
        end,
        inA.zero,
        inB.zero,
      );
      if (different !== undefined) {
        return { outcome: "content", offset: different };
      }
      offset = end;
    }
    return await this.#checkRest(sizes[0] > sizes[1] ? a : b, common);
  }

  /** The rest of the longer disk must be zero. */
  async #checkRest(longer: JobNode, from: number): Promise<CompareResult> {
    let extent: ChainExtent | undefined;
    for (let offset = from; offset < longer.node.size;) {
      extent = await this.#extentAt(longer, offset, extent);
      const end = unitEnd(extent, offset);
      const offsets = extent.zero
        ? undefined
        : await this.#findData(longer, offset, end);
      if (offsets !== undefined) return { outcome: "content", offset: offsets };
      await this.#advance(end);
      offset = end;
    }
    return { outcome: "identical" };
  }

  /** The extent at `offset`, from the last answer if that covers it. */
  async #extentAt(
    disk: JobNode,
    offset: number,
    known: ChainExtent | undefined,
  ): Promise<ChainExtent> {
    if (known && offset < endOf(known)) return known;
    try {
      return await this.#job.request(() => {
        const { node } = disk;
        const { signal } = this.#options;
        return chainStatus(node, offset, node.size - offset, { signal });
      });
    } catch (error) {
      this.#pace.check();
      throw new CompareError(
        "status",
        offset,
        `Sector allocation test failed for ${this.#nameOf(disk)}`,
        asBlockError(error),
      );
    }
  }

  /** The first sector that differs between `offset` and `end`, if any. */
  async #compareRange(
    offset: number,
    end: number,
    firstIsZero: boolean,
    secondIsZero: boolean,
  ): Promise<number | undefined> {
    let different: number | undefined;
    if (firstIsZero !== secondIsZero) {
      const disk = firstIsZero ? this.#second : this.#first;
      different = await this.#findData(disk, offset, end);
    } else if (!firstIsZero) {
      different = await this.#findDifference(offset, end);
    }
    if (different === undefined) await this.#advance(end);
    return different;
  }

  async #findDifference(
    offset: number,
    end: number,
  ): Promise<number | undefined> {
    for (let at = offset; at < end;) {
      const length = Math.min(REQUEST_SIZE, end - at);
      const a = await this.#read(this.#first, at, length, this.#buffers[0]);
      const b = await this.#read(this.#second, at, length, this.#buffers[1]);
      if (!isEqual(a, b)) {
        return at +
          firstSector(
            length,
            (from, to) => !isEqual(a.subarray(from, to), b.subarray(from, to)),
          );
      }
      at += length;
      await this.#advance(at);
    }
    return undefined;
  }

  /** The first sector of a disk that is not zero, if any. */
  async #findData(
    disk: JobNode,
    offset: number,
    end: number,
  ): Promise<number | undefined> {
    for (let at = offset; at < end;) {
      const length = Math.min(REQUEST_SIZE, end - at);
      const bytes = await this.#read(disk, at, length, this.#buffers[0]);
      if (!isZero(bytes)) {
        return at +
          firstSector(length, (from, to) => !isZero(bytes.subarray(from, to)));
      }
      at += length;
      await this.#advance(at);
    }
    return undefined;
  }

  async #read(
    disk: JobNode,
    offset: number,
    length: number,
    buffer: Uint8Array,
  ): Promise<Uint8Array> {
    const bytes = buffer.subarray(0, length);
    try {
      const { signal } = this.#options;
      await this.#job.request(() =>
        disk.node.readv(offset, [bytes], { signal })
      );
      return bytes;
    } catch (thrown) {
      this.#pace.check();
      const error = asBlockError(thrown);
      throw new CompareError(
        "read",
        offset,
        `Error while reading offset ${offset} of ${this.#nameOf(disk)}: ` +
          strerror(error.code),
        error,
      );
    }
  }

  #nameOf(disk: JobNode): string {
    const { names } = this.#options;
    return names ? names[disk === this.#first ? 0 : 1] : nameOf(disk.node);
  }

  async #advance(done: number): Promise<void> {
    const total = Math.max(this.#first.node.size, this.#second.node.size);
    this.#options.progress?.(done, total);
    if (this.#pace.isDue) await this.#pace.rest();
  }
}

function endOf(extent: ChainExtent): number {
  return extent.offset + extent.length;
}

/**
 * The end of the range to compare at once: compressed clusters are compared one
 * by one, so that errors name the right one.
 */
function unitEnd(extent: ChainExtent, offset: number): number {
  const { unit = Infinity } = extent;
  return Math.min(endOf(extent), offset - offset % unit + unit);
}

/** Whether the allocation of two extents is equal for a strict comparison. */
function isAllocatedAlike(
  a: BlockNode,
  inA: ChainExtent,
  b: BlockNode,
  inB: ChainExtent,
): boolean {
  return inA.allocated === inB.allocated && inA.zero === inB.zero &&
    inA.compressed === inB.compressed && isStored(inA) === isStored(inB) &&
    (inA.hostOffset === undefined) === (inB.hostOffset === undefined) &&
    (endOf(inA) === a.size) === (endOf(inB) === b.size);
}

/** The first sector for which `differs` is true; there is one. */
function firstSector(
  length: number,
  differs: (from: number, to: number) => boolean,
): number {
  let at = 0;
  while (!differs(at, Math.min(length, at + SECTOR_SIZE))) at += SECTOR_SIZE;
  return at;
}
