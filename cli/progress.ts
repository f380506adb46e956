/**
 * Reporting the progress of a command.
 *
 * `-p` rewrites a line on standard output: QEMU's, which contains only the
 * percentage; as `bdrv`, on a terminal, also the rate and the time left. As
 * `bdrv`, `--progress=json` writes a line per step to standard *error*, since
 * standard output is for the result:
 * an object with the member `percent`, from 0 to 100, which it reaches only on
 * success. With neither, the signal SIGUSR1 prints a line to standard error.
 *
 * @module
 */
import type { OutputStream } from "../core/platform/process.ts";
import { process } from "../core/platform/this_process.ts";
import { unrefTimer } from "../core/runtime.ts";
import { fixed } from "../core/values.ts";
import type { Program } from "./program.ts";
import type { ProgressLine, ProgressUnit } from "./progress_line.ts";

/** Who receives the progress; `asker` is the sender of SIGUSR1. */
type Audience = "terminal" | "user" | "program" | "asker";

/** Milliseconds until the line is refreshed without progress. */
const REFRESH = 1000;
/** Columns of a terminal whose width is unknown. */
const USUAL_COLUMNS = 80;

/** How progress is shown. */
export interface ProgressOptions {
  /** Whether standard output carries an image. Default: no. */
  dataOnOutput?: boolean;
  /** Whether to show 0 at once, or with the first update. Default: at once. */
  showsStart?: boolean;
  /** What is counted. Default: bytes. */
  unit?: ProgressUnit;
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
  /** The line, on a terminal. */
  #line?: ProgressLine;
  #timer?: ReturnType<typeof setInterval>;

  /**
   * Begin at 0. `wanted` is whether `-p` was given; `step` is the smallest
   * change to show, in per cent.
   */
  static async begin(
    program: Program,
    wanted: boolean,
    step: number,
    options: ProgressOptions = {},
  ): Promise<Progress> {
    const { showsStart = true, unit = "bytes" } = options;
    const progress = new Progress(program, wanted, step, options);
    if (progress.#audience === "terminal") {
      const { ProgressLine } = await import("./progress_line.ts");
      progress.#line = new ProgressLine(unit, now());
    }
    if (showsStart) progress.#show();
    return progress;
  }

  private constructor(
    program: Program,
    wanted: boolean,
    step: number,
    { dataOnOutput = false }: ProgressOptions,
  ) {
    this.#program = program;
    this.#step = step;
    this.#toError = dataOnOutput;
    this.#audience = !wanted
      ? "asker"
      : program.progressFormat === "json"
      ? "program"
      : program.isOurs && this.#stream.isTerminal()
      ? "terminal"
      : "user";
    if (this.#audience === "asker") process.listen("SIGUSR1", this.#answer);
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
    // Progress may go back if more work turns up.
    const isWorthIt = percent > this.#shown + this.#step ||
      percent < this.#shown || percent === 0;
    const isLast = percent >= 100;
    if (this.#line) {
      const isDue = this.#line.update(done, total, now());
      if (isDue || isLast) this.#show();
      return;
    }
    // QEMU shows users the end twice; for programs, 100 means success.
    if (isLast ? this.#audience !== "program" : isWorthIt) this.#show();
  }

  /** The long part of the command begins. */
  showStart(): void {
    this.#show();
  }

  /** The long part has failed: show users 100 nevertheless, as QEMU does. */
  fail(): void {
    if (this.#audience === "user") this.complete();
  }

  /** The command has succeeded. */
  complete(): void {
    this.#percent = 100;
    if (!this.#line) return this.#show();
    this.#stopRefreshing();
    this.#rewrite(this.#line.summary(now(), this.#columns));
  }

  /** End the line, after success and failure alike. */
  end(): void {
    if (this.#line) this.#endLine();
    if (this.#audience === "user") this.#print("\n", this.#toError);
    if (this.#audience === "asker") process.unlisten("SIGUSR1", this.#answer);
  }

  #show(): void {
    this.#shown = this.#percent;
    switch (this.#audience) {
      case "terminal":
        this.#keepFresh();
        return this.#rewrite(
          this.#line!.text(this.#percent, now(), this.#columns),
        );
      case "user":
        return this.#print(`    (${this.#text()}/100%)\r`, this.#toError);
      case "program":
        return this.#print(`{"percent":${Number(this.#text())}}\n`, true);
    }
  }

  /** Refresh the line from time to time, even without progress. */
  #keepFresh(): void {
    if (this.#timer !== undefined) return;
    this.#timer = setInterval(() => this.#show(), REFRESH);
    unrefTimer(this.#timer);
  }

  /** Replace the line. */
  #rewrite(line: string): void {
    // Whatever was longer is overwritten with spaces, and the cursor returns to
    // where a message may begin.
    const text = line.padEnd(this.#program.statusWidth);
    this.#program.statusWidth = 0;
    this.#print(`${text}\r`, this.#toError);
    this.#program.statusWidth = line.length;
  }

  #stopRefreshing(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #endLine(): void {
    this.#stopRefreshing();
    if (this.#program.statusWidth === 0) return;
    this.#program.statusWidth = 0;
    this.#print("\n", this.#toError);
  }

  get #stream(): OutputStream {
    return this.#toError ? process.error : process.output;
  }

  get #columns(): number {
    return process.columns() || USUAL_COLUMNS;
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

function now(): number {
  return performance.now();
}
