/**
 * Copying ranges of disks into another one, for converting and committing.
 *
 * @module
 */
import { allocate, roundDown } from "../bytes.ts";
import { asBlockError, type BlockError } from "../errors.ts";
import { Mutex } from "../lock.ts";
import { messageToSelf } from "../runtime.ts";
import type { ThrottleGroup } from "../throttle_group.ts";
import type { Concatenation } from "./concatenation.ts";
import {
  CopySource,
  type CopySourceOptions,
  type Range,
  RangeFinder,
  type RangeRules,
} from "./copy_source.ts";
import { CopyTarget, type CopyTargetOptions } from "./copy_target.ts";
import type { Job, JobNode } from "./job.ts";
import { Pace } from "../abort.ts";

/** How to copy. */
export interface CopyOptions extends CopySourceOptions, CopyTargetOptions {
  /**
   * End of the target's backing file: from here on, unallocated ranges read as
   * zeroes.
   */
  readonly backingEnd?: number;
  /** Most requests in flight. Default: 8. */
  readonly parallel?: number;
  /** Whether writes may overtake each other. Default: false. */
  readonly outOfOrder?: boolean;
  /** Most bytes of data per second; 0 or absent for no limit. */
  readonly rateLimit?: number;
  /** Copy offload: let the system copy from file to file, where it can. */
  readonly copyOffload?: boolean;
  /** Ends the job with ECANCELED. */
  readonly signal?: AbortSignal;
  /**
   * Whether progress counts only `data`, which needs an extra pass to be
   * counted, or the whole `disk`. Default: `data`.
   */
  readonly progressBy?: "data" | "disk";
  /** Receives how many bytes are done or under way, and the total. */
  progress?(done: number, total: number): void;
}

/** Bytes of a request, and the steps of progress; the same as QEMU's. */
export const REQUEST_SIZE = 2 * 1024 * 1024;

/** Size of a disk from which on starting other threads pays off. */
const LARGE_DISK = 64 * 1024 * 1024;

/** Workers to begin with: one reads while the other writes. */
const FIRST_WORKERS = 2;

/** Workers of a long copy: one more is ready to read or write. */
const USUAL_WORKERS = 3;

/** Milliseconds until reads are first checked for having to wait. */
const FIRST_SAMPLE = 30;

/** Milliseconds between such checks. */
const SAMPLE_PAUSE = 10;

/** A request is slow if it takes this many milliseconds. */
const SLOW_REQUEST = 20;

/**
 * Slow requests in a row that mean slow storage: a single one may be chance.
 */
const SLOW_IN_A_ROW = 2;

/**
 * Most bytes of buffers when compressing: that takes so long that parallel
 * reads gain little, and needs its own memory.
 */
const MAX_COMPRESSED = 6 * 1024 * 1024;

/**
 * Largest request when compressing, in bytes. As each is written when all of it
 * is compressed, many small ones keep the threads busy.
 */
const COMPRESSED_REQUEST = 512 * 1024;

/** Smallest request, in bytes, however low the rate limit. */
const LEAST_REQUEST_SIZE = 64 * 1024;

/**
 * Copy `source` into `target`, which is large enough. Holes are not read.
 *
 * @throws {BlockError} the error of the first failed request, prefixed with its
 * position, once all requests have ended.
 */
export async function copy(
  job: Job,
  source: Concatenation,
  target: JobNode,
  options: CopyOptions,
): Promise<void> {
  await new Copy(job, source, target, options).run();
}

/** A range for a worker, and its place in the order of writes. */
interface Turn {
  readonly range: Range;
  /** Fulfilled when all earlier writes have their places. */
  readonly before?: Promise<void>;
  /** To be called when this write has its place. */
  placed(): void;
}

class Copy {
  readonly #job: Job;
  readonly #source: CopySource;
  readonly #target: CopyTarget;
  readonly #options: CopyOptions;
  readonly #rules: RangeRules;
  readonly #ranges: RangeFinder;
  readonly #pace: Pace;
  #throttle?: ThrottleGroup;
  readonly #workers: Promise<void>[] = [];
  /** Held while the next range is determined. */
  readonly #finding = new Mutex();
  /** Fulfilled when all earlier writes have their places. */
  #writes: Promise<void> = Promise.resolve();
  /** When to check next whether reads have to wait, as `performance.now()`. */
  #nextSample = performance.now() + FIRST_SAMPLE;
  /** Number of slow requests in a row. */
  #slow = 0;
  /** Bytes done or under way, and the total. */
  #copied = 0;
  #total = 0;
  #error: BlockError | undefined;
  /** The offset of the failed range. */
  #errorOffset = Infinity;
  /** Whether to try copy offload; cleared when the system cannot. */
  #offloads: boolean;

  constructor(
    job: Job,
    source: Concatenation,
    target: JobNode,
    options: CopyOptions,
  ) {
    this.#job = job;
    const { rateLimit = 0, compression, backingEnd = Infinity } = options;
    this.#source = new CopySource(source, options);
    // Read the next range while the last one is written.
    const background = source.size >= LARGE_DISK && options.parallel !== 1;
    const flags = { ...options.flags, background, signal: options.signal };
    this.#target = new CopyTarget(job, target, { ...options, flags });
    this.#options = options;
    // Offloaded copies cannot honour FUA.
    this.#offloads = (options.copyOffload ?? false) && !options.flags?.fua;
    this.#pace = new Pace(options.signal);
    let requestSize = REQUEST_SIZE;
    if (rateLimit > 0) {
      // Many small requests: the rate is steady, and aborting is quick.
      const share = roundDown(Math.ceil(rateLimit / 10), LEAST_REQUEST_SIZE);
      requestSize = Math.min(requestSize, Math.max(LEAST_REQUEST_SIZE, share));
    }
    const clusterSize = compression?.clusterSize ?? 0;
    if (clusterSize > 0) {
      requestSize = Math.min(requestSize, COMPRESSED_REQUEST);
    }
    this.#rules = {
      requestSize: Math.max(requestSize, clusterSize),
      clusterSize,
      fills: options.zeroes === "fill",
      targetIsZero: options.targetIsZero ?? false,
      backingEnd,
      // When salvaging, each extent is read by itself, right after its status.
      joins: !options.salvage,
    };
    this.#ranges = new RangeFinder(this.#source, this.#rules);
  }

  async run(): Promise<void> {
    this.#pace.check();
    using _workers = await this.#holdWorkers();
    await this.#prepareThrottle();
    const { progress, progressBy = "data", salvage } = this.#options;
    if (progressBy === "disk") this.#total = this.#source.size;
    // When salvaging, this pass warns as well, as QEMU's does.
    else if (progress || salvage) await this.#count();
    this.#startWorkers(this.#rules.clusterSize > 0 ? Infinity : FIRST_WORKERS);
    // Workers may be added while earlier ones are awaited.
    for (const worker of this.#workers) await worker;
    if (this.#error) throw this.#error;
  }

  /** If there is much to compress, start its threads during the first reads. */
  async #holdWorkers(): Promise<Disposable | undefined> {
    const isMuch = this.#rules.clusterSize > 0 &&
      this.#source.size >= LARGE_DISK;
    if (!isMuch) return undefined;
    const { holdWorkers } = await import("../zlib_workers.ts");
    return holdWorkers(true);
  }

  async #prepareThrottle(): Promise<void> {
    const { rateLimit = 0 } = this.#options;
    if (rateLimit <= 0) return;
    const { limitedWrites } = await import("../throttle_group.ts");
    this.#throttle = limitedWrites(rateLimit);
  }

  /** Count the data to be copied. */
  async #count(): Promise<void> {
    const ranges = new RangeFinder(this.#source, this.#rules);
    for (let range; (range = await ranges.next());) {
      if (this.#pace.isDue) await this.#pace.rest();
      if (isData(range)) this.#total += range.length;
    }
  }

  /** Start workers until there are `count`, or the maximum. */
  #startWorkers(count: number): void {
    const { clusterSize, requestSize } = this.#rules;
    const most = Math.min(
      this.#options.parallel ?? 8,
      clusterSize > 0 ? MAX_COMPRESSED / requestSize : Infinity,
    );
    while (this.#workers.length < Math.min(count, most)) {
      this.#workers.push(
        this.#work().catch((error) => {
          this.#error ??= asBlockError(error);
        }),
      );
    }
  }

  async #work(): Promise<void> {
    const buffer = new GrowingBuffer();
    while (!this.#error) {
      const turn = await this.#nextTurn();
      if (!turn) return;
      const start = performance.now();
      try {
        if (isData(turn.range)) await this.#copy(turn, buffer);
        else await this.#zero(turn);
      } catch (error) {
        // Recorded before other workers continue. Of several errors, the one
        // with the lowest offset counts.
        const { offset } = turn.range;
        if (offset < this.#errorOffset) this.#error = asBlockError(error);
        this.#errorOffset = Math.min(this.#errorOffset, offset);
      } finally {
        turn.placed();
      }
      this.#slow = performance.now() - start > SLOW_REQUEST
        ? this.#slow + 1
        : 0;
      if (this.#slow === SLOW_IN_A_ROW) this.#startWorkers(Infinity);
    }
  }

  /** The next range that needs a worker. */
  async #nextTurn(): Promise<Turn | undefined> {
    const held = await this.#finding.lock();
    try {
      while (!this.#error) {
        if (this.#pace.isDue) await this.#pace.rest();
        const range = await this.#ranges.next();
        if (!range) break;
        if (this.#options.progressBy === "disk" || isData(range)) {
          this.#copied += range.length;
          this.#options.progress?.(this.#copied, this.#total);
        }
        if (range.action === "skip") continue;
        if (this.#options.outOfOrder) return { range, placed: () => {} };
        const before = this.#writes;
        const { promise, resolve } = Promise.withResolvers<void>();
        this.#writes = promise;
        return { range, before, placed: resolve };
      }
      return undefined;
    } finally {
      held[Symbol.dispose]();
    }
  }

  async #copy({ range, before, placed }: Turn, buffer: GrowingBuffer) {
    const { offset, length, action } = range;
    await this.#throttle?.admit("write", length, this.#options.signal);
    if (action === "copy" && this.#offloads) {
      if (before) await before;
      if (this.#error || await this.#offload(offset, length)) return;
    }
    const bytes = buffer.take(length);
    if (action === "copy") await this.#read(offset, bytes);
    else bytes.fill(0);
    if (before) await before;
    if (this.#error) return;
    // Writes run in parallel: only their places must be in order.
    await this.#target.write(offset, bytes, placed);
  }

  /**
   * For local files a few requests in flight are enough: the buffers of more
   * would evict each other from the processor's cache. The other workers start
   * when a read has to wait, that is, takes longer than a message sent to
   * oneself. (The first requests may wait for parts of the program to load, and
   * short copies need no more workers.)
   */
  async #read(offset: number, bytes: Uint8Array): Promise<void> {
    let hasWaited = false;
    const now = performance.now();
    if (now > this.#nextSample && this.#workers.length <= USUAL_WORKERS) {
      this.#nextSample = now + SAMPLE_PAUSE;
      this.#startWorkers(USUAL_WORKERS);
      messageToSelf().then(() => hasWaited = true);
    }
    await this.#source.read(offset, bytes);
    if (hasWaited) this.#startWorkers(Infinity);
  }

  async #offload(offset: number, length: number): Promise<boolean> {
    const { offload } = await import("./offload.ts");
    const part = this.#source.partAt(offset);
    this.#offloads &&= await this.#job.request(() =>
      offload(part, this.#target.node, offset, length)
    );
    return this.#offloads;
  }

  async #zero({ range: { offset, length }, before }: Turn): Promise<void> {
    if (before) await before;
    if (!this.#error) await this.#target.zero(offset, length);
  }
}

/** Whether a range has data to write. */
function isData({ action }: Range): boolean {
  return action === "copy" || action === "fill";
}

/** A buffer that is as large as has been needed so far. */
class GrowingBuffer {
  #bytes = new Uint8Array(0);

  /** The first `length` bytes; what they held before does not matter. */
  take(length: number): Uint8Array {
    if (this.#bytes.length < length) this.#bytes = allocate(length);
    return this.#bytes.subarray(0, length);
  }
}
