/**
 * Clusters that are to be stored compressed, in the order in which that was
 * asked for.
 *
 * @module
 */
import { type Held, Mutex } from "../../core/lock.ts";

/**
 * Most bytes, and most clusters, that are compressed before their turn to be
 * stored has come: enough for all processors, and no more than that, since
 * they take up memory.
 */
const MAX_BYTES = 6 * 1024 * 1024;
const MAX_CLUSTERS = 128;

/** What a cluster was compressed to; `undefined` if that saves nothing. */
export type Compressed = Uint8Array | undefined;

/** Clusters in a row of one request. */
interface Batch {
  readonly count: number;
  readonly compress: (index: number) => Promise<Compressed>;
  /** How many are being compressed, or were. */
  begun: number;
  /** Of those, the ones that are not being stored yet, in order. */
  readonly results: Promise<Compressed>[];
}

/**
 * Has clusters compressed ahead of their turn. The first one that was not
 * begun is always the next, whichever request it belongs to: what is stored
 * next is never kept waiting by what comes after it.
 */
export class CompressionQueue {
  readonly #turn = new Mutex();
  readonly #batches: Batch[] = [];
  readonly #most: number;
  /** Clusters that were begun, and are not stored yet. */
  #ahead = 0;

  /** A queue for clusters of so many bytes. */
  constructor(clusterSize: number) {
    this.#most = Math.min(MAX_CLUSTERS, MAX_BYTES / clusterSize);
  }

  /** Wait until the clusters of all calls before are stored. */
  turn(): Held | Promise<Held> {
    return this.#turn.lock();
  }

  /**
   * Compress clusters, and store one after the other when those of all calls
   * before are stored; nothing of them is in use any more at the end.
   *
   * @throws what the first one that fails does; no further ones are stored.
   */
  async run(
    count: number,
    compress: (index: number) => Promise<Compressed>,
    store: (index: number, compressed: Compressed) => Promise<void>,
  ): Promise<void> {
    const batch: Batch = { count, compress, begun: 0, results: [] };
    // Both in the same turn, so that their order is the same.
    const turn = this.#turn.lock();
    this.#batches.push(batch);
    this.#begin();
    using _ = await turn;
    try {
      for (let index = 0; index < count; index++) {
        await store(index, await batch.results.shift()!);
        this.#ahead--;
        this.#begin();
      }
    } catch (error) {
      await this.#leave(batch);
      throw error;
    }
  }

  /** Begin with as many clusters as there may be. */
  #begin(): void {
    while (this.#ahead < this.#most && this.#batches.length > 0) {
      const [batch] = this.#batches;
      const result = batch.compress(batch.begun++);
      // If it fails before its turn, that is still dealt with then.
      result.catch(() => {});
      batch.results.push(result);
      this.#ahead++;
      if (batch.begun === batch.count) this.#batches.shift();
    }
  }

  /** Give up the rest of a batch, one cluster of which could not be stored. */
  async #leave(batch: Batch): Promise<void> {
    const place = this.#batches.indexOf(batch);
    if (place >= 0) this.#batches.splice(place, 1);
    this.#ahead -= batch.results.length + 1;
    this.#begin();
    await Promise.allSettled(batch.results);
  }
}
