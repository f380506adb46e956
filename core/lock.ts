/**
 * Locks for code that runs in one thread and is interrupted only at `await`.
 *
 * @module
 */

/**
 * A lock that is let go at the end of a `using` block. That takes 0.3 µs, a
 * tenth of a small request: reads and writes of qcow2, and what goes through
 * extents, have `try` and `finally` instead, which take 0.01.
 */
export type Held = Disposable;

/**
 * One holder at a time; the others wait in the order of their arrival. There
 * is no promise where nobody has to wait: `await` takes 0.4 µs then, not 0.9.
 */
export class Mutex {
  #isHeld = false;
  readonly #waiting: ((held: Held) => void)[] = [];
  /** The same for all holders, of whom there is never more than one. */
  readonly #held: Held = { [Symbol.dispose]: () => this.#release() };

  /** Wait for the lock and take it. */
  lock(): Held | Promise<Held> {
    if (this.#isHeld) {
      return new Promise((resolve) => this.#waiting.push(resolve));
    }
    this.#isHeld = true;
    return this.#held;
  }

  #release(): void {
    // The lock passes directly to the next in line, so nobody slips between.
    if (this.#waiting.length > 0) this.#waiting.shift()!(this.#held);
    else this.#isHeld = false;
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
  /** The same for all sharers: each lets go once. */
  readonly #shared: Held = { [Symbol.dispose]: () => this.#unshare() };

  /** Wait until nobody holds the lock exclusively, and share it. */
  share(): Held | Promise<Held> {
    if (this.#exclusive || this.#waiting.length > 0) {
      return new Promise((resolve) => {
        const go = () => resolve(this.#shared);
        this.#waiting.push({ exclusive: false, go });
      });
    }
    this.#sharers++;
    return this.#shared;
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

/** A held range of a {@linkcode RangeLock}. */
export interface HeldRange extends Held {
  readonly start: number;
  readonly end: number;
  readonly exclusive: boolean;
  /** Fulfilled when the range is let go. */
  readonly released: Promise<void>;
}

/**
 * Locks on ranges of offsets: any number may share one, or one hold it alone.
 * `acquire` waits and takes; its two halves are there as well, `conflict` and
 * `hold`, both immediate, so that they can be done in one turn with looking at
 * what the lock protects.
 */
export class RangeLock {
  readonly #held: HeldRange[] = [];
  /** How many of them are held alone. */
  #exclusive = 0;

  /** A held range that stands in the way, if any. */
  conflict(
    start: number,
    end: number,
    exclusive: boolean,
  ): HeldRange | undefined {
    // Readers, of whom there are many, are in nobody's way but a writer's.
    if (!exclusive && this.#exclusive === 0) return undefined;
    for (const held of this.#held) {
      if (
        held.start < end && start < held.end && (exclusive || held.exclusive)
      ) return held;
    }
    return undefined;
  }

  /** Wait until nothing conflicts with a range, and take it. */
  async acquire(
    start: number,
    end: number,
    exclusive: boolean,
  ): Promise<HeldRange> {
    let blocker;
    while ((blocker = this.conflict(start, end, exclusive))) {
      await blocker.released;
    }
    return this.hold(start, end, exclusive);
  }

  /** Take a range with which nothing conflicts. */
  hold(start: number, end: number, exclusive: boolean): HeldRange {
    const range = new Range(start, end, exclusive, this);
    this.#held.push(range);
    if (exclusive) this.#exclusive++;
    return range;
  }

  /** Let go of a range that is held. */
  release(range: HeldRange): void {
    const last = this.#held.pop()!;
    if (last !== range) this.#held[this.#held.indexOf(range)] = last;
    if (range.exclusive) this.#exclusive--;
  }
}

class Range implements HeldRange {
  readonly start: number;
  readonly end: number;
  readonly exclusive: boolean;
  readonly #lock: RangeLock;
  #released?: Promise<void>;
  #release?: () => void;

  constructor(
    start: number,
    end: number,
    exclusive: boolean,
    lock: RangeLock,
  ) {
    this.start = start;
    this.end = end;
    this.exclusive = exclusive;
    this.#lock = lock;
  }

  /** Made only when somebody waits: most ranges are let go unnoticed. */
  get released(): Promise<void> {
    return this.#released ??= new Promise((resolve) => this.#release = resolve);
  }

  [Symbol.dispose](): void {
    this.#lock.release(this);
    this.#release?.();
  }
}
