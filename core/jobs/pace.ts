/**
 * Keeping long jobs from blocking the program.
 *
 * @module
 */
import { checkSignal } from "../abort.ts";
import { giveWay } from "../runtime.ts";

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
