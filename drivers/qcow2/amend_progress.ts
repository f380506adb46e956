/**
 * The progress of an amendment over all of its steps.
 *
 * @module
 */
import type { AmendOptions } from "../../core/node.ts";

/** Receives how much of a step is done. */
export type StepProgress = (done: number, total: number) => void;

/**
 * Joins the progress of several steps into one. The size of later steps is
 * estimated from the earlier ones.
 */
export class StepsProgress {
  readonly #steps: number;
  readonly #report?: AmendOptions["progress"];
  #begun = 0;
  #finished = 0;
  #latest = 0;

  constructor(steps: number, report: AmendOptions["progress"]) {
    this.#steps = steps;
    this.#report = report;
  }

  /** Begin the next step. */
  step(): StepProgress {
    this.#finished += this.#latest;
    this.#latest = 0;
    const begun = ++this.#begun;
    return (done, total) => {
      this.#latest = total;
      const known = this.#finished + total;
      const guessed = Math.floor(known * (this.#steps - begun) / begun);
      this.#report?.(this.#finished + done, known + guessed);
    };
  }
}
