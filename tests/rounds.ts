/**
 * A file that answers in rounds: all requests that wait are answered together,
 * when nothing else is going on. How many rounds something takes is what it
 * would take of a slow file's latencies, whatever the machine's speed.
 *
 * @module
 */
import type { IoVector } from "../core/bytes.ts";
import { filterNode } from "../core/filter.ts";
import { type BlockNode, getDriver } from "../mod.ts";

/** Counts the rounds of a node's reads. */
export class Rounds {
  /** The node that answers in rounds. */
  readonly node: BlockNode;
  #waiting: (() => void)[] = [];
  #count = 0;

  /** @param file What answers at once. */
  constructor(file: BlockNode) {
    this.node = filterNode(getDriver("throttle"), file, {
      readv: async (offset: number, iov: IoVector) => {
        await this.#round();
        await file.readv(offset, iov);
      },
    });
  }

  /** How many rounds a piece of work takes. */
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
