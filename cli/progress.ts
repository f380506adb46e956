/**
 * Reporting the progress of a command.
 *
 * `-p` rewrites a line on standard output. As `bdrv`, `--progress=json` writes
 * a line per step to standard *error*, since standard output is for the result:
 * an object with the member `percent`, from 0 to 100, which it reaches only on
 * success. With neither, the signal SIGUSR1 prints a line to standard error.
 *
 * @module
 */
import { process } from "../core/platform/this_process.ts";
import { fixed } from "./numbers.ts";
import type { Program } from "./program.ts";

/** Who receives the progress: `asker` is whoever sends SIGUSR1. */
type Audience = "user" | "program" | "asker";

/** How progress is shown. */
export interface ProgressOptions {
  /** Whether standard output carries an image. Default: no. */
  dataOnOutput?: boolean;
  /** Whether to show 0 at once, or with the first update. Default: at once. */
  showsStart?: boolean;
}

/** The progress of one command. */
export class Progress {
  readonly #program: Program;
  readonly #audience: Audience;
  readonly #step: number;
  /** Whether to use standard error, as standard output carries an image. */
  readonly #toError: boolean;
  readonly #answer = () => this.#print(`    (${this.#text()}/100%)\n`, true);
  #percent = 0;
  #shown = 0;

  /**
   * Begin at 0. `wanted` is whether `-p` was given; `step` is the smallest
   * change to show, in per cent.
   */
  constructor(
    program: Program,
    wanted: boolean,
    step: number,
    { dataOnOutput = false, showsStart = true }: ProgressOptions = {},
  ) {
    this.#program = program;
    this.#step = step;
    this.#toError = dataOnOutput;
    this.#audience = !wanted
      ? "asker"
      : program.progressFormat === "json"
      ? "program"
      : "user";
    if (this.#audience === "asker") process.listen("SIGUSR1", this.#answer);
    if (showsStart) this.#show();
  }

  /** Whether it is shown continuously, not only on SIGUSR1. */
  get isShown(): boolean {
    return this.#audience !== "asker";
  }

  /** `done` of `total` is done. */
  update(done: number, total: number): void {
    // Round as QEMU's 32-bit float does.
    const percent = total > 0 ? Math.fround(done / total * 100) : 100;
    this.#percent = Math.min(100, percent);
    // Progress goes back if more work turns up.
    const isWorthIt = percent > this.#shown + this.#step ||
      percent < this.#shown || percent === 0;
    const isLast = percent >= 100;
    // QEMU shows users the end twice; for programs, 100 means success.
    if (isLast ? this.#audience !== "program" : isWorthIt) this.#show();
  }

  /** The long part of the command begins. */
  begin(): void {
    this.#show();
  }

  /** The long part has failed: show users 100 nevertheless, as QEMU does. */
  fail(): void {
    if (this.#audience === "user") this.complete();
  }

  /** The command has succeeded. */
  complete(): void {
    this.#percent = 100;
    this.#show();
  }

  /** End the line, after success and failure alike. */
  end(): void {
    if (this.#audience === "user") this.#print("\n", this.#toError);
    if (this.#audience === "asker") process.unlisten("SIGUSR1", this.#answer);
  }

  #show(): void {
    this.#shown = this.#percent;
    switch (this.#audience) {
      case "user":
        return this.#print(`    (${this.#text()}/100%)\r`, this.#toError);
      case "program":
        return this.#print(`{"percent":${Number(this.#text())}}\n`, true);
    }
  }

  #text(): string {
    return fixed(this.#percent, 2);
  }

  #print(text: string, toError: boolean): void {
    if (toError) return this.#program.printError(text);
    this.#program.print(text);
    this.#program.output.flush();
  }
}
