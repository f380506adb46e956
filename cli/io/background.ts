/**
 * Requests that run while further commands run.
 *
 * @module
 */
import type { Program } from "../program.ts";

/**
 * Background requests. Their reports are printed while a command waits for
 * something, never between commands that do not wait.
 */
export class BackgroundRequests {
  readonly #program: Program;
  readonly #pending = new Set<Promise<void>>();
  /** Reports of finished requests, in order of completion. */
  readonly #reports: string[] = [];
  /** Number of waiting commands: if any, reports are printed at once. */
  #waiting = 0;

  constructor(program: Program) {
    this.#program = program;
  }

  /** Add a request, whose promise yields the text of its report. */
  add(request: Promise<string>): void {
    const pending = request.then((report) => {
      this.#pending.delete(pending);
      this.#reports.push(report);
      if (this.#waiting > 0) this.#tell();
    });
    this.#pending.add(pending);
  }

  /** Wait for `work`, printing reports meanwhile. */
  async during<T>(work: Promise<T>): Promise<T> {
    this.#tell();
    this.#waiting++;
    try {
      return await work;
    } finally {
      this.#waiting--;
    }
  }

  /** Wait until all requests are finished. */
  async drain(): Promise<void> {
    while (this.#pending.size > 0) {
      await this.during(Promise.all(this.#pending));
    }
    this.#tell();
  }

  #tell(): void {
    for (const report of this.#reports.splice(0)) this.#program.print(report);
  }
}
