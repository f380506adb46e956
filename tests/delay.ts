/**
 * A node whose requests take random times and finish in random order, so that
 * the code above it interleaves in many ways, repeatably for each seed.
 *
 * @module
 */
import type { IoVector } from "../core/bytes.ts";
import type { BlockNode, TruncateOptions, ZeroFlags } from "../core/node.ts";
import type { Random } from "./model.ts";

/** Decides which of the waiting requests continues next. */
export class Scheduler {
  readonly #random: Random;
  readonly #waiting: (() => void)[] = [];
  #running = false;

  constructor(random: Random) {
    this.#random = random;
  }

  /** Wait for this request's turn. */
  pause(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
      if (!this.#running) this.#run();
    });
  }

  async #run(): Promise<void> {
    this.#running = true;
    while (this.#waiting.length > 0) {
      // Sometimes let the others get as far as they can, sometimes hardly at
      // all.
      for (let ticks = this.#random.below(40); ticks > 0; ticks--) await null;
      const next = this.#random.below(this.#waiting.length);
      this.#waiting.splice(next, 1)[0]();
    }
    this.#running = false;
  }
}

/** A protocol node with delayed requests. */
export class DelayNode implements BlockNode {
  readonly driver;
  readonly filename;
  readonly children = {};
  /** How many requests have begun. */
  begun = 0;
  readonly #node: BlockNode;
  readonly #scheduler: Scheduler;
  readonly #random: Random;

  constructor(node: BlockNode, scheduler: Scheduler, random: Random) {
    this.driver = node.driver;
    this.filename = node.filename;
    this.#node = node;
    this.#scheduler = scheduler;
    this.#random = random;
  }

  get size(): number {
    return this.#node.size;
  }

  get readOnly(): boolean {
    return this.#node.readOnly;
  }

  /** The request takes effect before, after, or during the wait. */
  async #delay<T>(request: () => Promise<T>): Promise<T> {
    this.begun++;
    const when = this.#random.below(4);
    if (when > 0) await this.#scheduler.pause();
    const result = await request();
    if (when < 2) await this.#scheduler.pause();
    return result;
  }

  readv(offset: number, iov: IoVector): Promise<void> {
    return this.#delay(() => this.#node.readv(offset, iov));
  }

  async writev(offset: number, iov: IoVector): Promise<void> {
    // A vector may be written in pieces.
    for (const part of iov) {
      const at = offset;
      await this.#delay(() => this.#node.writev!(at, [part]));
      offset += part.length;
    }
  }

  writeZeroes(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> {
    return this.#delay(() => this.#node.writeZeroes!(offset, length, flags));
  }

  discard(offset: number, length: number): Promise<void> {
    return this.#delay(() => this.#node.discard!(offset, length));
  }

  truncate(size: number, options?: TruncateOptions): Promise<void> {
    return this.#delay(() => this.#node.truncate!(size, options));
  }

  flush(): Promise<void> {
    return this.#delay(() => this.#node.flush!());
  }

  status(offset: number, length: number) {
    this.begun++;
    return this.#node.status(offset, length);
  }

  close(): Promise<void> {
    return this.#node.close();
  }
}
