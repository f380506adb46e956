/**
 * Locks for code that runs in one thread and is interrupted only at `await`.
 *
 * @module
 */

/** A lock that is let go at the end of a `using` block. */
export type Held = Disposable;

/** One holder at a time; the others wait in the order of their arrival. */
export class Mutex {
  #held = false;
  readonly #waiting: (() => void)[] = [];

  /** Wait for the lock and take it. */
  async lock(): Promise<Held> {
    if (this.#held) {
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    this.#held = true;
    return { [Symbol.dispose]: () => this.#release() };
  }

  #release(): void {
    const next = this.#waiting.shift();
    // The lock passes directly to the next in line, so nobody slips between.
    if (next) next();
    else this.#held = false;
  }
}

/**
 * Many sharers or one exclusive holder. An exclusive waiter stops new sharers,
 * so it cannot starve.
 */
export class SharedLock {
  #sharers = 0;
  #exclusive = false;
  readonly #waiting: { exclusive: boolean; go: () => void }[] = [];

  /** Wait until nobody holds the lock exclusively, and share it. */
  async share(): Promise<Held> {
    if (this.#exclusive || this.#waiting.length > 0) {
      await new Promise<void>((go) =>
        this.#waiting.push({ exclusive: false, go })
      );
    } else {
      this.#sharers++;
    }
    return { [Symbol.dispose]: () => this.#unshare() };
  }

  /** Wait until nobody holds the lock, and hold it alone. */
  async exclude(): Promise<Held> {
    if (this.#exclusive || this.#sharers > 0) {
      await new Promise<void>((go) =>
        this.#waiting.push({ exclusive: true, go })
      );
    } else {
      this.#exclusive = true;
    }
    return {
      [Symbol.dispose]: () => {
        this.#exclusive = false;
        this.#wake();
      },
    };
  }

  #unshare(): void {
    this.#sharers--;
    if (this.#sharers === 0) this.#wake();
  }

  /** Hand the lock to the first in line and, if it shares, to all sharers. */
  #wake(): void {
    while (this.#waiting.length > 0) {
      const first = this.#waiting[0];
      if (first.exclusive) {
        if (this.#sharers > 0) return;
        this.#exclusive = true;
      } else {
        this.#sharers++;
      }
      this.#waiting.shift();
      first.go();
      if (first.exclusive) return;
    }
  }
}
