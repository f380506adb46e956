/**
 * Requests that are given up by whoever made them.
 *
 * @module
 */
import { BlockError } from "./errors.ts";

/** The error of a request that was given up; the signal's reason is its cause. */
export function aborted(signal: AbortSignal): BlockError {
  return new BlockError("ECANCELED", undefined, { cause: signal.reason });
}

/**
 * Refuse to go on with what was given up.
 *
 * @throws {BlockError} ECANCELED
 */
export function checkSignal(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw aborted(signal);
}

/**
 * Wait for something, but no longer than the signal lets us. Only for what
 * touches nothing of ours after we are gone: for a turn, never for a transfer.
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
    if (signal.aborted) return leave();
    signal.addEventListener("abort", leave, { once: true });
    turn.then(resolve, reject).finally(() =>
      signal.removeEventListener("abort", leave)
    );
  });
}

/**
 * As {@linkcode unlessAborted}, for a lock: what is granted to somebody who has
 * left is let go of at once.
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
