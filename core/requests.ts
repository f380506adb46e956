/**
 * Requests composed of a node's verbs, and the concurrent child requests of one
 * request.
 *
 * @module
 */
import { aborted, checkSignal } from "./abort.ts";
import {
  allocate,
  fillVector,
  type IoVector,
  sliceVector,
  vectorLength,
} from "./bytes.ts";
import { cannotWrite } from "./checks.ts";
import { asBlockError, BlockError } from "./errors.ts";
import type {
  BlockNode,
  Breakpoints,
  ReadFlags,
  WriteFlags,
  ZeroFlags,
} from "./node.ts";

const ZEROES = allocate(256 * 1024);

/**
 * Make a range of a node read as zeroes: by the driver's `writeZeroes` or,
 * failing that, by writing zeroes as data.
 */
export async function writeZeroes(
  node: BlockNode,
  offset: number,
  length: number,
  flags?: ZeroFlags,
): Promise<void> {
  if (node.writeZeroes) {
    try {
      return await node.writeZeroes(offset, length, flags);
    } catch (error) {
      if (asBlockError(error).code !== "ENOTSUP" || flags?.noFallback) {
        throw error;
      }
    }
  } else if (flags?.noFallback) {
    throw new BlockError("ENOTSUP");
  }
  await writeZeroData(node, offset, length, flags);
}

/** Write zeroes to a range of a node as data. */
export async function writeZeroData(
  node: BlockNode,
  offset: number,
  length: number,
  flags?: WriteFlags,
): Promise<void> {
  if (!node.writev) throw cannotWrite("Cannot write zeroes", node);
  await writeZeroDataBy(node.writev.bind(node), offset, length, flags);
}

/** As {@linkcode writeZeroData}, through a given `writev`. */
export async function writeZeroDataBy(
  writev: NonNullable<BlockNode["writev"]>,
  offset: number,
  length: number,
  flags?: WriteFlags,
): Promise<void> {
  for (let done = 0; done < length;) {
    checkSignal(flags?.signal);
    const take = Math.min(ZEROES.length, length - done);
    await writev(offset + done, [ZEROES.subarray(0, take)], flags);
    done += take;
  }
}

/** Read from a node that may be shorter than the range: zeroes past its end. */
export async function readPadded(
  node: BlockNode,
  offset: number,
  iov: IoVector,
  flags?: ReadFlags,
): Promise<void> {
  const length = vectorLength(iov);
  const inside = Math.max(0, Math.min(length, node.size - offset));
  if (inside > 0) await node.readv(offset, sliceVector(iov, 0, inside), flags);
  if (inside < length) fillVector(iov, inside, length - inside);
}

/** The breakpoints of the nearest node, from this one down, that has any. */
export function breakpointsOf(node: BlockNode): Breakpoints | undefined {
  for (let at: BlockNode | undefined = node; at; at = at.children.file) {
    if (at.debug?.breakpoints) return at.debug.breakpoints;
  }
  return undefined;
}

/** Most child requests in flight. */
const MAX_IN_FLIGHT = 16;

/**
 * The child requests of one request. They use its caller's buffers, so it
 * settles, even on failure, only when all of them have ended.
 */
export class InFlight {
  readonly #pending: Promise<void>[] = [];
  readonly #signal?: AbortSignal;
  #failure?: { readonly error: unknown };

  /** `signal` cancels the request. */
  constructor(signal?: AbortSignal) {
    this.#signal = signal;
  }

  /** Whether a child request has failed, or the request was cancelled. */
  get hasFailed(): boolean {
    if (this.#signal?.aborted) {
      this.#failure ??= { error: aborted(this.#signal) };
    }
    return this.#failure !== undefined;
  }

  /** Add a child request, and wait until there is room for another. */
  add(move: Promise<void>): Promise<void> | undefined {
    const pending = move.catch((error) => {
      this.#failure ??= { error };
    }).finally(() => {
      this.#pending.splice(this.#pending.indexOf(pending), 1);
    });
    if (this.#pending.push(pending) < MAX_IN_FLIGHT) return undefined;
    return Promise.race(this.#pending);
  }

  /**
   * Wait for a promise that the request depends on; if it fails, also for
   * everything in flight.
   */
  whileUnderWay<T>(needed: Promise<T>): Promise<T> {
    return this.#pending.length === 0 ? needed : this.#beside(needed);
  }

  async #beside<T>(needed: Promise<T>): Promise<T> {
    try {
      return await needed;
    } catch (error) {
      await Promise.all(this.#pending);
      throw error;
    }
  }

  /** Wait for all; throws the first failure. */
  async end(): Promise<void> {
    await Promise.all(this.#pending);
    if (this.#failure) throw this.#failure.error;
  }
}

/**
 * Wait until all requests have ended, even if one fails: until then, they use
 * the caller's buffers.
 *
 * @throws the error of the first that failed, in the order given.
 */
export async function allEnded(
  requests: readonly Promise<void>[],
): Promise<void> {
  for (const outcome of await Promise.allSettled(requests)) {
    if (outcome.status === "rejected") throw outcome.reason;
  }
}
