/**
 * Dropping cached tables that were not used for a while.
 *
 * @module
 */
import { invalid } from "../../core/errors.ts";
import { unrefTimer } from "../../core/runtime.ts";
import type { TableCache } from "./table_cache.ts";

/** The current caches of an image. */
interface Caches {
  readonly l2Cache: TableCache;
  readonly refcountCache: TableCache;
}

/**
 * A program's first timer delays its start noticeably. So there is none for a
 * few requests, which leave little in the caches, nor in the first seconds:
 * most programs have ended by then.
 */
const REQUESTS_BEFORE_CLEANING = 64;
const MILLISECONDS_BEFORE_CLEANING = 3000;

/** Milliseconds that a timer can wait at most. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Periodically drops unused tables from the caches of an image. */
export class CacheCleaner {
  readonly #caches: Caches;
  readonly #createdAt = performance.now();
  #seconds = 0;
  #requests = 0;
  #timer?: ReturnType<typeof setTimeout>;

  constructor(caches: Caches) {
    this.#caches = caches;
  }

  /**
   * Drop tables that were not used for this many seconds; 0: never.
   *
   * @throws {BlockError} EINVAL for 2^32 seconds or more.
   */
  cleanEvery(seconds: number): void {
    if (seconds >= 2 ** 32) throw invalid("Cache clean interval too big");
    if (seconds !== this.#seconds) this.stop();
    this.#seconds = seconds;
  }

  /** Count a request, which may leave tables in the caches. */
  countRequest(): void {
    if (++this.#requests % REQUESTS_BEFORE_CLEANING !== 0) return;
    if (this.#timer !== undefined || this.#seconds === 0) return;
    const age = performance.now() - this.#createdAt;
    if (age < MILLISECONDS_BEFORE_CLEANING) return;
    this.#wait(this.#seconds * 1000);
  }

  /** Clean after this many milliseconds, and then regularly. */
  #wait(milliseconds: number): void {
    const part = Math.min(milliseconds, LONGEST_TIMER);
    this.#timer = setTimeout(() => {
      if (part < milliseconds) return this.#wait(milliseconds - part);
      this.#caches.l2Cache.dropUnused();
      this.#caches.refcountCache.dropUnused();
      this.#wait(this.#seconds * 1000);
    }, part);
    // Cleaning must not keep the program running.
    unrefTimer(this.#timer);
  }

  /** Stop until the next interval is set. */
  stop(): void {
    if (this.#timer !== undefined) clearTimeout(this.#timer);
    this.#timer = undefined;
  }
}
