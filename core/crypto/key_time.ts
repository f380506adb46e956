/**
 * Limiting the time to derive keys: creators choose how long it takes, and
 * whoever opens an image limits how long it may take.
 *
 * @module
 */
import { BlockError } from "../errors.ts";
import { type Derivation, deriveKey, type HashName } from "./hashes.ts";

/**
 * Iterations per millisecond that every machine achieves. If even those fit
 * into the remaining time, nothing needs to be measured.
 */
const SLOWEST_RATE = 100;
/** Iterations of the first measurement. */
const FIRST_TRY = 32_768;
/** Milliseconds after which a measurement is good enough. */
const ENOUGH = 20;
/** Fewest iterations of a key. */
const MIN_ITERATIONS = 1000;
/** Most iterations that the header can hold. */
const MAX_ITERATIONS = 2 ** 32 - 1;

/** Iterations per millisecond, for keys of `length` bytes. */
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
 * The iterations that take `milliseconds` on this machine.
 *
 * @param divisor Divides the result.
 * @throws {BlockError} ERANGE if a header cannot hold the number.
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
  // A negative time wraps around.
  if (milliseconds < 0 || perSecond * milliseconds >= 2 ** 64) {
    throw refuse(perSecond, "too large to scale");
  }
  const iterations = Math.floor(perSecond * milliseconds / 1000 / divisor);
  if (iterations > MAX_ITERATIONS) {
    throw refuse(iterations, `larger than ${MAX_ITERATIONS}`);
  }
  return Math.max(MIN_ITERATIONS, iterations);
}

/** A time budget for keys whose iterations somebody else chose. */
export class KeyTime {
  readonly #end: number;
  readonly #signal?: AbortSignal;
  readonly #rates = new Map<string, Promise<number>>();

  /** @param milliseconds The budget, from now on. */
  constructor(milliseconds: number, signal?: AbortSignal) {
    this.#end = performance.now() + milliseconds;
    this.#signal = signal;
  }

  /**
   * The time that a derivation would take, in milliseconds, if it exceeds the
   * rest of the budget; `undefined` otherwise.
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

  /** Derive a key, unless cancelled. */
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
