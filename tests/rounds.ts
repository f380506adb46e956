/**
 * A file that responds in rounds: all waiting requests are answered together,
 * once everything else is idle. The number of rounds is the number of latencies
 * that a slow file would cost, independent of the machine's speed.
 *
 * @module
 */
import type { IoVector } from "../core/bytes.ts";
import { filterNode } from "../core/filter.ts";
import { type BlockNode, getDriver } from "../mod.ts";

/** Counts the rounds of a node's reads, writes and block statuses. */
export class Rounds {
  /** The node that responds in rounds. */
  readonly node: BlockNode;
  #waiting: (() => void)[] = [];
  #count = 0;

  /** @param file The file that does the work, without delay. */
  constructor(file: BlockNode) {
    this.node = filterNode(getDriver("throttle"), file, {
      readv: async (offset: number, iov: IoVector) => {
        await this.#round();
        await file.readv(offset, iov);
      },
      writev: async (offset: number, iov: IoVector) => {
        await this.#round();
        await file.writev!(offset, iov);
      },
      status: async (offset, length, flags) => {
        await this.#round();
        return await file.status(offset, length, flags);
      },
    });
  }

  /** The number of rounds that a piece of work takes. */
  async of(work: () => Promise<unknown>): Promise<number> {
    const before = this.#count;
    await work();
    return this.#count - before;
  }

  #round(): Promise<void> {
    if (this.#waiting.length === 0) setTimeout(() => this.#answer(), 1);
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  #answer(): void {
    this.#count++;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}
