/**
 * Requests that go on while further commands run.
 *
 * @module
 */
import type { Program } from "../program.ts";

/**
 * Requests in the background. What they have to report is told while a command
 * waits for something, never between two that do not.
 */
export class BackgroundRequests {
  readonly #program: Program;
  readonly #pending = new Set<Promise<void>>();
  /** Reports of finished requests, in the order in which they finished. */
  readonly #reports: string[] = [];
  /** How many wait: reports are told at once. */
  #waiting = 0;

  constructor(program: Program) {
    this.#program = program;
  }

  /** Take over a request, whose promise gives the text of its report. */
  add(request: Promise<string>): void {
    const pending = request.then((report) => {
      this.#pending.delete(pending);
      this.#reports.push(report);
      if (this.#waiting > 0) this.#tell();
    });
    this.#pending.add(pending);
  }

  /** Wait for `work`, and let others report meanwhile. */
  async during<T>(work: Promise<T>): Promise<T> {
    this.#tell();
    this.#waiting++;
    try {
      return await work;
    } finally {
      this.#waiting--;
    }
  }

  /** Wait until all are finished. */
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
