/**
 * Memory that the requests of many connections share.
 *
 * @module
 */

/** One that takes from a budget. */
export interface Spender {
  /** Bytes that it has now; the budget keeps count. */
  held: number;
  /** Called when it is in the way of others and may be slow. */
  onPressure(): void;
}

interface Waiting {
  readonly spender: Spender;
  readonly bytes: number;
  readonly grant: (granted: boolean) => void;
}

/** How often those are looked at that have memory while others wait, in ms. */
const PATIENCE = 1000;

/**
 * A number of bytes for all, of which none may have more than its share. Who
 * has to wait is served in order, so that large requests get their turn.
 */
export class Budget {
  readonly #total: number;
  readonly #share: number;
  readonly #spenders = new Set<Spender>();
  #waiting: Waiting[] = [];
  #used = 0;
  #timer?: ReturnType<typeof setInterval>;

  /** `total` bytes, of which each may have `share`. */
  constructor(total: number, share: number) {
    this.#total = total;
    this.#share = share;
  }

  /** Bytes that are in use. */
  get used(): number {
    return this.#used;
  }

  /**
   * Take `bytes`, at most the share of one: at once, or when they are there.
   *
   * @returns false in the end if the spender was forgotten.
   */
  acquire(spender: Spender, bytes: number): void | Promise<boolean> {
    const isFree = this.#used + bytes <= this.#total && !this.#isBesieged;
    if (isFree && spender.held + bytes <= this.#share) {
      return this.#take(spender, bytes);
    }
    return new Promise((grant) => {
      this.#waiting.push({ spender, bytes, grant });
      this.#timer ??= setInterval(() => this.#press(), PATIENCE);
    });
  }

  /** Give bytes back. */
  release(spender: Spender, bytes: number): void {
    spender.held -= bytes;
    this.#used -= bytes;
    if (spender.held === 0) this.#spenders.delete(spender);
    if (this.#waiting.length > 0) this.#serve();
  }

  /** Forget that a spender waits: its connection is gone. */
  forget(spender: Spender): void {
    const isIts = (waiting: Waiting) => waiting.spender === spender;
    for (const waiting of this.#waiting.filter(isIts)) waiting.grant(false);
    this.#waiting = this.#waiting.filter((waiting) => !isIts(waiting));
    this.#serve();
  }

  /** Whether somebody waits for the common memory, not just for its own. */
  get #isBesieged(): boolean {
    return this.#waiting.some(({ spender, bytes }) =>
      spender.held + bytes <= this.#share
    );
  }

  #take(spender: Spender, bytes: number): void {
    spender.held += bytes;
    this.#used += bytes;
    this.#spenders.add(spender);
  }

  #serve(): void {
    const left: Waiting[] = [];
    let isFull = false;
    for (const waiting of this.#waiting) {
      const { spender, bytes, grant } = waiting;
      const hasShare = spender.held + bytes <= this.#share;
      if (hasShare && this.#used + bytes > this.#total) isFull = true;
      if (isFull || !hasShare) left.push(waiting);
      else {
        this.#take(spender, bytes);
        grant(true);
      }
    }
    this.#waiting = left;
    if (left.length > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #press(): void {
    if (!this.#isBesieged) return;
    for (const spender of this.#spenders) spender.onPressure();
  }
}
