/**
 * Clusters to be stored compressed, in the order of the requests.
 *
 * @module
 */
import { type Held, Mutex } from "../../core/lock.ts";

/**
 * Most bytes and most clusters compressed ahead of their turn to be stored:
 * enough to keep all processors busy, but no more, since they take up memory.
 */
const MAX_BYTES = 6 * 1024 * 1024;
const MAX_CLUSTERS = 128;

/** What a cluster was compressed to; `undefined` if that saves nothing. */
export type Compressed = Uint8Array | undefined;

/** Consecutive clusters of one request. */
interface Batch {
  readonly count: number;
  readonly compress: (index: number) => Promise<Compressed>;
  /** How many have begun to be compressed. */
  begun: number;
  /** Those of them that are not being stored yet, in order. */
  readonly results: Promise<Compressed>[];
}

/**
 * Compresses clusters ahead of their turn. The first one not yet begun is
 * always the next, whichever request it belongs to, so that nothing delays the
 * cluster to be stored next.
 */
export class CompressionQueue {
  readonly #turn = new Mutex();
  readonly #batches: Batch[] = [];
  readonly #most: number;
  /** Clusters that were begun and not yet stored. */
  #ahead = 0;

  /** Create a queue for clusters of this many bytes. */
  constructor(clusterSize: number) {
    this.#most = Math.min(MAX_CLUSTERS, MAX_BYTES / clusterSize);
  }

  /** Wait until the clusters of all earlier calls are stored. */
  turn(): Held | Promise<Held> {
    return this.#turn.lock();
  }

  /**
   * Compress clusters, and store them one by one after those of all earlier
   * calls. On return, none of them is in use any more.
   *
   * @throws the error of the first one that fails; later ones are not stored.
   */
  async run(
    count: number,
    compress: (index: number) => Promise<Compressed>,
    store: (index: number, compressed: Compressed) => Promise<void>,
  ): Promise<void> {
    const batch: Batch = { count, compress, begun: 0, results: [] };
    // Both in the same turn, so that their orders agree.
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

  /** Begin to compress as many clusters as permitted. */
  #begin(): void {
    while (this.#ahead < this.#most && this.#batches.length > 0) {
      const [batch] = this.#batches;
      const result = batch.compress(batch.begun++);
      // A failure before its turn is handled when its turn comes.
      result.catch(() => {});
      batch.results.push(result);
      this.#ahead++;
      if (batch.begun === batch.count) this.#batches.shift();
    }
  }

  /** Drop the rest of a batch after one of its clusters could not be stored. */
  async #leave(batch: Batch): Promise<void> {
    const place = this.#batches.indexOf(batch);
    if (place >= 0) this.#batches.splice(place, 1);
    this.#ahead -= batch.results.length + 1;
    this.#begin();
    await Promise.allSettled(batch.results);
  }
}
