/**
 * What a server has told of ranges that have yet to be asked for.
 *
 * @module
 */
import type { NbdClient, StatusRun } from "./client.ts";
import type { Link } from "./link.ts";

/** For how long answers are used, in ms: others may write to the export. */
const LIFE = 1000;

/**
 * Whoever walks over a disk asks for one range after the other: from the second
 * one on, the server is asked for all that follow, and the walk goes on with
 * its answer. Nothing is remembered across a change that is made through the
 * same node, or the loss of a connection.
 */
export class StatusCache {
  readonly #link: Link;
  /** Runs that were told, of which those from `#index` on were not asked for. */
  #runs: StatusRun[] = [];
  #index = 0;
  /** Where the last answer ended, and these runs begin. */
  #next = -1;
  /** When, and by whom, they were told. */
  #since = 0;
  #source?: NbdClient;
  /** Changes that were begun, and how many of them are under way. */
  #changes = 0;
  #underWay = 0;

  /** Asks the server at the other end of a link. */
  constructor(link: Link) {
    this.#link = link;
  }

  /** Forget what was told, and remember nothing until a change is made. */
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
      const runs = await this.#link.ask((client) => {
        source = client;
        return client.status(offset, length, !isWalk);
      });
      if (!isQuiet || this.#changes !== changes) return runs[0];
      this.#runs = runs;
      this.#index = 0;
      this.#next = offset;
      this.#since = since;
      this.#source = source;
    }
    return this.#take(length);
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
