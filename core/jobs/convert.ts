/**
 * Copying disks into another one.
 *
 * @module
 */
import { allocate, roundDown, SECTOR_SIZE } from "../bytes.ts";
import type { BlockNode, WriteFlags } from "../driver.ts";
import { asBlockError, BlockError, strerror } from "../errors.ts";
import { backingOf } from "../extents.ts";
import { type Held, Mutex } from "../lock.ts";
import { writeZeroes } from "../requests.ts";
import { Concatenation } from "./concatenation.ts";
import { Pace } from "./pace.ts";
import { dataEnd, zeroEnd, type ZeroRunOptions } from "./zero_runs.ts";

/** How to convert. */
export interface ConvertOptions {
  /** Most requests in flight, 1 to 16. Default: 8. */
  parallel?: number;
  /**
   * Shortest run of zeroes that is not written as data, in bytes, a multiple
   * of 512. 0 writes everything, holes too. Default: 4096.
   */
  sparseSize?: number;
  /** Whether the target is known to read as zeroes. Default: false. */
  targetIsZero?: boolean;
  /** Whether nothing in the target hides its backing file yet. */
  targetIsNew?: boolean;
  /**
   * Copy only what differs from the source's backing file, for a target with
   * the same content in its own. One source only. Default: false.
   */
  onlyDifferences?: boolean;
  /** Store clusters compressed. Default: false. */
  compressed?: boolean;
  /** How hard to compress; 0 to 9 for zlib, 1 to 22 for zstd. */
  compressionLevel?: number;
  /** Whether writes may overtake each other. Default: false. */
  outOfOrder?: boolean;
  /** Wishes that go with each write. */
  flags?: WriteFlags;
  /** Ends the job with ECANCELED. */
  signal?: AbortSignal;
  /** Told how many bytes of how many are done with. */
  progress?(done: number, total: number): void;
}

/** Bytes of one request: few enough to stay in the processor's cache. */
const REQUEST_SIZE = 1024 * 1024;

/** Bytes zeroed at once, so that a large disk does not hold up the program. */
const ZERO_SIZE = 1024 ** 3;

/** What is to be done with a range. */
type Action = "copy" | "zero" | "skip";

interface Range {
  readonly offset: number;
  readonly length: number;
  readonly action: Action;
}

/** What was learned last about the source. */
interface Known {
  readonly start: number;
  readonly end: number;
  readonly action: Action;
}

/**
 * Copy `sources`, one after the other, into `target`, which must be large
 * enough. Holes are not read, and zeroes not written where the target reads
 * as zeroes already.
 *
 * @throws {BlockError} the error of the first request that failed, with the
 * place before it; ENOTSUP if `target` cannot store compressed clusters.
 *
 * @example
 * ```ts
 * import { convert, createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 *
 * const from = { driver: "memory", store: new MemoryStore() };
 * const to = { driver: "memory", store: new MemoryStore() };
 * await createImage("raw", from, { size: 1 << 20 });
 * await createImage("qcow2", to, { size: 1 << 20 });
 * await using source = await openImage({ driver: "raw", file: from });
 * await using target = await openImage({ driver: "qcow2", file: to });
 * await convert([source.node], target.node, { targetIsZero: true });
 * ```
 */
export async function convert(
  sources: readonly BlockNode[],
  target: BlockNode,
  options: ConvertOptions = {},
): Promise<void> {
  const source = await Concatenation.of(sources);
  if (source.size > target.size) {
    throw new BlockError("EINVAL", "output file is smaller than input file");
  }
  if (options.compressed && !target.writeCompressed) {
    throw new BlockError(
      "ENOTSUP",
      "Compression not supported for this file format",
    );
  }
  const { clusterSize = 0 } = await target.info?.() ?? {};
  if (options.compressed && clusterSize < SECTOR_SIZE) {
    throw new BlockError("EINVAL", "invalid cluster size");
  }
  await new Conversion(source, target, options, clusterSize).run();
}

class Conversion {
  readonly #source: Concatenation;
  readonly #target: BlockNode;
  readonly #options: ConvertOptions;
  readonly #pace: Pace;
  /** Largest amount of data in one request. */
  readonly #requestSize: number;
  /** Of the target, if clusters are to be compressed; else 0. */
  readonly #clusterSize: number;
  readonly #sparse: ZeroRunOptions | undefined;
  /** From here on, the target's backing file reads as zeroes anyway. */
  readonly #backingEnd: number;
  readonly #workers: Promise<void>[] = [];
  /** Held while the next range is being found. */
  readonly #finding = new Mutex();
  /** Everything before it was given to a worker or needs none. */
  #position = 0;
  /** What was last learnt about the source. */
  #known: Known = { start: 0, end: 0, action: "skip" };
  /** Fulfilled when all writes before have taken place. */
  #writes: Promise<void> = Promise.resolve();
  #error: BlockError | undefined;

  constructor(
    source: Concatenation,
    target: BlockNode,
    options: ConvertOptions,
    clusterSize: number,
  ) {
    this.#source = source;
    this.#target = target;
    this.#options = options;
    this.#pace = new Pace(options.signal);
    this.#requestSize = REQUEST_SIZE;
    this.#clusterSize = options.compressed ? clusterSize : 0;
    if (this.#clusterSize > REQUEST_SIZE) this.#requestSize = clusterSize;
    const { sparseSize = 4096 } = options;
    if (sparseSize > 0) {
      const { requestAlignment = 1 } = target.limits ?? {};
      this.#sparse = {
        minimum: sparseSize,
        alignment: Math.max(
          2 ** Math.floor(Math.log2(sparseSize)),
          requestAlignment,
        ),
      };
    }
    this.#backingEnd = options.onlyDifferences && options.targetIsNew
      ? backingOf(target)?.size ?? Infinity
      : Infinity;
  }

  async run(): Promise<void> {
    this.#startWorker();
    const starter = this.#startOthersWhenIdle();
    try {
      // Workers may be added while the first are awaited.
      for (const worker of this.#workers) await worker;
    } finally {
      clearInterval(starter);
    }
    if (this.#error) throw this.#error;
  }

  /**
   * Requests to local files are done when they return: more of them in flight
   * would gain nothing, and their buffers would drive each other out of the
   * processor's cache. So the others start when the first is seen to wait.
   */
  #startOthersWhenIdle(): ReturnType<typeof setInterval> {
    const { parallel = 8 } = this.#options;
    const starter = setInterval(() => {
      if (this.#pace.resting) return;
      clearInterval(starter);
      while (this.#workers.length < parallel) this.#startWorker();
    }, 0);
    return starter;
  }

  #startWorker(): void {
    this.#workers.push(
      this.#work().catch((error) => {
        this.#error ??= asBlockError(error);
      }),
    );
  }

  async #work(): Promise<void> {
    let buffer: Uint8Array | undefined;
    while (!this.#error) {
      const found = await this.#nextRange();
      if (!found) return;
      const { range, before, done } = found;
      try {
        const { offset, length, action } = range;
        if (action === "copy" || this.#options.sparseSize === 0) {
          buffer ??= allocate(this.#requestSize);
          const bytes = buffer.subarray(0, length);
          if (action === "copy") await this.#read(offset, bytes);
          else bytes.fill(0);
          if (before) await before;
          if (this.#error) return;
          const written = this.#write(offset, bytes);
          // Compressing is what takes the time, and it may go on in parallel:
          // only the beginning of these writes needs to be in order.
          if (this.#options.compressed) done();
          await written;
        } else {
          if (before) await before;
          await this.#zero(offset, length);
        }
      } finally {
        done();
      }
    }
  }

  /** The next range that needs a worker, and its place in the order of writes. */
  async #nextRange(): Promise<
    { range: Range; before?: Promise<void>; done(): void } | undefined
  > {
    using _held: Held = await this.#finding.lock();
    const { size } = this.#source;
    while (this.#position < size && !this.#error) {
      if (this.#pace.isDue) await this.#pace.rest();
      const range = await this.#findRange(this.#position);
      this.#position += range.length;
      this.#options.progress?.(this.#position, size);
      if (range.action === "skip") continue;
      if (this.#options.outOfOrder) return { range, done: () => {} };
      const before = this.#writes;
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#writes = promise;
      return { range, before, done: resolve };
    }
    return undefined;
  }

  /** The range from `offset` on, of one kind, cut to what one request takes. */
  async #findRange(offset: number): Promise<Range> {
    const { start, end: knownEnd } = this.#known;
    // Cut to whole clusters, a range may end before what was learned last.
    if (offset < start || offset >= knownEnd) {
      this.#known = await this.#learn(offset);
    }
    const { action } = this.#known;
    let { end } = this.#known;
    const writesZeroes = action === "zero" && !this.#sparse;
    if (action === "copy" || writesZeroes) {
      const limit = Math.min(
        offset + this.#requestSize,
        this.#source.endOfPart(offset),
      );
      // Data in many places of the source still makes one request.
      while (end < limit && this.#known.action === action) {
        this.#known = await this.#learn(end);
        if (this.#known.action === action) end = this.#known.end;
      }
      end = Math.min(end, limit);
    } else if (action === "zero") {
      end = Math.min(end, offset + ZERO_SIZE);
    }
    if (this.#options.compressed) {
      return this.#wholeClusters(offset, end, action);
    }
    return { offset, length: end - offset, action };
  }

  /** Compressed clusters are written as a whole, whatever is in their parts. */
  #wholeClusters(offset: number, end: number, action: Action): Range {
    const cluster = this.#clusterSize;
    const length = end - offset;
    if (length >= cluster) {
      return { offset, length: roundDown(length, cluster), action };
    }
    const rest = Math.min(cluster, this.#source.size - offset);
    return { offset, length: rest, action: "copy" };
  }

  /** What the source holds from `offset` on, and what that asks for. */
  async #learn(offset: number): Promise<Known> {
    const { onlyDifferences = false, targetIsZero } = this.#options;
    let extent;
    try {
      extent = await this.#source.status(offset, onlyDifferences);
    } catch (error) {
      throw located("reading block status at offset", offset, error);
    }
    let end = offset + extent.length;
    if (offset < this.#backingEnd) end = Math.min(end, this.#backingEnd);
    switch (extent.kind) {
      case "unallocated":
        return { start: offset, end, action: "skip" };
      case "zero": {
        const readsAsZero = offset >= this.#backingEnd ||
          (targetIsZero && this.#sparse !== undefined);
        const action = readsAsZero ? "skip" : "zero";
        return { start: offset, end, action };
      }
      default:
        return { start: offset, end, action: "copy" };
    }
  }

  async #read(offset: number, bytes: Uint8Array): Promise<void> {
    try {
      await this.#source.read(offset, bytes);
    } catch (error) {
      throw located("reading at byte", offset, error);
    }
  }

  /** Write what is not zero, and zero the rest. */
  async #write(offset: number, bytes: Uint8Array): Promise<void> {
    const sparse = this.#sparse;
    try {
      if (this.#options.compressed) {
        return await this.#writeCompressed(offset, bytes);
      }
      if (!sparse) return await this.#writeData(offset, bytes);
      for (let at = 0; at < bytes.length;) {
        const zeroes = zeroEnd(
          bytes,
          at,
          bytes.length,
          offset,
          sparse.alignment,
        );
        if (zeroes > at) await this.#zero(offset + at, zeroes - at);
        const end = dataEnd(bytes, zeroes, bytes.length, offset, sparse);
        if (end > zeroes) {
          await this.#writeData(offset + zeroes, bytes.subarray(zeroes, end));
        }
        at = end;
      }
    } catch (error) {
      throw located("writing at byte", offset, error);
    }
  }

  /** Compress clusters that are not zero, and zero the others. */
  async #writeCompressed(offset: number, bytes: Uint8Array): Promise<void> {
    const { length } = bytes;
    const options = { level: this.#options.compressionLevel };
    const writes: Promise<void>[] = [];
    for (let at = 0; at < length;) {
      const zeroes = this.#zeroClusters(bytes, at);
      if (zeroes > at) writes.push(this.#zero(offset + at, zeroes - at));
      let end = zeroes;
      while (end < length && this.#zeroClusters(bytes, end) === end) {
        end = Math.min(length, end + this.#clusterSize);
      }
      if (end > zeroes) {
        const data = [bytes.subarray(zeroes, end)];
        const place = offset + zeroes;
        writes.push(this.#target.writeCompressed!(place, data, options));
      }
      at = end;
    }
    await Promise.all(writes);
  }

  /** Where the whole clusters of zeroes that begin at `from` end. */
  #zeroClusters(bytes: Uint8Array, from: number): number {
    const cluster = this.#clusterSize;
    if (!this.#sparse) return from;
    return zeroEnd(bytes, from, bytes.length, from, cluster);
  }

  #writeData(offset: number, bytes: Uint8Array): Promise<void> {
    return this.#target.writev!(offset, [bytes], this.#options.flags);
  }

  async #zero(offset: number, length: number): Promise<void> {
    if (this.#options.targetIsZero) return;
    try {
      const flags = { ...this.#options.flags, unmap: true };
      await writeZeroes(this.#target, offset, length, flags);
    } catch (error) {
      throw located("writing at byte", offset, error);
    }
  }
}

/** An error with the place at which it happened. */
function located(what: string, offset: number, thrown: unknown): BlockError {
  const error = asBlockError(thrown);
  if (error.message.startsWith("error while ")) return error;
  return new BlockError(
    error.code,
    `error while ${what} ${offset}: ${strerror(error.code)}`,
    { cause: error },
  );
}
