/**
 * Measuring how fast a node answers requests.
 *
 * @module
 */
import { allocate } from "../bytes.ts";
import {
  checkOptions,
  nodeOf,
  type OptionKind,
  writableNodeOf,
} from "../checks.ts";
import { asBlockError, BlockError } from "../errors.ts";
import type { Disk } from "../node.ts";
import { Job, type JobNode } from "./job.ts";

/**
 * What requests to send.
 *
 * @category Jobs
 */
export interface BenchOptions {
  /** Write rather than read. Default: false. */
  write?: boolean;
  /** Requests in all. Default: 75000. */
  count?: number;
  /** Requests in flight, at least 1. Default: 64. */
  depth?: number;
  /** Bytes of a request. Default: 4096. */
  length?: number;
  /** Offset of the first request, in bytes. Default: 0. */
  offset?: number;
  /**
   * Bytes from the start of one request to that of the next. Default: `length`.
   */
  step?: number;
  /** The byte to write. Default: 0. */
  pattern?: number;
  /** Flush after every so many requests. Default: never. */
  flushInterval?: number;
  /**
   * Wait for requests in flight before a flush, and for the flush. Default:
   * true.
   */
  drain?: boolean;
  /** Write with FUA. Default: false. */
  fua?: boolean;
  /** Cancels it: it fails with ECANCELED. */
  signal?: AbortSignal;
}

/**
 * Send requests, `depth` at a time, at increasing offsets, and wrap around at
 * the end of the disk.
 *
 * @returns the seconds it took.
 * @throws {BlockError} the first error; EIO for a request that crosses the end
 * of the disk.
 *
 * @example
 * ```ts
 * import { bench, MemoryStore, openImage } from "@bdrv/bdrv";
 *
 * const store = new MemoryStore();
 * store.write(0, new Uint8Array(1 << 20));
 * await using image = await openImage({ driver: "memory", store });
 * const seconds = await bench(image, { count: 1000, depth: 4 });
 * console.log(`${Math.round(1000 / seconds)} requests a second`);
 * ```
 *
 * @category Jobs
 */
export async function bench(
  disk: Disk,
  options: BenchOptions = {},
): Promise<number> {
  checkOptions("measure", options, BENCH_OPTIONS);
  const node = options.write
    ? writableNodeOf("Cannot measure", disk)
    : nodeOf("The measured disk", disk);
  await using job = new Job(options.signal);
  const run = new BenchRun(job, job.use(node), options);
  const start = performance.now();
  try {
    await run.run();
  } catch (error) {
    throw asBlockError(error);
  }
  return (performance.now() - start) / 1000;
}

const BENCH_OPTIONS: { readonly [name: string]: OptionKind } = {
  write: "boolean",
  count: { least: 0 },
  depth: { least: 0 },
  length: { least: 0, most: 2 ** 31 },
  offset: { least: 0 },
  step: { least: 0 },
  pattern: { least: 0, most: 255 },
  flushInterval: { least: 0 },
  drain: "boolean",
  fua: "boolean",
  signal: "object",
};

class BenchRun {
  readonly #job: Job;
  readonly #disk: JobNode;
  readonly #options: BenchOptions;
  /** Requests that are still to be sent. */
  #unsent: number;
  #inFlight = 0;
  #offset: number;
  /** The flush, or the wait for it, that blocks all requests. */
  #barrier?: PromiseWithResolvers<void>;
  /** Flushes that block nothing. */
  readonly #flushes: Promise<void>[] = [];

  constructor(job: Job, disk: JobNode, options: BenchOptions) {
    this.#job = job;
    this.#disk = disk;
    this.#options = options;
    this.#unsent = options.count ?? 75_000;
    this.#offset = options.offset ?? 0;
  }

  async run(): Promise<void> {
    const { length = 4096, depth = 64, pattern = 0 } = this.#options;
    const senders = Array.from(
      // No more senders, and buffers, than requests.
      { length: Math.min(depth, this.#unsent) },
      () => this.#send(allocate(length).fill(pattern)),
    );
    const outcomes = await Promise.allSettled(senders);
    const flushes = await Promise.allSettled(this.#flushes);
    for (const outcome of [...outcomes, ...flushes]) {
      if (outcome.status === "rejected") throw outcome.reason;
    }
  }

  /** Send one request after the other, until all have been sent. */
  async #send(buffer: Uint8Array): Promise<void> {
    const job = this.#job;
    const disk = this.#disk;
    const { write = false, step = buffer.length, fua, depth = 64 } =
      this.#options;
    const { flushInterval = 0, signal } = this.#options;
    const iov = [buffer];
    const flags = { fua, background: depth > 1, signal };
    const reading = signal && { signal };
    const { size } = disk.node;
    try {
      while (this.#unsent > 0) {
        const offset = this.#offset;
        if (!(offset + buffer.length <= size)) throw new BlockError("EIO");
        this.#offset = (offset + step) % size;
        this.#unsent--;
        this.#inFlight++;
        const turn = job.enter();
        if (turn) await turn;
        try {
          if (write) await disk.node.writev!(offset, iov, flags);
          else await disk.node.readv(offset, iov, reading);
        } finally {
          job.leave();
        }
        this.#inFlight--;
        if (flushInterval > 0 && this.#unsent % flushInterval === 0) {
          await this.#flush();
        }
      }
    } catch (error) {
      // After an error, the other senders stop too.
      this.#unsent = 0;
      this.#barrier?.resolve();
      throw error;
    }
  }

  /** Flush, after `flushInterval` requests. */
  async #flush(): Promise<void> {
    if (this.#options.drain === false) {
      this.#flushes.push(this.#flushDisk());
      return;
    }
    const barrier = this.#barrier ??= Promise.withResolvers();
    if (this.#inFlight > 0) return await barrier.promise;
    await this.#flushDisk();
    this.#barrier = undefined;
    barrier.resolve();
  }

  async #flushDisk(): Promise<void> {
    await this.#job.request(() => this.#disk.node.flush?.());
  }
}
