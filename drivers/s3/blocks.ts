/**
 * The cached blocks of a disk: read as a whole, and written as a whole when
 * flushed or evicted.
 *
 * Blocks are written on the condition that they still have the known version,
 * so that changes made by others in spite of the lease are not lost.
 *
 * @module
 */
import { unlessAborted } from "../../core/abort.ts";
import { allocate } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { InFlight } from "../../core/requests.ts";
import { isZero } from "../../core/runtime.ts";
import type { S3Client, S3Request } from "./client.ts";
import { ConflictError } from "./errors.ts";
import {
  BLOCK_SIZE_HEADER,
  blockKey,
  FILE_SIZE_HEADER,
  type Layout,
} from "./layout.ts";
import type { Lease } from "./lease.ts";
import { changedError, Listing } from "./listing.ts";

/** Most bytes of cached blocks, if those are enough blocks. */
const BUDGET = 32 * 1024 ** 2;
/** Fewest blocks that may be cached, however large they are. */
const LEAST_BLOCKS = 8;
/** Blocks written in the background at once. */
const SAVERS = 8;

/** A cached block. */
interface Block {
  /** Its content; `null` if all of it is zero. */
  bytes: Uint8Array<ArrayBuffer> | null;
  isDirty: boolean;
  /** Requests that need it to stay cached. */
  users: number;
  loading?: Promise<void>;
  saving?: Promise<void>;
}

/** Options of a disk's blocks. */
export interface BlockOptions {
  readonly layout: Layout;
  /** Bytes of a block. */
  readonly objectSize: number;
  /** Absent if read-only, or without a lease. */
  readonly lease?: Lease;
  /** Time after which no block may have changed, in milliseconds. */
  readonly since: number;
  /** Most bytes to read ahead. */
  readonly readAhead: number;
  /** The size of the disk, stored in s3backer's first block. */
  fileSize(): number;
}

/** The blocks of a disk. */
export class Blocks {
  readonly listing: Listing;
  readonly #client: S3Client;
  readonly #options: BlockOptions;
  /** Least recently used first. */
  readonly #blocks = new Map<number, Block>();
  readonly #dirty = new Set<number>();
  readonly #savers = new Set<Promise<void>>();
  readonly #stop = new AbortController();
  readonly #signal: AbortSignal;
  readonly #limit: number;
  /** Number of blocks with bytes. */
  #filled = 0;
  /** Index after the last block read, and number of blocks read in order. */
  #next = 0;
  #inOrder = 0;

  constructor(client: S3Client, options: BlockOptions) {
    this.#client = client;
    this.#options = options;
    const { layout, objectSize, lease, since } = options;
    this.#signal = lease
      ? AbortSignal.any([this.#stop.signal, lease.signal])
      : this.#stop.signal;
    this.#limit = Math.max(LEAST_BLOCKS, Math.floor(BUDGET / objectSize));
    this.listing = new Listing(client, layout, this.#signal, since);
  }

  /** Read `parts` from byte `start` of a block on. */
  async read(
    index: number,
    start: number,
    parts: readonly Uint8Array[],
    signal?: AbortSignal,
  ): Promise<void> {
    this.#readAhead(index);
    await this.#use(index, false, (block) => {
      for (const part of parts) {
        if (block.bytes) {
          part.set(block.bytes.subarray(start, start + part.length));
        } else part.fill(0);
        start += part.length;
      }
    }, signal);
  }

  /** Write `parts` from byte `start` of a block on. */
  async write(
    index: number,
    start: number,
    parts: readonly Uint8Array[],
    signal?: AbortSignal,
  ): Promise<void> {
    this.#options.lease?.check();
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    const isWhole = length === this.#options.objectSize;
    await this.#use(index, isWhole, (block) => {
      this.#fill(block);
      for (const part of parts) {
        block.bytes!.set(part, start);
        start += part.length;
      }
      this.#soil(index, block);
    }, signal);
    await this.#relieve();
  }

  /** Zero a part of a block. */
  async zero(
    index: number,
    start: number,
    length: number,
    signal?: AbortSignal,
  ): Promise<void> {
    this.#options.lease?.check();
    const isWhole = length === this.#options.objectSize;
    await this.#use(index, isWhole, (block) => {
      if (isWhole) this.#empty(block);
      else if (!block.bytes) return;
      else block.bytes.fill(0, start, start + length);
      this.#soil(index, block);
    }, signal);
  }

  /** Zero whole blocks; there may be very many. */
  async zeroAll(start: number, end: number): Promise<void> {
    await this.listing.learnRange(start, end);
    const there = new Set(this.listing.present(start, end));
    for (const index of this.#dirty) {
      if (index >= start && index < end) there.add(index);
    }
    const deletions = new InFlight();
    for (const index of there) {
      if (deletions.hasFailed) break;
      await this.zero(index, 0, this.#options.objectSize);
      await deletions.add(this.#settle(index));
    }
    await deletions.end();
  }

  /** Whether a block is known to be zero; `undefined` if unknown. */
  isZero(index: number): boolean | undefined {
    const block = this.#blocks.get(index);
    if (block && !block.loading) return block.bytes === null;
    return this.listing.isKnown(index)
      ? this.listing.tag(index) === undefined
      : undefined;
  }

  /** Store all changes. An abort stops further blocks from being stored. */
  async flush(signal?: AbortSignal): Promise<void> {
    const saves = new InFlight(signal);
    for (const index of [...this.#dirty]) {
      if (saves.hasFailed) break;
      await saves.add(this.#settle(index));
    }
    await saves.end();
    this.#options.lease?.check();
  }

  /** Cancel all requests; changes not flushed are lost. */
  async close(): Promise<void> {
    this.#stop.abort();
    const loads = [...this.#blocks.values()].map(({ loading }) => loading);
    await Promise.allSettled([...loads, ...this.#savers]);
    this.#blocks.clear();
  }

  /**
   * Use a block, loading it first unless all of it is replaced.
   *
   * @param isWhole Whether `act` replaces the whole block.
   */
  async #use(
    index: number,
    isWhole: boolean,
    act: (block: Block) => void,
    signal?: AbortSignal,
  ): Promise<void> {
    for (;;) {
      const block = this.#hold(index, isWhole);
      try {
        if (block.loading) {
          try {
            await unlessAborted(block.loading, signal);
          } catch (error) {
            if (signal?.aborted || !isWhole) throw error;
            // The load that failed was not needed.
            continue;
          }
        }
        return act(block);
      } finally {
        block.users--;
        this.#trim();
      }
    }
  }

  /** Get a block that stays cached until its users are done. */
  #hold(index: number, isWhole: boolean): Block {
    let block = this.#blocks.get(index);
    if (block) this.#blocks.delete(index);
    else {
      block = { bytes: null, isDirty: false, users: 0 };
      if (!isWhole) this.#load(index, block);
    }
    this.#blocks.set(index, block);
    block.users++;
    return block;
  }

  #load(index: number, block: Block): void {
    block.loading = this.#fetch(index, block).then(
      () => block.loading = undefined,
      (error) => {
        this.#blocks.delete(index);
        throw error;
      },
    ) as Promise<void>;
    // Nobody may be waiting for a block that is read ahead.
    block.loading.catch(() => {});
  }

  async #fetch(index: number, block: Block): Promise<void> {
    await this.listing.learn(index);
    const tag = this.listing.tag(index);
    if (tag === undefined) return;
    const { layout, objectSize, since } = this.#options;
    const key = blockKey(layout, index);
    const headers = { "if-match": tag, "accept-encoding": "identity" };
    const request = { method: "GET" as const, key, headers };
    try {
      const answer = await this.#ask(request, objectSize + 1);
      if (Date.parse(answer.headers.get("last-modified") ?? "") > since) {
        throw changedError();
      }
      const encoding = answer.headers.get("content-encoding");
      if (encoding) {
        throw new BlockError(
          "ENOTSUP",
          "Blocks that s3backer has compressed or encrypted cannot be read",
        );
      }
      if (answer.body.length !== objectSize) throw wrongSize(key, objectSize);
      block.bytes = answer.body;
      this.#filled++;
    } catch (error) {
      const isGone = error instanceof BlockError && error.code === "ENOENT";
      throw isGone || error instanceof ConflictError ? changedError() : error;
    }
  }

  #ask(request: S3Request, limit?: number, again?: () => void) {
    const signal = this.#signal;
    return this.#client.ask({ ...request, signal }, limit, again)
      .catch((error) => {
        // A lease that ended explains more than the cancelled request.
        this.#options.lease?.check();
        throw error;
      });
  }

  #readAhead(index: number): void {
    if (index + 1 === this.#next) return;
    this.#inOrder = index === this.#next ? this.#inOrder + 1 : 0;
    this.#next = index + 1;
    const { objectSize, readAhead, fileSize } = this.#options;
    const most = Math.floor(
      Math.min(readAhead / objectSize, this.#limit / 2, this.#inOrder),
    );
    const end = Math.ceil(fileSize() / objectSize);
    for (let ahead = 1; ahead <= most; ahead++) {
      const next = index + ahead;
      if (next >= end) return;
      if (!this.#blocks.has(next)) this.#hold(next, false).users--;
    }
  }

  #fill(block: Block): void {
    if (block.bytes) return;
    block.bytes = allocate(this.#options.objectSize);
    this.#filled++;
  }

  #empty(block: Block): void {
    if (!block.bytes) return;
    block.bytes = null;
    this.#filled--;
  }

  #soil(index: number, block: Block): void {
    block.isDirty = true;
    this.#dirty.add(index);
  }

  /** Evict clean blocks beyond the budget. */
  #trim(): void {
    if (this.#filled <= this.#limit && this.#blocks.size <= 64 * this.#limit) {
      return;
    }
    for (const [index, block] of this.#blocks) {
      const { users, isDirty, loading, saving } = block;
      if (users > 0 || isDirty || loading || saving) continue;
      this.#empty(block);
      this.#blocks.delete(index);
      if (this.#filled <= this.#limit) return;
    }
  }

  /** Store changed blocks before they take up all of the memory. */
  async #relieve(): Promise<void> {
    const most = this.#limit / 2;
    for (const index of this.#dirty) {
      if (this.#dirty.size <= most || this.#savers.size >= SAVERS) break;
      const block = this.#blocks.get(index)!;
      if (block.saving) continue;
      const saver = this.#save(index, block).finally(() =>
        this.#savers.delete(saver)
      );
      // A flush tries again.
      saver.catch(() => {});
      this.#savers.add(saver);
    }
    if (this.#dirty.size > this.#limit) await Promise.race(this.#savers);
  }

  /** Store the current content of a block. */
  async #settle(index: number): Promise<void> {
    const block = this.#blocks.get(index);
    if (!block) return;
    await block.saving?.catch(() => {});
    if (block.isDirty) await this.#save(index, block);
  }

  #save(index: number, block: Block): Promise<void> {
    return block.saving ??= this.#store(index, block).finally(() => {
      block.saving = undefined;
      if (!block.isDirty) this.#dirty.delete(index);
    });
  }

  async #store(index: number, block: Block): Promise<void> {
    try {
      await this.listing.learn(index);
      this.#options.lease?.check();
      block.isDirty = false;
      const { bytes } = block;
      // It may be written to meanwhile.
      if (bytes && !isZero(bytes)) await this.#put(index, bytes.slice());
      else await this.#remove(index);
    } catch (error) {
      block.isDirty = true;
      throw error;
    }
  }

  async #put(index: number, body: Uint8Array<ArrayBuffer>): Promise<void> {
    const { layout, fileSize } = this.#options;
    const tag = this.listing.tag(index);
    const key = blockKey(layout, index);
    const headers = {
      ...(tag === undefined ? { "if-none-match": "*" } : { "if-match": tag }),
      ...(layout.isEndless && {
        "content-type": "application/x-s3backer-block",
        ...(index === 0 && {
          [BLOCK_SIZE_HEADER]: String(body.length),
          [FILE_SIZE_HEADER]: String(fileSize()),
        }),
      }),
    };
    let isRepeated = false;
    try {
      const request = { method: "PUT" as const, key, body, headers };
      const answer = await this.#ask(
        request,
        undefined,
        () => isRepeated = true,
      );
      this.listing.set(index, answer.headers.get("etag") ?? "");
    } catch (error) {
      if (!(error instanceof ConflictError) || !isRepeated) throw error;
      // The first attempt may have succeeded, and only its response been lost.
      const there = await this.#ask({ method: "GET", key }, body.length + 1);
      const isOurs = there.body.length === body.length &&
        there.body.every((byte, at) => byte === body[at]);
      if (!isOurs) throw error;
      this.listing.set(index, there.headers.get("etag") ?? "");
    }
  }

  async #remove(index: number): Promise<void> {
    if (this.listing.tag(index) === undefined) return;
    const key = blockKey(this.#options.layout, index);
    try {
      await this.#ask({ method: "DELETE", key });
    } catch (error) {
      const isGone = error instanceof BlockError && error.code === "ENOENT";
      if (!isGone) throw error;
    }
    this.listing.set(index, undefined);
  }
}

function wrongSize(key: string, size: number): BlockError {
  return new BlockError(
    "EINVAL",
    `The block '${key}' does not have the size ${size} that 'object-size' gives`,
  );
}
