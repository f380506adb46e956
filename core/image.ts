/**
 * The handle of an opened stack.
 *
 * @module
 */
import "./disposal.ts";
import { checkSignal, unlessAborted } from "./abort.ts";
import { ImageBitmaps } from "./bitmaps.ts";
import { allocate, type IoVector, isExactSize, vectorLength } from "./bytes.ts";
import {
  cannotWrite,
  checkNode,
  checkOptions,
  type OptionKind,
  requestError,
} from "./checks.ts";
import {
  asBlockError,
  BlockError,
  invalid,
  OutOfRangeError,
} from "./errors.ts";
import { attachRoot, rootToTake } from "./drain.ts";
import { type ChainExtent, chainExtents, chainStatus } from "./extents.ts";
import { ask, belowInserted, checkRoot, detach, type Edge } from "./graph.ts";
import type {
  BlockNode,
  CheckOptions,
  CheckResult,
  CompressOptions,
  DiscardFlags,
  NodeInfo,
  ReadFlags,
  RequestFlags,
  TruncateOptions,
  WriteFlags,
  ZeroFlags,
} from "./node.ts";
import { ACCESS } from "./permissions.ts";
import type { ReopenOptions } from "./reopen.ts";
import type { RequestGate } from "./lock.ts";
import { writeZeroes } from "./requests.ts";
import { claimsOf, openNode } from "./open.ts";
import { checkOpenOptions, type OpenOptions } from "./open_options.ts";
import { describeSource, isSource } from "./sources.ts";
import type { Source } from "./spec.ts";
import { nodeText, valueText } from "./values.ts";

/**
 * Bytes transferred through a handle so far.
 *
 * @category Images
 */
export interface ByteCounters {
  /** Bytes read. */
  read: number;
  /** Bytes written, zeroes included. */
  written: number;
  /** Bytes discarded. */
  discarded: number;
}

/**
 * A range for the streams of an {@linkcode Image}.
 *
 * @category Images
 */
export interface StreamOptions {
  /** First byte. Default: 0. */
  offset?: number;
  /** Bytes to read. Default: up to the end. */
  length?: number;
  /** Bytes a chunk. Default: 256 KiB. */
  chunkSize?: number;
}

/**
 * Open an image: a file name or URL (the format is probed), `json:{…}`,
 * `scheme:rest`, a description of a stack, or an object that is probed as well:
 * a `Blob`, a buffer, an open file.
 *
 * @throws {BlockError} ENOENT, EACCES, EINVAL, ENOTSUP … with a message that
 * names the source; EAGAIN if another process, or another part of this one,
 * uses the image in a conflicting way.
 *
 * @example Make an image, write to it and read it back
 * ```ts
 * import { createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: 64 * 1024 * 1024 });
 * await using image = await openImage({ driver: "qcow2", file });
 * await image.write(1_000_000, new TextEncoder().encode("hello"));
 * const bytes = await image.read(1_000_000, 5);
 * assertEquals(new TextDecoder().decode(bytes), "hello");
 * ```
 *
 * @category Images
 */
export async function openImage(
  source: Source | BlockNode,
  options: OpenOptions = {},
): Promise<Image> {
  checkOpenOptions(options);
  try {
    return new Image(await openNode(source, options), options);
  } catch (thrown) {
    const error = asBlockError(thrown);
    const saysWhat = error.message.startsWith("Could not open '");
    const name = isSource(source) ? describeSource(source) : "";
    if (saysWhat || name === "") throw error;
    throw error.prefixed(`Could not open '${name}': `);
  }
}

/**
 * A virtual disk, byte for byte. Reads and writes take any offset and length
 * within it, and any number may be under way at once. A buffer is lent to a
 * request until its promise settles: meanwhile it must stay as it is.
 *
 * @category Images
 */
export class Image implements AsyncDisposable {
  /** Bytes moved through this handle. */
  readonly counters: ByteCounters = { read: 0, written: 0, discarded: 0 };
  #writethrough: boolean;
  #bitmaps?: ImageBitmaps;
  /** Keeps the node open, and conflicting users away. */
  readonly #root: Edge;
  readonly #gate: RequestGate;
  #closed = false;

  /**
   * Wrap an opened node; {@linkcode openImage} does both. A node may be wrapped
   * more than once, or be the child of others; it closes with its last user.
   */
  constructor(
    node: BlockNode,
    options: Pick<OpenOptions, "cache" | "purpose" | "resize" | "share"> = {},
  ) {
    checkNode("The node of an image", node);
    this.#root = rootToTake(node) ?? attachRoot(node, claimsOf(node, options));
    this.#root.end = () => this.close();
    this.#root.lost = () => this.#closed = true;
    this.#gate = this.#root.gate!;
    this.#writethrough = writesThrough(options.cache);
  }

  /**
   * The top node of the stack, for what this handle does not offer. It changes
   * when a filter is inserted or removed.
   */
  get node(): BlockNode {
    return this.#root.target.node!;
  }

  /** The size of the disk in bytes. */
  get size(): number {
    return this.node.size;
  }

  /** Whether the disk refuses writes. */
  get readOnly(): boolean {
    return this.node.readOnly;
  }

  /** The name of the format's driver, such as `qcow2`. */
  get format(): string {
    return this.node.driver.name;
  }

  /** The name under which it was opened. */
  get filename(): string {
    return this.node.filename;
  }

  /**
   * Read bytes.
   *
   * @param offset First byte.
   * @param target How many bytes, or a buffer to fill.
   * @returns the buffer.
   * @throws {BlockError} EINVAL if the range is not within the disk, ENOMEM if
   * there is no memory for so many bytes at once; ECANCELED if `flags.signal`
   * aborted it, once nothing touches the buffer any more.
   */
  async read(
    offset: number,
    target: number | Uint8Array,
    flags?: ReadFlags,
  ): Promise<Uint8Array> {
    if (typeof target === "number") {
      this.#checkRange("read", offset, target);
      target = newBuffer(target);
    }
    await this.readv(offset, [target], flags);
    return target;
  }

  /** Fill several buffers, one after the other, from `offset` on. */
  async readv(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const length = checkedLength("read into", iov);
    this.#checkRange("read", offset, length);
    if (flags) checkOptions("read", flags, READ_FLAGS);
    if (length === 0) return;
    const turn = this.#gate.enter(flags?.signal);
    if (turn) {
      await this.#after(turn, () => this.#checkInside("read", offset, length));
    }
    try {
      await this.node.readv(offset, iov, flags);
      // A node that cannot be interrupted has completed the read.
      if (flags) checkSignal(flags.signal);
    } catch (error) {
      throw requestError(this.node, error);
    } finally {
      this.#gate.leave();
    }
    this.counters.read += length;
  }

  /**
   * Write bytes.
   *
   * @throws {BlockError} EACCES if opened read-only, EINVAL if the range is not
   * within the disk, ENOTSUP if the driver cannot write.
   */
  write(
    offset: number,
    data: Uint8Array,
    flags?: WriteFlags,
  ): Promise<void> {
    return this.writev(offset, [data], flags);
  }

  /** Write several buffers, one after the other, from `offset` on. */
  async writev(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    const length = checkedLength("write", iov);
    this.#checkWritable("write", offset, length);
    if (flags) checkOptions("write", flags, WRITE_FLAGS);
    if (length === 0) return;
    const turn = this.#gate.enter(flags?.signal);
    if (turn) {
      await this.#after(turn, () => this.#checkNode("write", offset, length));
    }
    const { node } = this;
    try {
      await node.writev!(offset, iov, flags);
      this.counters.written += length;
      if (flags) checkSignal(flags.signal);
      if (this.#writethrough) await node.flush?.();
    } catch (error) {
      throw requestError(this.node, error);
    } finally {
      this.#gate.leave();
    }
  }

  /**
   * Store whole clusters compressed; those that would not get smaller are
   * stored uncompressed. The last cluster may end with the disk. The clusters
   * must be unallocated, or hold compressed data.
   *
   * @example
   * ```ts
   * import { createImage, MemoryStore, openImage } from "@bdrv/bdrv";
   *
   * const file = { driver: "memory", store: new MemoryStore() };
   * await createImage("qcow2", file, { size: 1 << 20 });
   * await using image = await openImage({ driver: "qcow2", file });
   * await image.writeCompressed(0, new Uint8Array(1 << 16).fill(7), { level: 9 });
   * ```
   *
   * @throws {BlockError} EINVAL if they are not whole clusters, or not within
   * the disk, EIO if one is allocated, ENOTSUP if the format or the runtime has
   * no compression.
   */
  async writeCompressed(
    offset: number,
    data: Uint8Array,
    options?: CompressOptions,
  ): Promise<void> {
    const iov = [data];
    const length = checkedLength("write", iov);
    this.#checkWritable("write", offset, length);
    if (length === 0) return;
    if (!this.node.writeCompressed) throw this.#cannot("store compressed data");
    if (options) {
      checkOptions("write", options, { level: { least: 0, most: 22 } });
    }
    await this.#request(options?.signal, async (node) => {
      this.#checkNode("write", offset, length);
      if (!node.writeCompressed) throw this.#cannot("store compressed data");
      await node.writeCompressed(offset, iov, options);
      this.counters.written += length;
      if (this.#writethrough) await node.flush?.();
    });
  }

  /** Make a range read as zeroes, storing no data where that is possible. */
  async writeZeroes(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> {
    this.#checkWritable("write zeroes", offset, length);
    if (flags) checkOptions("write zeroes", flags, ZERO_FLAGS);
    if (length === 0) return;
    await this.#request(flags?.signal, async (node) => {
      this.#checkNode("write zeroes", offset, length);
      await writeZeroes(node, offset, length, flags);
      this.counters.written += length;
      if (this.#writethrough) await node.flush?.();
    });
  }

  /**
   * Discard a range. What it reads as afterwards depends on the format; only
   * whole clusters are affected. Without support this does nothing.
   */
  async discard(
    offset: number,
    length: number,
    flags?: DiscardFlags,
  ): Promise<void> {
    this.#checkWritable("discard", offset, length);
    if (flags) checkOptions("discard", flags, REQUEST_FLAGS);
    if (length === 0) return;
    try {
      await this.#request(flags?.signal, (node) => {
        this.#checkNode("discard", offset, length);
        return node.discard?.(offset, length, flags);
      });
    } catch (thrown) {
      const error = requestError(this.node, thrown);
      // A discard is only a hint; a driver may lack the method altogether.
      if (error.code !== "ENOTSUP") throw error;
    }
    this.counters.discarded += length;
  }

  /**
   * Make everything written before durable.
   *
   * @throws {BlockError} ECANCELED once `flags.signal` is aborted; how much has
   * become durable is then unknown.
   */
  async flush(flags?: RequestFlags): Promise<void> {
    this.#checkOpen();
    if (flags) checkOptions("flush", flags, REQUEST_FLAGS);
    await this.#query(flags?.signal, (node) => node.flush?.(flags));
  }

  /**
   * Change the size of the disk, in bytes.
   *
   * @throws {BlockError} EACCES if opened read-only, ENOTSUP if the driver
   * cannot, EAGAIN if another process forbids it, EINVAL if the format does not
   * permit the size.
   */
  async resize(size: number, options?: TruncateOptions): Promise<void> {
    this.#checkWritable("resize", 0, 0);
    if (!isSize(size)) {
      throw invalid(`Cannot resize to ${valueText(size)} bytes`);
    }
    if (options !== undefined) checkOptions("resize", options, RESIZE_OPTIONS);
    if (!this.node.truncate) throw this.#cannot("be resized");
    checkRoot(this.#root, ACCESS.RESIZE);
    const { needs, shares } = this.#root.permissions;
    ask(this.#root, { needs: needs | ACCESS.RESIZE, shares });
    await this.#request(options?.signal, (node) => {
      this.#checkNode("resize", 0, 0);
      if (!node.truncate) throw this.#cannot("be resized");
      return node.truncate(size, options);
    });
  }

  /**
   * The allocation of the disk through the whole backing chain: runs of data,
   * zeroes and compressed clusters.
   *
   * @example
   * ```ts
   * import { createImage, MemoryStore, openImage } from "@bdrv/bdrv";
   * const file = { driver: "memory", store: new MemoryStore() };
   * await createImage("qcow2", file, { size: 1 << 20 });
   * await using image = await openImage({ driver: "qcow2", file });
   * for await (const extent of image.extents()) {
   *   console.log(extent.offset, extent.length, extent.zero); // 0 1048576 true
   * }
   * ```
   */
  extents(
    offset = 0,
    length: number = this.#rest(offset),
    flags?: RequestFlags,
  ): AsyncIterable<ChainExtent> {
    this.#checkRange("map", offset, length);
    const status = (offset: number, length: number) =>
      this.status(offset, length, flags);
    return chainExtents(this.node, offset, length, status);
  }

  /**
   * The first extent of a range, through the whole backing chain. The one after
   * it may be of the same kind.
   *
   * @param length At least 1.
   *
   * @example
   * ```ts
   * import { MemoryStore, openImage } from "@bdrv/bdrv";
   * import { assertEquals } from "@std/assert";
   *
   * const file = { driver: "memory", store: new MemoryStore(1 << 20) };
   * await using image = await openImage({ driver: "raw", file });
   * const { length, zero } = await image.status(512, 1024);
   * assertEquals([length, zero], [1024, true]);
   * ```
   *
   * @throws {BlockError} EINVAL if the range is empty or not within the disk;
   * ECANCELED once `flags.signal` is aborted.
   */
  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<ChainExtent> {
    this.#checkRange("map", offset, length);
    if (flags) checkOptions("map", flags, REQUEST_FLAGS);
    if (length === 0) throw invalid("Cannot map 0 bytes");
    return await this.#query(flags?.signal, (node) => {
      this.#checkInside("map", offset, length);
      return chainStatus(node, offset, length, flags);
    });
  }

  /** The disk's bytes, or a range of them, as a stream. */
  readable(options: StreamOptions = {}): ReadableStream<Uint8Array> {
    checkOptions("read", options, { chunkSize: { least: 1 } });
    const { offset = 0, chunkSize = 256 * 1024 } = options;
    const { length = this.#rest(offset) } = options;
    this.#checkRange("read", offset, length);
    let at = offset;
    return new ReadableStream<Uint8Array>({
      pull: async (controller) => {
        const take = Math.min(chunkSize, offset + length - at);
        if (take === 0) return controller.close();
        controller.enqueue(await this.read(at, take));
        at += take;
        if (at === offset + length) controller.close();
      },
    }, { highWaterMark: 1 });
  }

  /** A stream whose chunks are written one after the other from `offset` on. */
  writable(options: { offset?: number } = {}): WritableStream<Uint8Array> {
    checkOptions("write", options, {});
    let at = options.offset ?? 0;
    this.#checkWritable("write", at, 0);
    return new WritableStream<Uint8Array>({
      write: async (chunk) => {
        await this.write(at, chunk);
        at += chunk.length;
      },
      close: () => this.flush(),
    });
  }

  /** Describe the image. */
  async info(flags?: RequestFlags): Promise<NodeInfo> {
    this.#checkOpen();
    if (flags) checkOptions("describe", flags, REQUEST_FLAGS);
    return await this.#query(flags?.signal, (node) => node.info?.()) ?? {};
  }

  /**
   * Examine the image's own structures.
   *
   * @throws {BlockError} ENOTSUP if its format has none.
   */
  async check(options?: CheckOptions): Promise<CheckResult> {
    this.#checkOpen();
    const { image } = this.node;
    if (!image?.check) {
      throw new BlockError(
        "ENOTSUP",
        "This image format does not support checks",
      );
    }
    if (options !== undefined) checkOptions("check", options, CHECK_OPTIONS);
    const check = (node: BlockNode) => node.image!.check!(options);
    if (!options?.repair) return await this.#query(options?.signal, check);
    checkOptions("check", options.repair, REPAIRS);
    return await this.#request(options.signal, check);
  }

  /**
   * Reopen the image in another way: read-only, for writing, with other
   * options. Requests under way are finished first; new ones wait. Files stay
   * open and locked, so that nobody can get in between.
   *
   * @throws {BlockError} if it cannot be opened that way, ENOTSUP if it was not
   * opened from a description. The image is then as it was before, or, if even
   * that has become impossible, closed, and the message says so.
   *
   * @example
   * ```ts
   * import { createImage, MemoryStore, openImage } from "@bdrv/bdrv";
   * import { assertEquals } from "@std/assert";
   *
   * const file = { driver: "memory", store: new MemoryStore() };
   * await createImage("qcow2", file, { size: 1 << 20 });
   * await using image = await openImage({ driver: "qcow2", file });
   * await image.reopen({ readOnly: true });
   * assertEquals(image.readOnly, true);
   * await image.reopen({ readOnly: false, options: { "l2-cache-size": 1 << 20 } });
   * await image.write(0, new Uint8Array(512));
   * ```
   */
  async reopen(changes: ReopenOptions): Promise<void> {
    this.#checkOpen();
    checkOptions("reopen", changes, REOPEN_OPTIONS);
    const { reopenNode } = await import("./reopen.ts");
    await this.#settled(() => reopenNode(this.node, changes));
    if (changes.cache) this.#writethrough = writesThrough(changes.cache);
  }

  /** The bitmaps of the image, which record writes. */
  get bitmaps(): ImageBitmaps {
    return this.#bitmaps ??= new ImageBitmaps(
      () => belowInserted(this.#root.target).node!,
      (act) =>
        this.#settled(() => {
          this.#checkOpen();
          return this.#request(undefined, act);
        }),
    );
  }

  /**
   * Wait for all requests, flush, and release the node, which is closed if it
   * has no other user. Closing again is fine; every other request fails.
   */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#gate.finish();
    const { isForeign, users } = this.#root.target;
    const staysOpen = isForeign ||
      users.some((user) => user !== this.#root && user.holds);
    await this.#settled(async () => {
      try {
        if (staysOpen && !this.readOnly) await this.node.flush?.();
      } finally {
        await detach(this.#root);
      }
    });
  }

  /** Close; for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Run an operation; whatever it throws becomes a `BlockError`. */
  async #settled<T>(act: () => T): Promise<Awaited<T>> {
    try {
      return await act();
    } catch (error) {
      throw requestError(this.node, error);
    }
  }

  /** Bytes up to the end; 0 for an invalid offset, which is then refused. */
  #rest(offset: number): number {
    return typeof offset === "number" ? this.size - offset : 0;
  }

  /** Make a request other than the frequent reads and writes. */
  async #request<T>(
    signal: AbortSignal | undefined,
    act: (node: BlockNode) => T,
  ): Promise<Awaited<T>> {
    const turn = this.#gate.enter(signal);
    if (turn) await turn;
    try {
      const result = await this.#settled(() => act(this.node));
      checkSignal(signal);
      return result;
    } finally {
      this.#gate.leave();
    }
  }

  /**
   * Make a request without buffers: an abort ends the wait for it at once,
   * while the nodes may still finish what they have begun.
   */
  #query<T>(
    signal: AbortSignal | undefined,
    act: (node: BlockNode) => T,
  ): Promise<Awaited<T>> {
    return unlessAborted(this.#request(signal, act), signal);
  }

  #cannot(what: string): BlockError {
    return new BlockError(
      "ENOTSUP",
      `Image '${this.filename}' (${this.format}) cannot ${what}`,
    );
  }

  #checkOpen(): void {
    if (this.#closed) {
      throw new BlockError(
        "EBADF",
        this.filename
          ? `Image '${this.filename}' is closed`
          : "Image is closed",
      );
    }
  }

  /** Wait for the gate, and check again: the node may have been replaced. */
  async #after(turn: Promise<void>, check: () => void): Promise<void> {
    await turn;
    try {
      check();
    } catch (error) {
      this.#gate.leave();
      throw error;
    }
  }

  #checkRange(verb: string, offset: number, length: number): void {
    this.#checkOpen();
    this.#checkInside(verb, offset, length);
  }

  #checkInside(verb: string, offset: number, length: number): void {
    const { size } = this;
    if (
      Number.isSafeInteger(offset) && Number.isSafeInteger(length) &&
      offset >= 0 && length >= 0 && offset + length <= size
    ) return;
    const isInside = isSize(offset) && isSize(length) &&
      isSize(offset + length) && offset + length <= size;
    if (isInside) return;
    throw new OutOfRangeError(
      `Cannot ${verb} ${valueText(length)} bytes at offset ${
        valueText(offset)
      }: ${nodeText(this.node)} has ${size} bytes`,
    );
  }

  #checkWritable(verb: string, offset: number, length: number): void {
    this.#checkOpen();
    this.#checkNode(verb, offset, length);
  }

  /** Refuse to change a disk that is read-only or cannot write. */
  #checkNode(verb: string, offset: number, length: number): void {
    this.#checkInside(verb, offset, length);
    const { node } = this;
    if (node.readOnly || !node.writev) {
      throw cannotWrite(`Cannot ${verb}`, node);
    }
    checkRoot(this.#root, ACCESS.WRITE);
  }
}

function writesThrough(cache: OpenOptions["cache"]): boolean {
  return cache === "writethrough" || cache === "directsync";
}

/** Whether a value is a valid number of bytes. */
function isSize(value: unknown): value is number {
  return typeof value === "number" && isExactSize(value) && value >= 0;
}

/** The length of a vector, after checking its parts. */
function checkedLength(verb: string, iov: IoVector): number {
  if (!Array.isArray(iov)) {
    throw invalid(
      `Cannot ${verb} ${valueText(iov)}: it must be a list of Uint8Array`,
    );
  }
  for (const part of iov) {
    if (part instanceof Uint8Array) continue;
    throw invalid(`Cannot ${verb} ${valueText(part)}: it must be a Uint8Array`);
  }
  return vectorLength(iov);
}

function newBuffer(length: number): Uint8Array {
  try {
    return allocate(length);
  } catch (cause) {
    throw new BlockError("ENOMEM", `Cannot read ${length} bytes at once`, {
      cause,
    });
  }
}

const REQUEST_FLAGS: { readonly [name: string]: OptionKind } = {
  signal: "object",
};

const READ_FLAGS: { readonly [name: string]: OptionKind } = {
  ...REQUEST_FLAGS,
  background: "boolean",
};

const WRITE_FLAGS: { readonly [name: string]: OptionKind } = {
  ...REQUEST_FLAGS,
  fua: "boolean",
  background: "boolean",
  placed: "function",
};

const ZERO_FLAGS: { readonly [name: string]: OptionKind } = {
  ...REQUEST_FLAGS,
  fua: "boolean",
  unmap: "boolean",
  noFallback: "boolean",
};

const RESIZE_OPTIONS: { readonly [name: string]: OptionKind } = {
  preallocation: ["off", "metadata", "falloc", "full"],
  exact: "boolean",
  zero: "boolean",
};

const REOPEN_OPTIONS: { readonly [name: string]: OptionKind } = {
  readOnly: "boolean",
  cache: ["writeback", "writethrough", "none", "directsync", "unsafe"],
  options: "object",
};

const CHECK_OPTIONS: { readonly [name: string]: OptionKind } = {
  repair: "object",
  report: "function",
};

const REPAIRS: { readonly [name: string]: OptionKind } = {
  leaks: "boolean",
  corruptions: "boolean",
};
