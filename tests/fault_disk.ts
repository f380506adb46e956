/**
 * A disk whose requests may fail, and its permitted content afterwards.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { filterNode } from "../core/filter.ts";
import { Image } from "../core/image.ts";
import { openNode } from "../core/open.ts";
import { isEqual } from "../core/runtime.ts";
import {
  BlockError,
  type BlockNode,
  type ErrorCode,
  getDriver,
  type MemoryStore,
  type OpenOptions,
  type OptionValues,
  type StackObject,
} from "../mod.ts";

/** The request below the format that fails. */
export interface NthFault {
  /** How many requests of the kind succeed first. */
  after: number;
  /** The kind of request. */
  kind: FaultKind;
  /** Whether only one fails, rather than all from then on. */
  once: boolean;
  /** The error. */
  code: ErrorCode;
}

/** A kind of request that can fail; zeroing and truncating count as writing. */
export type FaultKind = "readv" | "writev" | "flush" | "discard";

/** Numbers of requests of each kind. */
export type RequestCounts = { [kind in FaultKind]: number };

/**
 * A node that passes requests on until one has to fail.
 *
 * @param counts Those of another node, to count requests of both.
 */
export function faultyNode(
  below: BlockNode,
  fault?: NthFault,
  counts: RequestCounts = { readv: 0, writev: 0, flush: 0, discard: 0 },
): { node: BlockNode; counts: RequestCounts } {
  const count = (kind: FaultKind) => {
    const index = counts[kind]++;
    if (kind !== fault?.kind || index < fault.after) return;
    if (fault.once && index > fault.after) return;
    throw new BlockError(fault.code);
  };
  const node = filterNode(getDriver("blkdebug"), below, {
    async readv(offset, iov) {
      count("readv");
      await below.readv(offset, iov);
    },
    async writev(offset, iov) {
      count("writev");
      await below.writev!(offset, iov);
    },
    async writeZeroes(offset, length) {
      count("writev");
      await below.writeZeroes!(offset, length);
    },
    async discard(offset, length) {
      count("discard");
      await below.discard!(offset, length);
    },
    async truncate(size) {
      count("writev");
      await below.truncate!(size);
    },
    async flush() {
      count("flush");
      await below.flush?.();
    },
  });
  return { node, counts };
}

/** The content of a whole disk. */
type Content = Uint8Array;

/**
 * An image under test. If a step fails, each byte of the disk must be either
 * the old one or the one that the step was to write.
 */
export class FaultDisk {
  readonly image: Image;
  /** The expected content, as far as it is known. */
  #current: Content;
  /** The permitted contents after reopening, the newest last. */
  #possible: Content[];
  /** Whether the disk has been unreadable since a step failed. */
  #blind = false;
  readonly snapshots = new Map<string, Content>();
  /** Names of snapshots that may or may not exist. */
  readonly #uncertain = new Set<string>();
  /** The permitted contents at the time when each bitmap began to record. */
  readonly #begun = new Map<string, Content[]>();
  failures = 0;

  constructor(image: Image, content: Content) {
    this.image = image;
    this.#current = content;
    this.#possible = [content];
  }

  get size(): number {
    return this.#current.length;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    if (offset + bytes.length > this.image.size) return;
    await this.#step(
      withBytes(this.#current, offset, bytes),
      () => this.image.write(offset, bytes),
    );
  }

  async writeCompressed(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#step(
      withBytes(this.#current, offset, bytes),
      () => this.image.node.writeCompressed!(offset, [bytes]),
    );
  }

  async zero(offset: number, length: number, unmap: boolean): Promise<void> {
    const zeroes = new Uint8Array(length);
    await this.#step(
      withBytes(this.#current, offset, zeroes),
      () => this.image.writeZeroes(offset, length, { unmap }),
    );
  }

  /**
   * Discard whole clusters of an image in which they read as zeroes afterwards.
   */
  async discard(offset: number, length: number): Promise<void> {
    const zeroes = new Uint8Array(length);
    await this.#step(
      withBytes(this.#current, offset, zeroes),
      () => this.image.discard(offset, length),
    );
  }

  async read(): Promise<void> {
    await this.#step(this.#current, () => this.#verify());
  }

  async resize(size: number): Promise<void> {
    await this.#step(
      withSize(this.#current, size),
      () => this.image.resize(size),
    );
  }

  async flush(): Promise<void> {
    const isDone = await this.#step(this.#current, () => this.image.flush());
    if (isDone && !this.#blind) this.#possible = [this.#current];
  }

  async takeSnapshot(name: string): Promise<void> {
    this.#uncertain.add(name);
    const isDone = await this.#step(this.#current, async () => {
      await this.image.node.snapshots!.create({ name });
    });
    if (!isDone || this.#blind) return;
    this.#uncertain.delete(name);
    this.snapshots.set(name, this.#current);
  }

  async deleteSnapshot(name: string): Promise<void> {
    if (!this.snapshots.has(name)) return;
    this.snapshots.delete(name);
    this.#uncertain.add(name);
    await this.#step(
      this.#current,
      () => this.image.node.snapshots!.delete(name),
    );
  }

  async applySnapshot(name: string): Promise<void> {
    const content = this.snapshots.get(name);
    if (!content) return;
    await this.#step(content, () => this.image.node.snapshots!.apply(name));
  }

  /** Change options of the image, which leaves the disk unchanged. */
  async amend(options: OptionValues): Promise<void> {
    await this.#step(
      this.#current,
      () => this.image.node.image!.amend!(options),
    );
  }

  /** Create a bitmap. */
  async addBitmap(name: string, granularity: number): Promise<void> {
    this.#noteBegin(name);
    await this.#step(
      this.#current,
      () => this.image.bitmaps.add(name, { granularity }),
    );
  }

  /** Clear a bitmap. */
  async clearBitmap(name: string): Promise<void> {
    this.#noteBegin(name);
    await this.#step(this.#current, () => this.image.bitmaps.clear(name));
  }

  async removeBitmap(name: string): Promise<void> {
    await this.#step(this.#current, () => this.image.bitmaps.remove(name));
  }

  /** Store bitmaps, and read all metadata again. */
  async invalidate(): Promise<void> {
    await this.#step(this.#current, () => this.image.node.invalidate!());
  }

  #noteBegin(name: string): void {
    const known = this.#begun.get(name) ?? [];
    this.#begun.set(name, [...known, this.#current]);
  }

  /** Close; if that fails, unflushed data may be lost. */
  async close(): Promise<void> {
    const isDone = await attempt(() => this.image.close());
    if (!isDone) this.failures++;
    else if (!this.#blind) this.#possible = [this.#current];
  }

  /**
   * Examine the result: it must be a sound image with a permitted content.
   *
   * @param stack How to open it.
   */
  async inspect(stack: StackObject, options?: OpenOptions): Promise<void> {
    const open = async (readOnly: boolean) =>
      new Image(
        await openNode(stack, { readOnly, gate: "allow", ...options }),
      );
    if (await isDirty(await open(true))) {
      // Lazy refcounts are repaired when the image is next opened for writing.
      await (await open(false)).close();
    }
    await this.#checkSound(await open(true));
    if (await hasFindings(await open(false))) {
      await this.#checkSound(await open(true));
    }
  }

  /** Check the metadata, the content, and the snapshots. */
  async #checkSound(image: Image): Promise<void> {
    const lines: string[] = [];
    const result = await image.check({ report: (line) => lines.push(line) });
    assertEquals(
      [result.corruptions, result.checkErrors],
      [0, 0],
      lines.filter((line) => !line.startsWith("Leaked")).join("\n"),
    );
    const content = await image.read(0, image.size);
    this.#checkContent(content);
    await this.#checkBitmaps(image, content);
    const listed = await image.node.snapshots!.list();
    for (const { name } of listed) {
      assert(
        this.snapshots.has(name) || this.#uncertain.has(name),
        `there is a snapshot '${name}'`,
      );
    }
    for (const [name, content] of this.snapshots) {
      await image.node.snapshots!.loadTemporary(name);
      const read = await image.read(0, image.size);
      assertEquals(firstDifference(read, [content]), -1, `snapshot '${name}'`);
    }
    await image.close();
  }

  /** Bitmaps that are not in use must have recorded everything written. */
  async #checkBitmaps(image: Image, content: Content): Promise<void> {
    for (const { name, flags } of await image.bitmaps.list()) {
      const begun = this.#begun.get(name);
      assert(begun, `there is a bitmap '${name}'`);
      if (flags.includes("in-use")) continue;
      const dirty = await Array.fromAsync(image.bitmaps.dirty(name));
      const hasAll = begun.some((begin) => {
        const rest = withSize(begin, content.length);
        for (const { offset, length } of dirty) {
          rest.set(content.subarray(offset, offset + length), offset);
        }
        return isEqual(rest, content);
      });
      const gaps = begun.map((begin) => {
        const rest = withSize(begin, content.length);
        for (const { offset, length } of dirty) {
          rest.set(content.subarray(offset, offset + length), offset);
        }
        return firstDifference(rest, [content]);
      });
      const text = `${JSON.stringify(dirty)} and lacks ${gaps.join(" or ")}`;
      assert(hasAll, `bitmap '${name}' has ${text}`);
    }
  }

  #checkContent(read: Content): void {
    const sizes = this.#possible.map((content) => content.length);
    assert(
      sizes.includes(read.length),
      `the disk has ${read.length} bytes, not ${sizes}`,
    );
    const at = firstDifference(read, this.#possible);
    if (at >= 0) {
      const may = this.#possible.map((content) => content[at]).join(" or ");
      throw new Error(`byte ${at} is ${read[at]}, not ${may}`);
    }
  }

  /** Try a step after which the content should be `next`. */
  async #step(next: Content, run: () => Promise<void>): Promise<boolean> {
    const isDone = await attempt(run);
    if (next !== this.#current) this.#possible.push(next);
    if (isDone && !this.#blind) {
      this.#current = next;
      return true;
    }
    if (!isDone) this.failures++;
    await this.#settle();
    return isDone;
  }

  /** After a failure, read the disk's content. */
  async #settle(): Promise<void> {
    const read = new Uint8Array(this.image.size);
    this.#blind = !await attempt(async () => {
      await this.image.read(0, read);
    });
    if (this.#blind) return;
    this.#checkContent(read);
    this.#current = read;
    this.#possible.push(read);
  }

  async #verify(): Promise<void> {
    const read = await this.image.read(0, this.image.size);
    if (!this.#blind) {
      assertEquals(firstDifference(read, [this.#current]), -1, "what is read");
    }
  }
}

async function isDirty(image: Image): Promise<boolean> {
  const { dirty } = await image.info();
  await image.close();
  return dirty === true;
}

/** Repair the image; returns whether there was anything to repair. */
async function hasFindings(image: Image): Promise<boolean> {
  const repair = { leaks: true, corruptions: true };
  const found = await image.check({ repair });
  await image.close();
  return found.leaksFixed + found.corruptionsFixed > 0;
}

/** Whether a step succeeded; it may fail only with a `BlockError`. */
async function attempt(run: () => Promise<void>): Promise<boolean> {
  try {
    await run();
    return true;
  } catch (error) {
    // An EIO might hide a bug as its cause.
    const { cause } = error as Error;
    if (!(error instanceof BlockError)) throw error;
    if (
      cause instanceof TypeError || cause instanceof RangeError ||
      cause instanceof ReferenceError
    ) throw cause;
    return false;
  }
}

function withSize(content: Content, size: number): Uint8Array<ArrayBuffer> {
  const next = new Uint8Array(size);
  next.set(content.subarray(0, size));
  return next;
}

function withBytes(
  content: Content,
  offset: number,
  bytes: Uint8Array,
): Content {
  const size = Math.max(content.length, offset + bytes.length);
  const next = new Uint8Array(size);
  next.set(content);
  next.set(bytes, offset);
  return next;
}

/**
 * The first byte that matches none of the contents, which continue as zeroes.
 */
function firstDifference(
  read: Uint8Array,
  contents: readonly Content[],
): number {
  for (const content of contents.toReversed()) {
    if (isEqual(read, content)) return -1;
  }
  return read.findIndex((byte, i) =>
    contents.every((content) => (content[i] ?? 0) !== byte)
  );
}

/** A copy of a store's content. */
export function contentOf(store: MemoryStore): Uint8Array {
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  return bytes;
}
