/**
 * The concurrent child requests of one request.
 *
 * @module
 */

import { aborted } from "./abort.ts";

/** Most child requests in flight. */
const MAX_IN_FLIGHT = 16;

/**
 * The child requests of one request. They use its caller's buffers, so it
 * settles, even on failure, only when all of them have ended.
 */
export class InFlight {
  readonly #pending: Promise<void>[] = [];
  readonly #signal?: AbortSignal;
  #failure?: { readonly error: unknown };

  /** `signal` cancels the request. */
  constructor(signal?: AbortSignal) {
    this.#signal = signal;
  }

  /** Whether a child request has failed, or the request was cancelled. */
  get hasFailed(): boolean {
    if (this.#signal?.aborted) {
      this.#failure ??= { error: aborted(this.#signal) };
    }
    return this.#failure !== undefined;
  }

  /** Add a child request, and wait until there is room for another. */
  add(move: Promise<void>): Promise<void> | undefined {
    const pending = move.catch((error) => {
      this.#failure ??= { error };
    }).finally(() => {
      this.#pending.splice(this.#pending.indexOf(pending), 1);
    });
    if (this.#pending.push(pending) < MAX_IN_FLIGHT) return undefined;
    return Promise.race(this.#pending);
  }

  /**
   * Wait for a promise that the request depends on; if it fails, also for
   * everything in flight.
   */
  whileUnderWay<T>(needed: Promise<T>): Promise<T> {
    return this.#pending.length === 0 ? needed : this.#beside(needed);
  }

  async #beside<T>(needed: Promise<T>): Promise<T> {
    try {
      return await needed;
    } catch (error) {
      await Promise.all(this.#pending);
      throw error;
    }
  }

  /** Wait for all; throws the first failure. */
  async end(): Promise<void> {
    await Promise.all(this.#pending);
    if (this.#failure) throw this.#failure.error;
  }
}
