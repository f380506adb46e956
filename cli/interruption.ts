/**
 * Ending a job that changes an image step by step.
 *
 * @module
 */
import { CommandError } from "./program.ts";
import { SIGNALS } from "./target.ts";

/**
 * Has a signal end a job where it can do so cleanly. A second signal ends the
 * program at once.
 */
export class Interruption implements Disposable {
  readonly #controller = new AbortController();
  readonly #listeners: [Deno.Signal, () => void][] = [];
  /** The exit code, once a signal has come. */
  #code?: number;

  /** Listen until disposed of. */
  constructor() {
    for (const [signal, number] of SIGNALS) {
      const listener = () => this.#interrupt(128 + number);
      try {
        Deno.addSignalListener(signal, listener);
      } catch {
        continue; // Not all systems know all of them.
      }
      this.#listeners.push([signal, listener]);
    }
  }

  /** What the job watches. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Run the job; `state` tells what is where if a signal ends it. */
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
      Deno.removeSignalListener(signal, listener);
    }
  }
}
