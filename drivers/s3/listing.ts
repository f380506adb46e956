/**
 * Which blocks of a disk exist, and in which version: listed on demand, a page
 * at a time.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import type { S3Client } from "./client.ts";
import { element } from "./errors.ts";
import { blockIndex, blockKey, type Layout } from "./layout.ts";

/** Most pages without a block: other objects may be in between. */
const MAX_PAGES = 1000;

/** Blocks from `start` up to, but not including, `end`. */
interface Range {
  start: number;
  end: number;
}

/** The blocks of a disk. */
export class Listing {
  readonly #client: S3Client;
  readonly #layout: Layout;
  readonly #signal: AbortSignal;
  /** Time after which no block may have changed, in milliseconds. */
  readonly #since: number;
  /** The tags of existing blocks. */
  readonly #tags = new Map<number, string>();
  /** Ranges that have been listed: disjoint, in order. */
  #known: Range[] = [];
  #pending?: Promise<void>;

  /**
   * @param since Blocks changed later are refused; `Infinity` to accept all.
   */
  constructor(
    client: S3Client,
    layout: Layout,
    signal: AbortSignal,
    since: number,
  ) {
    this.#client = client;
    this.#layout = layout;
    this.#signal = signal;
    this.#since = since;
  }

  /** Whether the block has been listed. */
  isKnown(index: number): boolean {
    return this.#known.some(({ start, end }) => index >= start && index < end);
  }

  /** The tag of a listed block; absent if it does not exist. */
  tag(index: number): string | undefined {
    return this.#tags.get(index);
  }

  /** Record the version of a listed block; `undefined` if it was deleted. */
  set(index: number, tag: string | undefined): void {
    if (tag === undefined) this.#tags.delete(index);
    else this.#tags.set(index, tag);
  }

  /** The existing blocks in a listed range, in no particular order. */
  *present(start: number, end: number): Generator<number> {
    if (end - start > this.#tags.size) {
      for (const index of [...this.#tags.keys()]) {
        if (index >= start && index < end) yield index;
      }
      return;
    }
    for (let index = start; index < end; index++) {
      if (this.#tags.has(index)) yield index;
    }
  }

  /** List the part with a block. */
  async learn(index: number): Promise<void> {
    while (!this.isKnown(index)) {
      // One at a time: adjacent blocks are on the same page.
      this.#pending ??= this.#page(index).finally(() =>
        this.#pending = undefined
      );
      await this.#pending;
    }
  }

  /** List all blocks in a range. */
  async learnRange(start: number, end: number): Promise<void> {
    for (let next; (next = this.firstUnknown(start, end)) !== undefined;) {
      await this.learn(next);
    }
  }

  /** The first block in a range that has not been listed, if any. */
  firstUnknown(start: number, end: number): number | undefined {
    for (const known of this.#known) {
      if (known.start <= start) start = Math.max(start, known.end);
    }
    return start < end ? start : undefined;
  }

  async #page(index: number): Promise<void> {
    const layout = this.#layout;
    const found = new Map<number, string>();
    let after = index === 0 ? undefined : blockKey(layout, index - 1);
    for (let pages = 0; pages < MAX_PAGES; pages++) {
      const { objects, isLast } = await this.#list(after);
      for (const { key, tag, changed } of objects) {
        const block = blockIndex(layout, key);
        if (block === undefined) continue;
        if (block < index) break;
        if (changed > this.#since) throw changedError();
        found.set(block, tag);
      }
      after = objects.at(-1)?.key;
      if (isLast || after === undefined) {
        return this.#add(index, Infinity, found);
      }
      if (found.size > 0) {
        return this.#add(index, Math.max(...found.keys()) + 1, found);
      }
    }
    throw new BlockError("EIO", "The service's listing comes to no end");
  }

  /** Entries known before may be newer, since they are ours. */
  #add(start: number, end: number, found: Map<number, string>): void {
    for (const [index, tag] of found) {
      if (!this.isKnown(index)) this.#tags.set(index, tag);
    }
    const ranges = [...this.#known, { start, end }]
      .sort((a, b) => a.start - b.start);
    this.#known = [];
    for (const range of ranges) {
      const last = this.#known.at(-1);
      if (last && range.start <= last.end) {
        last.end = Math.max(last.end, range.end);
      } else {
        this.#known.push({ ...range });
      }
    }
  }

  async #list(after: string | undefined) {
    const { body } = await this.#client.ask({
      method: "GET",
      key: "",
      query: {
        "list-type": "2",
        "max-keys": "1000",
        prefix: this.#layout.prefix,
        ...(after !== undefined && { "start-after": after }),
      },
      signal: this.#signal,
    });
    const xml = new TextDecoder().decode(body);
    if (!xml.includes("<ListBucketResult")) {
      throw new BlockError("EIO", "The service has not listed the bucket");
    }
    const objects = xml.split("<Contents>").slice(1).map((part) => ({
      key: element(part, "Key") ?? "",
      tag: element(part, "ETag") ?? "",
      changed: Date.parse(element(part, "LastModified") ?? ""),
    }));
    return { objects, isLast: element(xml, "IsTruncated") !== "true" };
  }
}

/** The error for a disk that others have changed. */
export function changedError(): BlockError {
  return new BlockError("EIO", "The disk has changed since it was opened");
}
