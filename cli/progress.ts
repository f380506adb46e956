/**
 * The line that shows how far a command has come.
 *
 * @module
 */
import { fixed } from "./numbers.ts";
import type { Program } from "./program.ts";

/** A progress line; it shows nothing unless it is wanted. */
export class Progress {
  readonly #program: Program;
  readonly #wanted: boolean;
  readonly #step: number;
  #shown = 0;

  /** `step` is the least change, in per cent, that is worth showing. */
  constructor(program: Program, wanted: boolean, step: number) {
    this.#program = program;
    this.#wanted = wanted;
    this.#step = step;
    this.#show(0);
  }

  /** `done` of `total` is done. */
  update(done: number, total: number): void {
    const percent = total > 0 ? Math.min(100, done / total * 100) : 100;
    if (percent > this.#shown + this.#step) this.#show(percent);
  }

  /** The command has done all there was to do. */
  complete(): void {
    this.#show(100);
  }

  /** Leave the line, in success and failure alike. */
  end(): void {
    if (this.#wanted) this.#program.print("\n");
  }

  #show(percent: number): void {
    this.#shown = percent;
    if (!this.#wanted) return;
    this.#program.print(`    (${fixed(percent, 2)}/100%)\r`);
    this.#program.output.flush();
  }
}
