/**
 * Which blocks of a disk there are, and in which version: learnt by listing
 * them, a page at a time, where somebody asks.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import type { S3Client } from "./client.ts";
import { element } from "./errors.ts";
import { blockIndex, blockKey, type Layout } from "./layout.ts";

/** Most pages without a block on them: other objects may lie between. */
const MAX_PAGES = 1000;

/** Blocks from `start` up to, but not with, `end`. */
interface Range {
  start: number;
  end: number;
}

/** The blocks of a disk. */
export class Listing {
  readonly #client: S3Client;
  readonly #layout: Layout;
  readonly #signal: AbortSignal;
  /** Time after which nothing may have changed, in milliseconds. */
  readonly #since: number;
  /** The tags of the blocks that there are. */
  readonly #tags = new Map<number, string>();
  /** Where all blocks are known: apart from each other, in order. */
  #known: Range[] = [];
  #pending?: Promise<void>;

  /**
   * @param since A block that has changed later is refused; `Infinity` if that
   * may be.
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

  /** Whether it is known if this block is there. */
  isKnown(index: number): boolean {
    return this.#known.some(({ start, end }) => index >= start && index < end);
  }

  /** The tag of a known block; absent if it is not there. */
  tag(index: number): string | undefined {
    return this.#tags.get(index);
  }

  /** Note the version of a known block; `undefined` if it is gone. */
  set(index: number, tag: string | undefined): void {
    if (tag === undefined) this.#tags.delete(index);
    else this.#tags.set(index, tag);
  }

  /** The known blocks in a range that are there, in no order. */
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

  /** Learn whether a block is there. */
  async learn(index: number): Promise<void> {
    while (!this.isKnown(index)) {
      // One at a time: neighbours ask for the same page.
      this.#pending ??= this.#page(index).finally(() =>
        this.#pending = undefined
      );
      await this.#pending;
    }
  }

  /** Learn of all blocks in a range. */
  async learnRange(start: number, end: number): Promise<void> {
    for (let next; (next = this.firstUnknown(start, end)) !== undefined;) {
      await this.learn(next);
    }
  }

  /** The first block in a range of which nothing is known, if there is one. */
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

  /** What was known before may have changed since, and is ours. */
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

/** The error for what others have written while it was read. */
export function changedError(): BlockError {
  return new BlockError("EIO", "The disk has changed since it was opened");
}
