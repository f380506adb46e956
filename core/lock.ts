/**
 * Locks for single-threaded code, which is interrupted only at `await`.
 *
 * @module
 */
import "./disposal.ts";
import { aborted, unlessAborted } from "./abort.ts";

/**
 * A lock that is released at the end of a `using` block. `using` costs a
 * noticeable part of a small request, so hot paths use `try` and `finally` (see
 * bench/RESULTS.md).
 */
export type Held = Disposable;

/**
 * One holder at a time; the others wait in order of arrival. An uncontended
 * lock is returned without a promise, which is cheaper to await.
 */
export class Mutex {
  #isHeld = false;
  readonly #waiting: ((held: Held) => void)[] = [];
  /** Shared by all holders: there is never more than one at a time. */
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
    // Hand the lock directly to the next in line: nobody can slip in between.
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
  /** Shared by all sharers: each releases it once. */
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

  /** Wait until nobody holds the lock any more, and hold it exclusively. */
  async drain(): Promise<Held> {
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
    if (this.#sharers === 0 && this.#waiting.length > 0) this.#wake();
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
}

/** A place in the queue for a range; dispose of it to leave the queue. */
export interface RangePlace extends Disposable {
  /** Fulfilled when it is worth trying again. */
  readonly turn?: Promise<void>;
}

/**
 * Locks on ranges of offsets, shared by many holders or exclusive to one.
 * `acquire` waits for a range and takes it. Its two halves, `conflict` and
 * `hold`, are synchronous, so that they can be combined with a lookup of what
 * the lock protects without an `await` in between.
 *
 * First come, first served: no request overtakes an earlier one that it
 * conflicts with, so readers cannot starve a writer. A lock may be told to let
 * a waiting request be overtaken a few times. To avoid deadlocks, never wait
 * for a range while holding another.
 */
export class RangeLock {
  /** How often a waiting request may be overtaken before it blocks others. */
  readonly #patience: number;
  readonly #held: Range[] = [];
  /** How many of them are held exclusively. */
  #exclusive = 0;
  /** Waiting requests, in order of arrival. */
  readonly #line: Range[] = [];

  constructor(patience = 0) {
    this.#patience = patience;
  }

  /**
   * Whether a range conflicts: `undefined` if it may be held now (before the
   * next `await`), or else a place in the queue. A given `place` is kept, and
   * left once nothing conflicts any more.
   */
  conflict(
    start: number,
    end: number,
    exclusive: boolean,
    place?: RangePlace,
  ): RangePlace | undefined {
    const own = place as Range | undefined;
    const blocker = this.#blocker(start, end, exclusive, own);
    if (!blocker) {
      if (this.#patience > 0) this.#overtake(start, end, exclusive, own);
      own?.[Symbol.dispose]();
      return undefined;
    }
    const waiting = own ?? new Range(this, this.#line, start, end, exclusive);
    if (!own) this.#line.push(waiting);
    else own.set(start, end, exclusive);
    waiting.turn = blocker.released;
    return waiting;
  }

  /** The first conflicting range that is held or was queued earlier. */
  #blocker(
    start: number,
    end: number,
    exclusive: boolean,
    own: Range | undefined,
  ): Range | undefined {
    // The many shared ranges conflict only with exclusive ones.
    if (exclusive || this.#exclusive > 0) {
      for (const held of this.#held) {
        if (held.conflicts(start, end, exclusive)) return held;
      }
    }
    for (const earlier of this.#line) {
      if (earlier === own) break;
      const isPatient = earlier.overtaken < this.#patience;
      if (!isPatient && earlier.conflicts(start, end, exclusive)) {
        return earlier;
      }
    }
    return undefined;
  }

  /** Count an overtaking against the earlier requests that conflict. */
  #overtake(
    start: number,
    end: number,
    exclusive: boolean,
    own: Range | undefined,
  ): void {
    for (const earlier of this.#line) {
      if (earlier === own) break;
      if (earlier.conflicts(start, end, exclusive)) earlier.overtaken++;
    }
  }

  /**
   * Take a range, now or when nothing conflicts with it any more. An aborted
   * request leaves the queue at once.
   */
  acquire(
    start: number,
    end: number,
    exclusive: boolean,
    signal?: AbortSignal,
  ): HeldRange | Promise<HeldRange> {
    const place = this.conflict(start, end, exclusive);
    if (!place) return this.hold(start, end, exclusive);
    return this.#waitFor(place, start, end, exclusive, signal);
  }

  async #waitFor(
    first: RangePlace,
    start: number,
    end: number,
    exclusive: boolean,
    signal: AbortSignal | undefined,
  ): Promise<HeldRange> {
    let place: RangePlace | undefined = first;
    try {
      while (place) {
        await unlessAborted(place.turn!, signal);
        place = this.conflict(start, end, exclusive, place);
      }
    } catch (error) {
      first[Symbol.dispose]();
      throw error;
    }
    return this.hold(start, end, exclusive);
  }

  /** Take a range that nothing conflicts with. */
  hold(start: number, end: number, exclusive: boolean): HeldRange {
    const range = new Range(this, this.#held, start, end, exclusive);
    this.#held.push(range);
    if (exclusive) this.#exclusive++;
    return range;
  }

  /** Release a range, or leave the queue. */
  release(range: Range): void {
    const { list } = range;
    if (list === this.#line) {
      // A place may have been left before.
      const index = list.indexOf(range);
      if (index >= 0) list.splice(index, 1);
      return;
    }
    const last = list.pop()!;
    if (last !== range) list[list.indexOf(range)] = last;
    if (range.exclusive) this.#exclusive--;
  }
}

/** A range, held or waited for. */
class Range implements HeldRange, RangePlace {
  start: number;
  end: number;
  exclusive: boolean;
  /** For a place in the queue: by how many later requests. */
  overtaken = 0;
  /** For a place in the queue: fulfilled when its obstacle is gone. */
  turn?: Promise<void>;
  readonly list: Range[];
  readonly #lock: RangeLock;
  #released?: Promise<void>;
  #release?: () => void;

  constructor(
    lock: RangeLock,
    list: Range[],
    start: number,
    end: number,
    exclusive: boolean,
  ) {
    this.#lock = lock;
    this.list = list;
    this.start = start;
    this.end = end;
    this.exclusive = exclusive;
  }

  set(start: number, end: number, exclusive: boolean): void {
    this.start = start;
    this.end = end;
    this.exclusive = exclusive;
  }

  conflicts(start: number, end: number, exclusive: boolean): boolean {
    return this.start < end && start < this.end &&
      (exclusive || this.exclusive);
  }

  /**
   * Made only when somebody waits: most ranges are released without waiters.
   */
  get released(): Promise<void> {
    return this.#released ??= new Promise((resolve) => this.#release = resolve);
  }

  [Symbol.dispose](): void {
    this.#lock.release(this);
    this.#release?.();
  }
}

/** A request that is held back. */
interface Waiting {
  go(): void;
  readonly signal?: AbortSignal;
}

/**
 * Admits requests at once or, while it is shut, in order of arrival once it
 * opens again. When open, it costs a request a check and a count.
 */
export class RequestGate {
  #underWay = 0;
  /** Number of {@linkcode shut} calls not yet taken back. */
  #shuts = 0;
  /** Whether it is shut, or still admitting the requests that waited. */
  #isShut = false;
  readonly #line: Waiting[] = [];
  readonly #whenIdle: (() => void)[] = [];

  /**
   * Begin a request, to be ended by {@linkcode leave}. Returns no promise if it
   * need not wait.
   *
   * @throws {BlockError} ECANCELED if `signal` is aborted before it begins.
   */
  enter(signal?: AbortSignal): Promise<void> | undefined {
    if (signal?.aborted) throw aborted(signal);
    if (this.#isShut) return this.#wait(signal);
    this.#underWay++;
  }

  /** End a request. */
  leave(): void {
    // Requests made one at a time all get past the first condition.
    if (--this.#underWay > 0 || this.#whenIdle.length === 0) return;
    for (const tell of this.#whenIdle.splice(0)) tell();
  }

  #wait(signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const waiting: Waiting = {
        signal,
        go: () => {
          signal?.removeEventListener("abort", leave);
          this.#underWay++;
          resolve();
        },
      };
      const leave = () => {
        this.#line.splice(this.#line.indexOf(waiting), 1);
        reject(aborted(signal!));
      };
      signal?.addEventListener("abort", leave, { once: true });
      this.#line.push(waiting);
    });
  }

  /** Admit no request until {@linkcode open} has been called as often. */
  shut(): void {
    this.#shuts++;
    this.#isShut = true;
  }

  /** Take back one {@linkcode shut}. */
  open(): void {
    if (--this.#shuts === 0) this.#admitWaiting();
  }

  /** New requests queue behind those that have waited. */
  async #admitWaiting(): Promise<void> {
    while (this.#shuts === 0 && this.#line.length > 0) {
      this.#line.shift()!.go();
      await undefined;
    }
    if (this.#shuts === 0) this.#isShut = false;
  }

  /** Wait until no request is under way; those held back do not count. */
  async idle(): Promise<void> {
    while (this.#underWay > 0) {
      await new Promise<void>((tell) => this.#whenIdle.push(tell));
    }
  }

  /** Wait for all requests, including those held back. */
  async finish(): Promise<void> {
    if (this.#line.length > 0) {
      await this.#wait();
      this.leave();
    }
    await this.idle();
  }
}
