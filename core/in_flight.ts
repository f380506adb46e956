/**
 * Requests to children that are under way together for one request.
 *
 * @module
 */

import { aborted } from "./abort.ts";

/** How many there are at most. */
const MAX_IN_FLIGHT = 16;

/**
 * What one request has under way. The buffers are its caller's: it is answered,
 * also with an error, only when all have ended.
 */
export class InFlight {
  readonly #pending = new Set<Promise<void>>();
  readonly #signal?: AbortSignal;
  #failure?: { readonly error: unknown };

  /** `signal` gives the request up. */
  constructor(signal?: AbortSignal) {
    this.#signal = signal;
  }

  /** Whether there is no point in going on. */
  get hasFailed(): boolean {
    if (this.#signal?.aborted) {
      this.#failure ??= { error: aborted(this.#signal) };
    }
    return this.#failure !== undefined;
  }

  /** Add one, and wait until there is room for another. */
  add(move: Promise<void>): Promise<void> | undefined {
    const pending = move.catch((error) => {
      this.#failure ??= { error };
    }).finally(() => this.#pending.delete(pending));
    this.#pending.add(pending);
    if (this.#pending.size < MAX_IN_FLIGHT) return undefined;
    return Promise.race(this.#pending);
  }

  /** Wait for what all depends on; if it fails, for the others as well. */
  async whileUnderWay<T>(needed: Promise<T>): Promise<T> {
    try {
      return await needed;
    } catch (error) {
      await Promise.all(this.#pending);
      throw error;
    }
  }

  /** Wait for all; the first failure is the request's. */
  async end(): Promise<void> {
    await Promise.all(this.#pending);
    if (this.#failure) throw this.#failure.error;
  }
}
