/**
 * The requests of one user of a node: counted, so that their end can be
 * awaited, and held back while the graph below changes.
 *
 * @module
 */
import { aborted } from "./abort.ts";

/** A request that is held back. */
interface Waiting {
  go(): void;
  readonly signal?: AbortSignal;
}

/**
 * Admits requests at once or, while it is shut, in order of arrival once it
 * opens again. When open, it costs a request a check and a count.
 */
export class RequestGate {
  #underWay = 0;
  /** Number of {@linkcode shut} calls not yet taken back. */
  #shuts = 0;
  /** Whether it is shut, or still admitting the requests that waited. */
  #isShut = false;
  readonly #line: Waiting[] = [];
  readonly #whenIdle: (() => void)[] = [];

  /**
   * Begin a request, to be ended by {@linkcode leave}. Returns no promise if it
   * need not wait.
   *
   * @throws {BlockError} ECANCELED if `signal` is aborted before it begins.
   */
  enter(signal?: AbortSignal): Promise<void> | undefined {
    if (signal?.aborted) throw aborted(signal);
    if (this.#isShut) return this.#wait(signal);
    this.#underWay++;
  }

  /** End a request. */
  leave(): void {
    // Requests made one at a time all get past the first condition.
    if (--this.#underWay > 0 || this.#whenIdle.length === 0) return;
    for (const tell of this.#whenIdle.splice(0)) tell();
  }

  #wait(signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const waiting: Waiting = {
        signal,
        go: () => {
          signal?.removeEventListener("abort", leave);
          this.#underWay++;
          resolve();
        },
      };
      const leave = () => {
        this.#line.splice(this.#line.indexOf(waiting), 1);
        reject(aborted(signal!));
      };
      signal?.addEventListener("abort", leave, { once: true });
      this.#line.push(waiting);
    });
  }

  /** Admit no request until {@linkcode open} has been called as often. */
  shut(): void {
    this.#shuts++;
    this.#isShut = true;
  }

  /** Take back one {@linkcode shut}. */
  open(): void {
    if (--this.#shuts === 0) this.#admitWaiting();
  }

  /** New requests queue behind those that have waited. */
  async #admitWaiting(): Promise<void> {
    while (this.#shuts === 0 && this.#line.length > 0) {
      this.#line.shift()!.go();
      await undefined;
    }
    if (this.#shuts === 0) this.#isShut = false;
  }

  /** Wait until no request is under way; those held back do not count. */
  async idle(): Promise<void> {
    while (this.#underWay > 0) {
      await new Promise<void>((tell) => this.#whenIdle.push(tell));
    }
  }

  /** Wait for all requests, including those held back. */
  async finish(): Promise<void> {
    if (this.#line.length > 0) {
      await this.#wait();
      this.leave();
    }
    await this.idle();
  }
}
