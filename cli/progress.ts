/**
 * How far a command has come, for those who watch it.
 *
 * With `-p` a line on standard output is written over and over. Under our own
 * name, `--progress=json` writes a line to standard *error* for each step, an
 * object with the member `percent` (a number from 0 to 100, which it reaches
 * only if all was done): standard output belongs to the command's result. With
 * neither, the signal SIGUSR1 has a line written to standard error.
 *
 * @module
 */
import { fixed } from "./numbers.ts";
import type { Program } from "./program.ts";

/** Whom a command tells how far it is. */
type Audience = "user" | "program" | "asker";

/** How progress is shown. */
export interface ProgressOptions {
  /** Whether standard output carries an image. Default: no. */
  dataOnOutput?: boolean;
  /** Whether 0 is shown at once, or by the first update. Default: at once. */
  showsStart?: boolean;
}

/** The progress of one command. */
export class Progress {
  readonly #program: Program;
  readonly #audience: Audience;
  readonly #step: number;
  /** Whether standard output is for something else. */
  readonly #toError: boolean;
  readonly #answer = () => this.#print(`    (${this.#text()}/100%)\n`, true);
  #percent = 0;
  #shown = 0;

  /**
   * Begin at 0. `wanted` says whether there was a `-p`; `step` is the least
   * change, in per cent, that is worth showing.
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
    if (this.#audience === "asker") listen("add", this.#answer);
    if (showsStart) this.#show();
  }

  /** Whether it is shown all the time, and not only if somebody asks. */
  get isShown(): boolean {
    return this.#audience !== "asker";
  }

  /** `done` of `total` is done. */
  update(done: number, total: number): void {
    // As a 32-bit number, it rounds where QEMU's does.
    const percent = total > 0 ? Math.fround(done / total * 100) : 100;
    this.#percent = Math.min(100, percent);
    // It goes back where there proves to be more to do.
    const isWorthIt = percent > this.#shown + this.#step ||
      percent < this.#shown || percent === 0;
    const isLast = percent >= 100;
    // For users, QEMU shows the end twice; for programs, it means success.
    if (isLast ? this.#audience !== "program" : isWorthIt) this.#show();
  }

  /** The command begins with what takes its time. */
  begin(): void {
    this.#show();
  }

  /** What takes its time has failed: users are shown the end nevertheless. */
  fail(): void {
    if (this.#audience === "user") this.complete();
  }

  /** The command has done all there was to do. */
  complete(): void {
    this.#percent = 100;
    this.#show();
  }

  /** Leave the line, in success and failure alike. */
  end(): void {
    if (this.#audience === "user") this.#print("\n", this.#toError);
    if (this.#audience === "asker") listen("remove", this.#answer);
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

/** Listeners do not keep the program running. Not all systems have the signal. */
function listen(what: "add" | "remove", listener: () => void): void {
  try {
    if (what === "add") Deno.addSignalListener("SIGUSR1", listener);
    else Deno.removeSignalListener("SIGUSR1", listener);
  } catch {
    // Then nobody can ask.
  }
}
