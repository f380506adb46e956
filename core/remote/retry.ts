/**
 * Repeating requests after transient failures.
 *
 * @module
 */
import { aborted, checkSignal, delay, LONGEST_DELAY } from "../abort.ts";
import { BlockError, type ErrorCode } from "../errors.ts";

/** How long to put up with a failing server. */
export interface Patience {
  /** Most attempts in a row without progress, after the first one. */
  readonly retries: number;
  /**
   * Longest time without a single byte from the server, in milliseconds;
   * `Infinity` for no limit.
   */
  readonly timeout: number;
}

/** A failure that may be transient, so that the request can be repeated. */
export class TransientError extends BlockError {
  /** How long the server asks to wait, in milliseconds. */
  readonly pause?: number;

  /** Create an error; `pause` is in milliseconds. */
  constructor(code: ErrorCode, message?: string, pause?: number) {
    super(code, message);
    this.pause = pause;
  }
}

/**
 * How long a response asks to wait until the request is repeated (RFC 9110,
 * section 10.2.3: seconds or a date), in milliseconds; `undefined` if it does
 * not say.
 */
export function pauseOf({ headers }: Response): number | undefined {
  const text = headers.get("retry-after")?.trim();
  if (!text) return undefined;
  const pause = /^\d+$/.test(text)
    ? Number(text) * 1000
    : Date.parse(text) - Date.now();
  return pause >= 0 ? pause : undefined;
}

/** The first pause, in milliseconds; each one is twice as long as the last. */
const FIRST_PAUSE = 100;
/** The longest pause, whatever the server says, in milliseconds. */
const LONGEST_PAUSE = 10_000;

/** Fewer bytes than this are no progress: a few at a time would take ages. */
const PROGRESS = 64 * 1024;

/**
 * Repeat `attempt` until it succeeds, fails for good, or has made no progress
 * `retries` times in a row.
 *
 * @param attempt Returns the result, or calls `progress` and throws a
 * {@linkcode TransientError}. Its signal cancels it; `progress` must be called
 * with the number of content bytes whenever anything arrives.
 * @throws {BlockError} the last failure; ECANCELED if `signal` is aborted.
 */
export async function retrying<T>(
  { retries, timeout }: Patience,
  signal: AbortSignal | undefined,
  attempt: (
    signal: AbortSignal,
    progress: (bytes: number) => void,
  ) => Promise<T>,
): Promise<T> {
  for (let failures = 0;; failures++) {
    checkSignal(signal);
    const watch = new Watch(timeout, signal);
    let arrived = 0;
    try {
      return await attempt(watch.signal, (bytes) => {
        arrived += bytes;
        watch.progress();
      });
    } catch (thrown) {
      if (signal?.aborted) throw aborted(signal);
      const error = watch.isOver
        ? new TransientError(
          "ETIMEDOUT",
          `The server has sent nothing for ${timeout / 1000} s`,
        )
        : thrown;
      if (!(error instanceof TransientError)) throw error;
      if (arrived >= PROGRESS) failures = 0;
      else if (failures >= retries) throw error;
      const wish = error.pause ?? backOff(failures);
      await delay(Math.min(wish, LONGEST_PAUSE), signal);
    } finally {
      watch.stop();
    }
  }
}

/** Pauses vary, so that many clients do not return all at once. */
function backOff(failures: number): number {
  return FIRST_PAUSE * 2 ** failures * (0.75 + Math.random() / 2);
}

/** Aborts an attempt that receives nothing for too long. */
class Watch {
  readonly signal: AbortSignal;
  /** Whether the time has run out. */
  isOver = false;
  readonly #controller = new AbortController();
  readonly #timeout: number;
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #forget: () => void;

  constructor(timeout: number, outer: AbortSignal | undefined) {
    this.#timeout = timeout;
    this.signal = this.#controller.signal;
    const leave = () => this.#controller.abort(outer!.reason);
    outer?.addEventListener("abort", leave, { once: true });
    this.#forget = () => outer?.removeEventListener("abort", leave);
    this.progress();
  }

  progress(): void {
    clearTimeout(this.#timer);
    if (this.#timeout === Infinity) return;
    this.#timer = setTimeout(() => {
      this.isOver = true;
      this.#controller.abort();
    }, Math.min(this.#timeout, LONGEST_DELAY));
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#forget();
  }
}
