/**
 * What long jobs owe to the rest of the program.
 *
 * @module
 */
import { checkSignal } from "../abort.ts";
import { giveWay } from "../runtime.ts";

/** Longest time for which a job keeps others waiting, in milliseconds. */
const SLICE = 100;

/**
 * Lets others run now and then. Requests to local files are done before
 * control returns, so that a job of nothing else would let no signal and no
 * timer through until its end.
 */
export class Pace {
  readonly #signal?: AbortSignal;
  #since = performance.now();

  /** `signal` ends the job. */
  constructor(signal?: AbortSignal) {
    this.#signal = signal;
  }

  /**
   * Whether it is time for a rest, or to end; cheap enough to ask at each step.
   */
  get isDue(): boolean {
    return this.#signal?.aborted === true ||
      performance.now() - this.#since > SLICE;
  }

  /**
   * Let others run.
   *
   * @throws {BlockError} ECANCELED if the job is to end.
   */
  async rest(): Promise<void> {
    await giveWay();
    this.#since = performance.now();
    this.check();
  }

  /** Throws ECANCELED if the job is to end. */
  check(): void {
    checkSignal(this.#signal);
  }
}
