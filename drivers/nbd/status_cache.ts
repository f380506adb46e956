/**
 * A cache of block status runs that were received but not requested yet.
 *
 * @module
 */
import type { NbdClient, StatusRun } from "./client.ts";
import type { Link } from "./link.ts";

/** How long runs stay valid, in ms: others may write to the export. */
const LIFE = 1000;

/**
 * A walk over a disk requests one range after the other: from the second one
 * on, all that follows is requested from the server, and the walk continues
 * with its reply. The cache is dropped by changes through the same node, and
 * when the connection is lost.
 */
export class StatusCache {
  readonly #link: Link;
  readonly #unit: number;
  readonly #mixed: number;
  /** Received runs; those from `#index` on have not been requested yet. */
  #runs: StatusRun[] = [];
  #index = 0;
  /** End of the last result, where the next run begins. */
  #next = -1;
  /** When and on which connection they were received. */
  #since = 0;
  #source?: NbdClient;
  /** Number of changes begun, and of those in flight. */
  #changes = 0;
  #underWay = 0;

  /**
   * Requests block status on a link, of whole blocks of `unit` bytes.
   *
   * @param mixed The flags of a block of which the server tells parts.
   */
  constructor(link: Link, unit: number, mixed: number) {
    this.#link = link;
    this.#unit = unit;
    this.#mixed = mixed;
  }

  /** Drop the cache, and keep it empty until a change has completed. */
  async during(change: Promise<void>): Promise<void> {
    this.#changes++;
    this.#underWay++;
    this.#runs = [];
    this.#next = -1;
    try {
      await change;
    } finally {
      this.#underWay--;
    }
  }

  /** The first run of a range. */
  async first(offset: number, length: number): Promise<StatusRun> {
    const isWalk = offset === this.#next;
    if (!isWalk || !this.#isFresh) {
      const changes = this.#changes;
      const isQuiet = this.#underWay === 0;
      const since = performance.now();
      let source: NbdClient | undefined;
      const runs = this.#inBlocks(
        await this.#link.ask((client) => {
          source = client;
          return client.status(offset, length, !isWalk);
        }),
      );
      if (!isQuiet || this.#changes !== changes) return runs[0];
      this.#runs = runs;
      this.#index = 0;
      this.#next = offset;
      this.#since = since;
      this.#source = source;
    }
    return this.#take(length);
  }

  /**
   * Runs of whole blocks: some servers tell what is smaller than the least that
   * they can be asked for, after which the rest has to be asked for anew.
   */
  #inBlocks(runs: StatusRun[]): StatusRun[] {
    const unit = this.#unit;
    const odd = runs.findIndex(({ length }) => length % unit !== 0);
    if (odd < 0) return runs;
    const { length, flags } = runs[odd];
    const last = length > unit
      ? { length: length - length % unit, flags }
      : { length: unit, flags: this.#mixed };
    return [...runs.slice(0, odd), last];
  }

  get #isFresh(): boolean {
    return this.#index < this.#runs.length && !this.#source!.lost &&
      performance.now() - this.#since < LIFE;
  }

  #take(most: number): StatusRun {
    const { length, flags } = this.#runs[this.#index];
    const taken = Math.min(length, most);
    if (taken === length) this.#index++;
    else this.#runs[this.#index] = { length: length - taken, flags };
    this.#next += taken;
    return { length: taken, flags };
  }
}
