/**
 * A memory budget shared by the requests of many connections.
 *
 * @module
 */

/** A user of a budget. */
export interface BudgetUser {
  /** Bytes that it holds; maintained by the budget. */
  held: number;
  /** Called when others wait for memory and this one may be slow. */
  onPressure(): void;
}

interface Waiting {
  readonly user: BudgetUser;
  readonly bytes: number;
  readonly grant: (granted: boolean) => void;
}

/** How often holders of memory are notified while others wait, in ms. */
const PATIENCE = 1000;

/**
 * A number of bytes for all, of which each user may hold at most its share.
 * Waiting users are served in order, so that large requests get their turn.
 */
export class Budget {
  readonly #total: number;
  readonly #share: number;
  readonly #users = new Set<BudgetUser>();
  #waiting: Waiting[] = [];
  #used = 0;
  #timer?: ReturnType<typeof setInterval>;

  /** `total` bytes, of which each user may hold `share`. */
  constructor(total: number, share: number) {
    this.#total = total;
    this.#share = share;
  }

  /** Bytes in use. */
  get used(): number {
    return this.#used;
  }

  /**
   * Acquire `bytes`, at most a share: at once, or when they become available.
   *
   * @returns eventually false if the user was removed.
   */
  acquire(user: BudgetUser, bytes: number): void | Promise<boolean> {
    const isFree = this.#used + bytes <= this.#total && !this.#isContended;
    if (isFree && user.held + bytes <= this.#share) {
      return this.#take(user, bytes);
    }
    return new Promise((grant) => {
      this.#waiting.push({ user, bytes, grant });
      this.#timer ??= setInterval(() => this.#press(), PATIENCE);
    });
  }

  /** Release bytes. */
  release(user: BudgetUser, bytes: number): void {
    user.held -= bytes;
    this.#used -= bytes;
    if (user.held === 0) this.#users.delete(user);
    if (this.#waiting.length > 0) this.#serve();
  }

  /** Remove a waiting user: its connection is gone. */
  forget(user: BudgetUser): void {
    const isIts = (waiting: Waiting) => waiting.user === user;
    for (const waiting of this.#waiting.filter(isIts)) waiting.grant(false);
    this.#waiting = this.#waiting.filter((waiting) => !isIts(waiting));
    this.#serve();
  }

  /** Whether a user waits for the common memory, not just for its own share. */
  get #isContended(): boolean {
    return this.#waiting.some(({ user, bytes }) =>
      user.held + bytes <= this.#share
    );
  }

  #take(user: BudgetUser, bytes: number): void {
    user.held += bytes;
    this.#used += bytes;
    this.#users.add(user);
  }

  #serve(): void {
    const left: Waiting[] = [];
    let isFull = false;
    for (const waiting of this.#waiting) {
      const { user, bytes, grant } = waiting;
      const hasShare = user.held + bytes <= this.#share;
      if (hasShare && this.#used + bytes > this.#total) isFull = true;
      if (isFull || !hasShare) left.push(waiting);
      else {
        this.#take(user, bytes);
        grant(true);
      }
    }
    this.#waiting = left;
    if (left.length > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #press(): void {
    if (!this.#isContended) return;
    for (const user of this.#users) user.onPressure();
  }
}
