/**
 * How long the derivation of keys takes: as long as the maker of an image
 * wants, and no longer than who opens it has time for.
 *
 * @module
 */
import { BlockError } from "../errors.ts";
import { type Derivation, deriveKey, type HashName } from "./hashes.ts";

/**
 * Iterations a millisecond that any machine does. What they would do in the time
 * that is left is not worth measuring.
 */
const SLOWEST_RATE = 100;
/** Iterations of the first measurement. */
const FIRST_TRY = 32_768;
/** Milliseconds after which a measurement is good enough. */
const ENOUGH = 20;
/** Fewest iterations of a key. */
const MIN_ITERATIONS = 1000;
/** What fits into the header. */
const MAX_ITERATIONS = 2 ** 32 - 1;

/** Iterations a millisecond, for keys of `length` bytes. */
async function measureRate(hash: HashName, length: number): Promise<number> {
  const passphrase = new Uint8Array(16).fill(1);
  const salt = new Uint8Array(32);
  for (let iterations = FIRST_TRY;; iterations *= 8) {
    const start = performance.now();
    await deriveKey(passphrase, { hash, salt, iterations, length });
    const time = performance.now() - start;
    if (time >= ENOUGH) return iterations / time;
  }
}

/**
 * The iterations that take `milliseconds` here.
 *
 * @param divisor To be content with a part of that.
 * @throws {BlockError} ERANGE if they are more than a header can hold.
 */
export async function iterationsFor(
  milliseconds: number,
  hash: HashName,
  length: number,
  divisor = 1,
): Promise<number> {
  if (milliseconds === 0) return MIN_ITERATIONS;
  const perSecond = Math.round(await measureRate(hash, length) * 1000);
  const refuse = (iterations: number, why: string) =>
    new BlockError(
      "ERANGE",
      `PBKDF iterations ${iterations} ${why}: Numerical result out of range`,
    );
  if (perSecond * milliseconds >= 2 ** 64) {
    throw refuse(perSecond, "too large to scale");
  }
  const iterations = Math.floor(perSecond * milliseconds / 1000 / divisor);
  if (iterations > MAX_ITERATIONS) {
    throw refuse(iterations, `larger than ${MAX_ITERATIONS}`);
  }
  return Math.max(MIN_ITERATIONS, iterations);
}

/** Time that may be spent on keys whose iterations a stranger chose. */
export class KeyTime {
  readonly #end: number;
  readonly #signal?: AbortSignal;
  readonly #rates = new Map<string, Promise<number>>();

  /** @param milliseconds From now on. */
  constructor(milliseconds: number, signal?: AbortSignal) {
    this.#end = performance.now() + milliseconds;
    this.#signal = signal;
  }

  /**
   * The time that a derivation would take, in milliseconds, if it is more than
   * what is left; `undefined` if there is enough.
   */
  async excess(
    { hash, iterations, length }: Omit<Derivation, "salt">,
  ): Promise<number | undefined> {
    const left = this.#end - performance.now();
    if (iterations <= left * SLOWEST_RATE) return undefined;
    const name = `${hash} ${length}`;
    let rate = this.#rates.get(name);
    if (!rate) this.#rates.set(name, rate = measureRate(hash, length));
    const time = iterations / await rate;
    return time > this.#end - performance.now() ? time : undefined;
  }

  /** Derive a key, unless nobody wants it any more. */
  async derive(
    passphrase: Uint8Array,
    derivation: Derivation,
  ): Promise<Uint8Array> {
    const signal = this.#signal;
    if (signal?.aborted) throw canceled(signal);
    const deriving = deriveKey(passphrase, derivation);
    if (!signal) return await deriving;
    let stop = () => {};
    const aborted = new Promise<never>((_, reject) => {
      stop = () => reject(canceled(signal));
      signal.addEventListener("abort", stop, { once: true });
    });
    try {
      return await Promise.race([deriving, aborted]);
    } finally {
      signal.removeEventListener("abort", stop);
    }
  }
}

function canceled({ reason }: AbortSignal): BlockError {
  return new BlockError("ECANCELED", undefined, { cause: reason });
}
