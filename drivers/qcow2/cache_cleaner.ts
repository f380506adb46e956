/**
 * Letting go of cached tables that were not used for a while.
 *
 * @module
 */
import { invalid } from "../../core/errors.ts";
import { unrefTimer } from "../../core/runtime.ts";
import type { TableCache } from "./table_cache.ts";

/** The caches of an image, as they are now. */
interface Caches {
  readonly l2Cache: TableCache;
  readonly refcountCache: TableCache;
}

/**
 * A program's first timer costs Deno 7 ms, clearing none at all another 6:
 * more than all of `info`. So there is none for a few requests, which leave
 * little in the caches, nor in the first seconds: most programs end by then.
 */
const REQUESTS_BEFORE_CLEANING = 64;
const MILLISECONDS_BEFORE_CLEANING = 3000;

/** Empties the caches of an image of what has not been used for some time. */
export class CacheCleaner {
  readonly #caches: Caches;
  readonly #createdAt = performance.now();
  #seconds = 0;
  #requests = 0;
  #timer?: ReturnType<typeof setInterval>;

  constructor(caches: Caches) {
    this.#caches = caches;
  }

  /**
   * Let go of tables that were not used for some seconds; 0: never.
   *
   * @throws {BlockError} EINVAL if that is longer than timers can wait.
   */
  cleanEvery(seconds: number): void {
    if (seconds > 2 ** 31 / 1000) throw invalid("Cache clean interval too big");
    if (seconds !== this.#seconds) this.stop();
    this.#seconds = seconds;
  }

  /** A request comes, which may leave tables in the caches. */
  countRequest(): void {
    if (++this.#requests % REQUESTS_BEFORE_CLEANING !== 0) return;
    if (this.#timer !== undefined || this.#seconds === 0) return;
    const age = performance.now() - this.#createdAt;
    if (age < MILLISECONDS_BEFORE_CLEANING) return;
    this.#timer = setInterval(() => {
      this.#caches.l2Cache.dropUnused();
      this.#caches.refcountCache.dropUnused();
    }, this.#seconds * 1000);
    // Cleaning up is no reason for a program to go on.
    unrefTimer(this.#timer);
  }

  /** Clean up no more, until the next interval is set. */
  stop(): void {
    if (this.#timer !== undefined) clearInterval(this.#timer);
    this.#timer = undefined;
  }
}
