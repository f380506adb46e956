/**
 * Reading remote objects, where every request costs a round trip: adjacent
 * reads are combined, blocks are cached, and sequential readers are served
 * ahead.
 *
 * @module
 */
import { unlessAborted } from "../abort.ts";
import { allocate, type IoVector } from "../bytes.ts";
import { asBlockError, BlockError } from "../errors.ts";
import { type Block, BLOCK_SIZE, ObjectBlocks } from "./block_cache.ts";

/** Where the bytes come from. */
export interface RemoteSource {
  /** Bytes. */
  readonly size: number;
  /**
   * Fill `parts`, one after the other, from `offset` on, and call `filled` with
   * the index of each part that is complete.
   */
  read(
    offset: number,
    parts: readonly Uint8Array[],
    signal: AbortSignal,
    filled: (part: number) => void,
  ): Promise<void>;
}

/** How a source is read. */
export interface RemoteReaderOptions {
  /** Most bytes read ahead. Default: 16 MiB. */
  readonly readAhead?: number;
  /** Most requests at once. Default: 12. */
  readonly connections?: number;
}

/** Bytes read ahead for a reader that is sequential. */
export const DEFAULT_READ_AHEAD = 16 * 1024 * 1024;
/** Most requests at once. */
export const DEFAULT_CONNECTIONS = 12;

/** Bytes of a read that shows that everything will be read. */
const BULK = 512 * 1024;
/** Requests that reading ahead must leave free. */
const RESERVED = 2;
/** Most blocks of one request: 1 MiB. */
const MAX_RUN = 16;
/** Unneeded blocks that are cheaper to fetch than a separate request. */
const MAX_GAP = 1;
/** Sequential readers that are distinguished. */
const MAX_STREAMS = 8;
/** How far requests of one reader may be out of order, in bytes. */
const DISORDER = 4 * 1024 * 1024;

/** A sequential reader. */
interface Stream {
  /** End of what it has read. */
  end: number;
  /** Bytes that it has read in order. */
  read: number;
  /** End of what has been read ahead. */
  ahead: number;
}

/**
 * Reads a source through the cache. All users of an object should share one
 * reader.
 */
export class RemoteReader {
  readonly #source: RemoteSource;
  readonly #readAhead: number;
  readonly #connections: number;
  readonly #blocks = new ObjectBlocks();
  readonly #stop = new AbortController();
  /** Blocks to be fetched; those that somebody waits for first. */
  readonly #wanted = new Map<number, PendingBlock>();
  readonly #ahead = new Map<number, PendingBlock>();
  #isScheduled = false;
  readonly #fetches = new Set<Promise<void>>();
  readonly #streams: Stream[] = [];

  /** Read `source`, whose `head` has been fetched already. */
  constructor(
    source: RemoteSource,
    head: Uint8Array = new Uint8Array(),
    options: RemoteReaderOptions = {},
  ) {
    this.#source = source;
    this.#readAhead = options.readAhead ?? DEFAULT_READ_AHEAD;
    this.#connections = options.connections ?? DEFAULT_CONNECTIONS;
    for (let index = 0; index * BLOCK_SIZE < head.length; index++) {
      const bytes = head.slice(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE);
      if (bytes.length < this.#lengthOf(index)) break;
      this.#blocks.add(index, { bytes, isWanted: true });
    }
  }

  /**
   * Fill `iov` from `offset` on; the range must be within the object. An abort
   * only ends the wait: fetches under way still fill the cache.
   *
   * @throws {BlockError} that of the source, or ECANCELED.
   */
  async readv(
    offset: number,
    iov: IoVector,
    signal?: AbortSignal,
  ): Promise<void> {
    let end = offset;
    for (const part of iov) end += part.length;
    if (end === offset) return;
    const first = Math.floor(offset / BLOCK_SIZE);
    const needed: Block[] = [];
    for (let index = first; index * BLOCK_SIZE < end; index++) {
      needed.push(this.#want(index));
    }
    this.#follow(offset, end);
    for (const { loading } of needed) {
      // Blocks that have arrived need no waiting.
      if (loading) await unlessAborted(loading, signal);
    }
    copy(needed, offset - first * BLOCK_SIZE, iov);
    for (let at = 0; at < needed.length; at++) {
      const start = (first + at) * BLOCK_SIZE;
      const isWhole = start >= offset &&
        start + needed[at].bytes.length <= end;
      this.#blocks.touch(first + at, isWhole);
    }
  }

  /** Cancel all requests; nothing may be read afterwards. */
  async close(): Promise<void> {
    this.#stop.abort();
    const gone = new BlockError("ECANCELED");
    for (const queue of [this.#wanted, this.#ahead]) {
      for (const { fail } of queue.values()) fail(gone);
      queue.clear();
    }
    await Promise.all(this.#fetches);
    this.#blocks.clear();
  }

  #lengthOf(index: number): number {
    return Math.min(BLOCK_SIZE, this.#source.size - index * BLOCK_SIZE);
  }

  /** A block that is needed now. */
  #want(index: number): Block {
    const known = this.#blocks.get(index);
    if (known) {
      if (known.loading && !known.isWanted) {
        known.isWanted = true;
        const pending = this.#ahead.get(index);
        if (pending) {
          this.#ahead.delete(index);
          this.#wanted.set(index, pending);
        }
      }
      return known;
    }
    return this.#request(index, true);
  }

  /** Queue a block to be fetched. */
  #request(index: number, isWanted: boolean): Block {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    // Nobody may be waiting when it fails; it is requested again when needed.
    promise.catch(() => {});
    const block: Block = {
      bytes: allocate(this.#lengthOf(index)),
      loading: promise,
      isWanted,
    };
    this.#blocks.add(index, block);
    const pending = {
      block,
      succeed: () => {
        block.loading = undefined;
        resolve();
      },
      fail: (error: unknown) => {
        if (this.#blocks.get(index) === block) this.#blocks.delete(index);
        reject(error);
      },
    };
    (isWanted ? this.#wanted : this.#ahead).set(index, pending);
    this.#schedule();
    return block;
  }

  /** Read ahead of a sequential reader. */
  #follow(offset: number, end: number): void {
    const stream = this.#streamAt(offset);
    stream.read += end - offset;
    stream.end = Math.max(stream.end, end);
    // Never more than has been read, so that at most half is wasted; but
    // readers with large requests are sure to go on.
    const isInOrder = stream.read > end - offset;
    const isBulk = end - offset >= BULK;
    const window = isBulk
      ? this.#readAhead
      : isInOrder
      ? Math.min(this.#readAhead, stream.read)
      : 0;
    const goal = Math.min(stream.end + window, this.#source.size);
    if (goal - Math.max(stream.ahead, stream.end) < window / 4) return;
    let index = Math.ceil(Math.max(stream.ahead, stream.end) / BLOCK_SIZE);
    for (; index * BLOCK_SIZE < goal; index++) {
      if (!this.#blocks.get(index)) this.#request(index, false);
    }
    stream.ahead = index * BLOCK_SIZE;
  }

  #streamAt(offset: number): Stream {
    const streams = this.#streams;
    const at = streams.findIndex(({ end, read }) =>
      Math.abs(offset - end) <= Math.min(DISORDER, read)
    );
    const stream = at < 0
      ? { end: offset, read: 0, ahead: 0 }
      : streams.splice(at, 1)[0];
    streams.unshift(stream);
    if (streams.length > MAX_STREAMS) streams.pop();
    return stream;
  }

  /**
   * Fetch everything requested in this turn, so that adjacent blocks go
   * together.
   */
  #schedule(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    queueMicrotask(() => {
      this.#isScheduled = false;
      while (this.#fetches.size < this.#connections && this.#fetchNext());
    });
  }

  /** Begin one request; returns false if there is nothing to fetch. */
  #fetchNext(): boolean {
    const isNeeded = this.#wanted.size > 0;
    // Reading ahead must not delay blocks that somebody waits for.
    if (!isNeeded && this.#fetches.size >= this.#connections - RESERVED) {
      return false;
    }
    const [next] = isNeeded ? this.#wanted.keys() : this.#ahead.keys();
    if (next === undefined) return false;
    const isQueued = (index: number) =>
      this.#wanted.has(index) || this.#ahead.has(index);
    let first = next;
    // A run of wanted blocks begins with its lowest one.
    while (next - first < MAX_RUN - 1 && isQueued(first - 1)) first--;
    let last = next;
    for (let index = last + 1; index - first < MAX_RUN; index++) {
      if (isQueued(index)) last = index;
      else if (index - last > MAX_GAP || this.#blocks.get(index)) break;
    }
    const run: PendingBlock[] = [];
    for (let index = first; index <= last; index++) {
      if (!isQueued(index)) this.#request(index, false);
      run.push(this.#wanted.get(index) ?? this.#ahead.get(index)!);
      this.#wanted.delete(index);
      this.#ahead.delete(index);
    }
    const fetched = this.#fetch(first, run).finally(() => {
      this.#fetches.delete(fetched);
      this.#schedule();
    });
    this.#fetches.add(fetched);
    return true;
  }

  async #fetch(first: number, run: readonly PendingBlock[]): Promise<void> {
    let filled = 0;
    try {
      await this.#source.read(
        first * BLOCK_SIZE,
        run.map(({ block }) => block.bytes),
        this.#stop.signal,
        (part) => {
          run[part].succeed();
          filled = part + 1;
        },
      );
    } catch (thrown) {
      const error = asBlockError(thrown);
      for (const pending of run.slice(filled)) pending.fail(error);
    }
  }
}

/** A block being fetched. */
interface PendingBlock {
  readonly block: Block;
  succeed(): void;
  fail(error: unknown): void;
}

/** Copy from byte `start` of consecutive blocks on, until `iov` is full. */
function copy(
  blocks: readonly Block[],
  start: number,
  iov: IoVector,
): void {
  let block = 0;
  for (const part of iov) {
    for (let at = 0; at < part.length;) {
      const { bytes } = blocks[block];
      const take = Math.min(bytes.length - start, part.length - at);
      part.set(bytes.subarray(start, start + take), at);
      at += take;
      start += take;
      if (start === bytes.length) {
        block++;
        start = 0;
      }
    }
  }
}
