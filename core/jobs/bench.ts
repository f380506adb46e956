/**
 * Measuring how fast a node answers requests.
 *
 * @module
 */
import { allocate } from "../bytes.ts";
import {
  checkNode,
  checkOptions,
  checkWritable,
  type OptionKind,
} from "../checks.ts";
import { asBlockError, BlockError } from "../errors.ts";
import type { BlockNode } from "../node.ts";

/** What requests to send. */
export interface BenchOptions {
  /** Write rather than read. Default: false. */
  write?: boolean;
  /** Requests in all. Default: 75000. */
  count?: number;
  /** Requests in flight, at least 1. Default: 64. */
  depth?: number;
  /** Bytes of a request. Default: 4096. */
  length?: number;
  /** Where the first one begins, in bytes. Default: 0. */
  offset?: number;
  /** Bytes from the start of one to that of the next. Default: `length`. */
  step?: number;
  /** The byte that fills what is written. Default: 0. */
  pattern?: number;
  /** Flush whenever so many more requests have been sent. Default: never. */
  flushInterval?: number;
  /** Wait for the requests in flight before, and for the flush. Default: true. */
  drain?: boolean;
  /**
   * Wishes that go with each write. Default: none.
   */
  fua?: boolean;
}

/**
 * Send requests one after the other, some at a time, and go back to the start
 * where the disk ends.
 *
 * @returns the seconds that it took.
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
 * const seconds = await bench(image.node, { count: 1000, depth: 4 });
 * console.log(`${Math.round(1000 / seconds)} requests a second`);
 * ```
 */
export async function bench(
  node: BlockNode,
  options: BenchOptions = {},
): Promise<number> {
  checkOptions("measure", options, BENCH_OPTIONS);
  if (options.write) checkWritable("Cannot measure", node);
  else checkNode("What is measured", node);
  const run = new BenchRun(node, options);
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
};

class BenchRun {
  readonly #node: BlockNode;
  readonly #options: BenchOptions;
  /** Requests that are still to be sent. */
  #unsent: number;
  #inFlight = 0;
  #offset: number;
  /** The flush, or the wait for it, that holds up all requests. */
  #barrier?: PromiseWithResolvers<void>;
  /** Flushes that hold up nothing. */
  readonly #flushes: Promise<void>[] = [];

  constructor(node: BlockNode, options: BenchOptions) {
    this.#node = node;
    this.#options = options;
    this.#unsent = options.count ?? 75_000;
    this.#offset = options.offset ?? 0;
  }

  async run(): Promise<void> {
    const { length = 4096, depth = 64, pattern = 0 } = this.#options;
    const senders = Array.from(
      // Those that would have nothing to send need no buffer either.
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
    const node = this.#node;
    const { write = false, step = buffer.length, fua, depth = 64 } =
      this.#options;
    const { flushInterval = 0 } = this.#options;
    const iov = [buffer];
    const flags = { fua, background: depth > 1 };
    const { size } = node;
    try {
      while (this.#unsent > 0) {
        const offset = this.#offset;
        if (!(offset + buffer.length <= size)) throw new BlockError("EIO");
        this.#offset = (offset + step) % size;
        this.#unsent--;
        this.#inFlight++;
        if (write) await node.writev!(offset, iov, flags);
        else await node.readv(offset, iov);
        this.#inFlight--;
        if (flushInterval > 0 && this.#unsent % flushInterval === 0) {
          await this.#flush();
        }
      }
    } catch (error) {
      // Nobody is to wait for requests that will not be sent.
      this.#unsent = 0;
      this.#barrier?.resolve();
      throw error;
    }
  }

  /** A number of requests has been sent that is to be followed by a flush. */
  async #flush(): Promise<void> {
    if (this.#options.drain === false) {
      this.#flushes.push(this.#node.flush?.() ?? Promise.resolve());
      return;
    }
    const barrier = this.#barrier ??= Promise.withResolvers();
    if (this.#inFlight > 0) return await barrier.promise;
    await this.#node.flush?.();
    this.#barrier = undefined;
    barrier.resolve();
  }
}
