/**
 * The requests of one user of a node: counted, so that their end can be waited
 * for, and held up while the graph below is changed.
 *
 * @module
 */
import { aborted } from "./abort.ts";

/** A request that is held up. */
interface Waiting {
  go(): void;
  readonly signal?: AbortSignal;
}

/**
 * Lets requests in: at once, or in the order of their arrival when it is opened
 * again. A request that need not wait pays for a look and a count.
 */
export class RequestGate {
  #underWay = 0;
  /** How many keep it shut. */
  #shuts = 0;
  /** Shut, or still letting in those who have waited. */
  #isShut = false;
  readonly #line: Waiting[] = [];
  readonly #whenIdle: (() => void)[] = [];

  /**
   * A request begins; {@linkcode leave} is its end. There is no promise where
   * it need not wait.
   *
   * @throws {BlockError} ECANCELED if `signal` says so before it has begun.
   */
  enter(signal?: AbortSignal): Promise<void> | undefined {
    if (signal?.aborted) throw aborted(signal);
    if (this.#isShut) return this.#wait(signal);
    this.#underWay++;
  }

  /** A request has ended. */
  leave(): void {
    if (--this.#underWay > 0) return;
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

  /** Let nobody in until {@linkcode open} has been called as often. */
  shut(): void {
    this.#shuts++;
    this.#isShut = true;
  }

  /** Take one {@linkcode shut} back. */
  open(): void {
    if (--this.#shuts === 0) this.#letIn();
  }

  /** Whoever comes meanwhile goes behind those who have waited. */
  async #letIn(): Promise<void> {
    while (this.#shuts === 0 && this.#line.length > 0) {
      this.#line.shift()!.go();
      await undefined;
    }
    if (this.#shuts === 0) this.#isShut = false;
  }

  /** Wait until no request is under way; those held up do not count. */
  async idle(): Promise<void> {
    while (this.#underWay > 0) {
      await new Promise<void>((tell) => this.#whenIdle.push(tell));
    }
  }

  /** Wait for the end of all requests, also of those that are held up. */
  async finish(): Promise<void> {
    if (this.#line.length > 0) {
      await this.#wait();
      this.leave();
    }
    await this.idle();
  }
}
