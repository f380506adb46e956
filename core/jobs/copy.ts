/**
 * Copying ranges of disks into another one: what converting and committing
 * have in common.
 *
 * @module
 */
import { allocate, roundDown } from "../bytes.ts";
import { asBlockError, type BlockError } from "../errors.ts";
import { Mutex } from "../lock.ts";
import { giveWay } from "../runtime.ts";
import type { BlockNode } from "../node.ts";
import type { ThrottleGroup } from "../throttle_group.ts";
import type { Concatenation } from "./concatenation.ts";
import { type Range, RangeFinder, type RangeRules } from "./copy_ranges.ts";
import { CopySource, type CopySourceOptions } from "./copy_source.ts";
import { CopyTarget, type CopyTargetOptions } from "./copy_target.ts";
import { offload } from "./offload.ts";
import { Pace } from "./pace.ts";

/** How to copy. */
export interface CopyOptions extends CopySourceOptions, CopyTargetOptions {
  /** From here on, nothing shines through where the target is unallocated. */
  readonly backingEnd?: number;
  /** Most requests in flight. Default: 8. */
  readonly parallel?: number;
  /** Whether writes may overtake each other. Default: false. */
  readonly outOfOrder?: boolean;
  /** Most bytes of data a second; 0 and absent: no limit. */
  readonly rateLimit?: number;
  /** Have the system copy from file to file, where it can. */
  readonly copyOffload?: boolean;
  /** Ends the job with ECANCELED. */
  readonly signal?: AbortSignal;
  /**
   * What progress is measured by: `data` is found out beforehand, the size of
   * the `disk` is known. Default: `data`.
   */
  readonly progressBy?: "data" | "disk";
  /** Told how many bytes are done with or under way, of how many. */
  progress?(done: number, total: number): void;
}

/** Bytes of one request, as many as QEMU's: progress is told in these steps. */
export const REQUEST_SIZE = 2 * 1024 * 1024;

/** Bytes of a disk from which on it repays the start of other threads. */
const MUCH = 64 * 1024 * 1024;

/** Workers to begin with: one reads while another one's data is written. */
const FEW = 2;

/** Milliseconds of a request from which on it is taken to wait. */
const SLOW = 20;

/** As many in a row do so because of what they reach: one may be bad luck. */
const OFTEN = 2;

/**
 * Most bytes of buffers where data is compressed, which takes so long that
 * reading it hardly counts, and takes memory of its own.
 */
const MAX_COMPRESSED = 6 * 1024 * 1024;

/** Fewest bytes of one request, however low the limit on the rate. */
const LEAST_REQUEST_SIZE = 64 * 1024;

/**
 * Copy `source` into `target`, which is large enough. Holes are not read.
 *
 * @throws {BlockError} the error of the first request that failed, with the
 * place before it. All requests have come to an end then.
 */
export async function copy(
  source: Concatenation,
  target: BlockNode,
  options: CopyOptions,
): Promise<void> {
  await new Copy(source, target, options).run();
}

/** A range that waits for its worker, and its place in the order of writes. */
interface Turn {
  readonly range: Range;
  /** Fulfilled when all writes before have their places. */
  readonly before?: Promise<void>;
  /** To be called when this one has. */
  placed(): void;
}

class Copy {
  readonly #source: CopySource;
  readonly #target: CopyTarget;
  readonly #options: CopyOptions;
  readonly #rules: RangeRules;
  readonly #ranges: RangeFinder;
  readonly #pace: Pace;
  #throttle?: ThrottleGroup;
  readonly #workers: Promise<void>[] = [];
  /** Held while the next range is being found. */
  readonly #finding = new Mutex();
  /** Fulfilled when all writes before have their places. */
  #writes: Promise<void> = Promise.resolve();
  /** Ranges that were read. */
  #reads = 0;
  /** Requests in a row, up to now, that took long. */
  #slow = 0;
  /** Bytes that are done with or under way, of all there are. */
  #copied = 0;
  #total = 0;
  #error: BlockError | undefined;
  /** Where the range begins that it is about. */
  #errorOffset = Infinity;
  /** Until it turns out that the system cannot. */
  #offloads: boolean;

  constructor(
    source: Concatenation,
    target: BlockNode,
    options: CopyOptions,
  ) {
    const { rateLimit = 0, compression, backingEnd = Infinity } = options;
    this.#source = new CopySource(source, options);
    // What is read next is read while the last is written.
    const background = source.size >= MUCH && options.parallel !== 1;
    const flags = { ...options.flags, background, signal: options.signal };
    this.#target = new CopyTarget(target, { ...options, flags });
    this.#options = options;
    // The system's copies do not reach the disk at once.
    this.#offloads = (options.copyOffload ?? false) && !options.flags?.fua;
    this.#pace = new Pace(options.signal);
    let requestSize = REQUEST_SIZE;
    if (rateLimit > 0) {
      // Many small steps: the data comes evenly, and an end is soon heeded.
      const share = roundDown(Math.ceil(rateLimit / 10), LEAST_REQUEST_SIZE);
      requestSize = Math.min(requestSize, Math.max(LEAST_REQUEST_SIZE, share));
    }
    const clusterSize = compression?.clusterSize ?? 0;
    this.#rules = {
      requestSize: Math.max(requestSize, clusterSize),
      clusterSize,
      fills: options.zeroes === "fill",
      targetIsZero: options.targetIsZero ?? false,
      backingEnd,
      // Where a disk is damaged, each extent is read when it was found.
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
    // With damaged disks, that shows once more where they are.
    else if (progress || salvage) await this.#count();
    this.#startWorkers(FEW);
    // Workers may be added while the first are awaited.
    for (const worker of this.#workers) await worker;
    if (this.#error) throw this.#error;
  }

  /** Where there is much to compress, workers start while it is first read. */
  async #holdWorkers(): Promise<Disposable | undefined> {
    const isMuch = this.#rules.clusterSize > 0 && this.#source.size >= MUCH;
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

  /** Find out how much data there is to be copied. */
  async #count(): Promise<void> {
    const ranges = new RangeFinder(this.#source, this.#rules);
    for (let range; (range = await ranges.next());) {
      if (this.#pace.isDue) await this.#pace.rest();
      if (isData(range)) this.#total += range.length;
    }
  }

  /** Have `count` workers, or as many as there may be. */
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
    const buffer = new LazyBuffer(this.#rules.requestSize);
    while (!this.#error) {
      const turn = await this.#nextTurn();
      if (!turn) return;
      const start = performance.now();
      try {
        if (isData(turn.range)) await this.#copy(turn, buffer);
        else await this.#zero(turn);
      } catch (error) {
        // Known before others go on. Of those under way the first one counts.
        const { offset } = turn.range;
        if (offset < this.#errorOffset) this.#error = asBlockError(error);
        this.#errorOffset = Math.min(this.#errorOffset, offset);
      } finally {
        turn.placed();
      }
      this.#slow = performance.now() - start > SLOW ? this.#slow + 1 : 0;
      if (this.#slow === OFTEN) this.#startWorkers(Infinity);
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

  async #copy({ range, before, placed }: Turn, buffer: LazyBuffer) {
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
    // They go on in parallel: only their places need to be in order.
    await this.#target.write(offset, bytes, placed);
  }

  /**
   * Of requests to local files a few in flight are enough: more would gain
   * nothing, and their buffers would drive each other out of the processor's
   * cache. The other workers start when the first wait: what is read from a
   * local file is there before a message to oneself comes. (The very first
   * requests may wait for parts of the program to be loaded.)
   */
  async #read(offset: number, bytes: Uint8Array): Promise<void> {
    let hasWaited = false;
    this.#reads++;
    const isSample = this.#reads > FEW &&
      (this.#reads <= 3 * FEW || this.#reads % 16 === 0);
    if (isSample && this.#workers.length === FEW) {
      giveWay().then(() => hasWaited = true);
    }
    await this.#source.read(offset, bytes);
    if (hasWaited) this.#startWorkers(Infinity);
  }

  async #offload(offset: number, length: number): Promise<boolean> {
    const part = this.#source.partAt(offset);
    this.#offloads &&= await offload(part, this.#target.node, offset, length);
    return this.#offloads;
  }

  async #zero({ range: { offset, length }, before }: Turn): Promise<void> {
    if (before) await before;
    if (!this.#error) await this.#target.zero(offset, length);
  }
}

/** Whether there are bytes to be written. */
function isData({ action }: Range): boolean {
  return action === "copy" || action === "fill";
}

/** A buffer that is made when it is first needed. */
class LazyBuffer {
  readonly #size: number;
  #bytes?: Uint8Array;

  constructor(size: number) {
    this.#size = size;
  }

  /** Its first `length` bytes. */
  take(length: number): Uint8Array {
    this.#bytes ??= allocate(this.#size);
    return this.#bytes.subarray(0, length);
  }
}
