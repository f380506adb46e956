/**
 * Cancelling requests, and letting others have a turn.
 *
 * @module
 */
import { BlockError } from "./errors.ts";
import { giveWay } from "./runtime.ts";

/** The longest delay of a timer, in milliseconds; longer ones end at once. */
export const LONGEST_DELAY = 2 ** 31 - 1;

/** The error of a cancelled request; the signal's reason is its cause. */
export function aborted(signal: AbortSignal): BlockError {
  return new BlockError("ECANCELED", undefined, { cause: signal.reason });
}

/**
 * Stop if the signal has been aborted.
 *
 * @throws {BlockError} ECANCELED
 */
export function checkSignal(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw aborted(signal);
}

/**
 * Wait for a promise, or until the signal is aborted. Only for waits that can
 * be abandoned, such as one for a lock; never for a transfer, which still uses
 * its buffers.
 *
 * @throws {BlockError} ECANCELED
 */
export function unlessAborted<T>(
  turn: Promise<T>,
  signal: AbortSignal | undefined,
): Promise<T> {
  if (!signal) return turn;
  return new Promise((resolve, reject) => {
    const leave = () => reject(aborted(signal));
    if (signal.aborted) {
      // Nobody waits for it any more: ignore its failure.
      turn.catch(() => {});
      return leave();
    }
    signal.addEventListener("abort", leave, { once: true });
    turn.then(resolve, reject).finally(() =>
      signal.removeEventListener("abort", leave)
    );
  });
}

/**
 * As {@linkcode unlessAborted}, for a lock: one granted after the abort is
 * released at once.
 */
export function lockUnlessAborted<Held extends Disposable>(
  lock: Held | Promise<Held>,
  signal: AbortSignal | undefined,
): Held | Promise<Held> {
  if (!signal || !(lock instanceof Promise)) return lock;
  return unlessAborted(lock, signal).catch((error) => {
    lock.then((held) => held[Symbol.dispose](), () => {});
    throw error;
  });
}

/**
 * Wait some milliseconds; less if that is more than {@linkcode LONGEST_DELAY}.
 *
 * @throws {BlockError} ECANCELED
 */
export async function delay(
  milliseconds: number,
  signal?: AbortSignal,
): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const waiting = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, Math.min(milliseconds, LONGEST_DELAY));
  });
  try {
    await unlessAborted(waiting, signal);
  } finally {
    clearTimeout(timer);
  }
}

/** Longest time without yielding, in milliseconds. */
const SLICE = 100;

/**
 * Yields now and then. Requests to local files are synchronous, so a job that
 * makes only those would let no signal and no timer through until its end.
 */
export class Pace {
  readonly #signal?: AbortSignal;
  #since = performance.now();

  /** `signal` cancels the job. */
  constructor(signal?: AbortSignal) {
    this.#signal = signal;
  }

  /** Whether it is time to yield, or to stop; cheap to check at each step. */
  get isDue(): boolean {
    return this.#signal?.aborted === true ||
      performance.now() - this.#since > SLICE;
  }

  /**
   * Yield to other tasks.
   *
   * @throws {BlockError} ECANCELED if the job has been cancelled.
   */
  async rest(): Promise<void> {
    await giveWay();
    this.#since = performance.now();
    this.check();
  }

  /** Throw ECANCELED if the job has been cancelled. */
  check(): void {
    checkSignal(this.#signal);
  }
}
