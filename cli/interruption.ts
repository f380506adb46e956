/**
 * Interrupting a job that changes an image step by step.
 *
 * @module
 */
import { process } from "../core/platform/this_process.ts";
import { CommandError } from "./program.ts";
import { SIGNALS } from "./target.ts";

/**
 * Lets a signal end a job cleanly. A second signal ends the program at once.
 */
export class Interruption implements Disposable {
  readonly #controller = new AbortController();
  readonly #listeners: [string, () => void][] = [];
  /** The exit code, once a signal has arrived. */
  #code?: number;

  /** Listen until disposed of. */
  constructor() {
    for (const [signal, number] of SIGNALS) {
      const listener = () => this.#interrupt(128 + number);
      // Not every system has every signal.
      if (!process.listen(signal, listener)) continue;
      this.#listeners.push([signal, listener]);
    }
  }

  /** The signal that cancels the job. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Run the job; `state` describes the outcome if a signal ends it. */
  async run(
    job: (signal: AbortSignal) => Promise<void>,
    state: string,
  ): Promise<void> {
    try {
      await job(this.signal);
    } catch (error) {
      if (this.#code === undefined) throw error;
      throw new CommandError(`interrupted: ${state}`, { code: this.#code });
    }
  }

  #interrupt(code: number): void {
    this.#code = code;
    this[Symbol.dispose]();
    this.#controller.abort();
  }

  /** Stop listening. */
  [Symbol.dispose](): void {
    for (const [signal, listener] of this.#listeners.splice(0)) {
      process.unlisten(signal, listener);
    }
  }
}
