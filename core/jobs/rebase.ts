/**
 * Rebasing: changing the backing file of a disk without changing its content.
 *
 * @module
 */
import { allocate, roundDown, roundUp } from "../bytes.ts";
import {
  checkOptions,
  checkStoredName,
  checkWritable,
  nodeOf,
} from "../checks.ts";
import { asBlockError, BlockError, invalid, strerror } from "../errors.ts";
import {
  backingOf,
  type ChainExtent,
  chainStatus,
  checkedExtent,
  isInherited,
  skipFilters,
} from "../extents.ts";
import { canonicalName } from "../sources.ts";
import type { BlockNode, Disk } from "../node.ts";
import { plainName } from "../node_names.ts";
import { readPadded, writeZeroData, writeZeroes } from "../requests.ts";
import { isEqual } from "../runtime.ts";
import { Job, type JobNode } from "./job.ts";
import { Pace } from "../abort.ts";

/**
 * A backing file as an image names it.
 *
 * @category Jobs
 */
export interface BackingName {
  /** Its name, relative to the folder of the image that names it. */
  name: string;
  /** Its format. */
  format: string;
}

/**
 * How to rebase.
 *
 * @category Jobs
 */
export interface RebaseOptions {
  /** Store the clusters that are copied compressed. Default: false. */
  compressed?: boolean;
  /** Compression level: 0 to 9 for zlib, 1 to 22 for zstd. */
  compressionLevel?: number;
  /** Ends the job with ECANCELED; the disk reads as before. */
  signal?: AbortSignal;
  /** Receives how many bytes are done, and the total. */
  progress?(done: number, total: number): void;
}

/** Bytes of a request: two buffers fit into the processor's cache. */
const REQUEST_SIZE = 512 * 1024;

/**
 * Change the backing file of an overlay, or remove it. Visible data of the old
 * backing file that differs in the new one is copied into the overlay. Its
 * header names the new one only once that is durable: if the job ends early,
 * the disk still has its content and the old backing file.
 *
 * The node uses the old backing file until it is opened again.
 *
 * @param newBacking The opened new backing file, and its name for the image. It
 * may be part of the overlay's present chain.
 * @throws {BlockError} ENOTSUP if the format has no backing files; the error of
 * the first failed request.
 *
 * @example Make an overlay independent of its backing file
 * ```ts
 * import { createImage, MemoryStore, openImage, rebase } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const base = { driver: "memory", store: new MemoryStore(1 << 20) };
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: 1 << 20 });
 * {
 *   const backing = { driver: "raw", file: base };
 *   await using overlay = await openImage({ driver: "qcow2", file, backing });
 *   await rebase(overlay, undefined);
 * }
 * await using alone = await openImage({ driver: "qcow2", file });
 * assertEquals((await alone.info()).backingFile, undefined);
 * ```
 *
 * @category Jobs
 */
export async function rebase(
  disk: Disk,
  newBacking: BackingName & { node: Disk } | undefined,
  options: RebaseOptions = {},
): Promise<void> {
  const overlay = nodeOf("The overlay", disk);
  if (newBacking !== undefined) checkBackingName("rebase", newBacking);
  const backing = newBacking && {
    name: newBacking.name,
    format: newBacking.format,
    node: nodeOf("The new backing file", newBacking.node),
  };
  checkOptions("rebase", options, {
    compressed: "boolean",
    compressionLevel: { least: 0, most: 22 },
    signal: "object",
    progress: "function",
  });
  const image = skipFilters(overlay);
  if (!image.image?.changeBacking) throw cannotChange(backing, "ENOTSUP");
  if (options.compressed && !overlay.writeCompressed) {
    throw new BlockError(
      "ENOTSUP",
      "Compression not supported for this file format",
    );
  }
  checkWritable("Cannot rebase", overlay);
  if (backing) refuseLoop(image, backing);
  await using job = new Job(options.signal);
  const top = job.use(overlay);
  const info = await job.request(() => skipFilters(top.node).info?.());
  const below = backing && job.use(backing.node);
  await new Merge(job, top, below, options, info?.clusterSize ?? 512).run();
  await job.request(async () => {
    try {
      await top.node.flush?.();
    } catch (error) {
      throw notWritten(error);
    }
    await changeBacking(top.node, backing);
  });
}

/** Refuse a backing chain that contains the overlay itself. */
function refuseLoop(
  image: BlockNode,
  backing: BackingName & { node: BlockNode },
): void {
  const file = plainName(image);
  if (file === undefined) return;
  for (
    let at: BlockNode | undefined = backing.node;
    at;
    at = backingOf(at)
  ) {
    const name = plainName(at);
    if (name === undefined || canonicalName(name) !== canonicalName(file)) {
      continue;
    }
    throw new BlockError(
      "ELOOP",
      `Backing file '${backing.name}' creates an infinite loop.`,
    );
  }
}

/**
 * Record another backing file, or none, in an image, whatever its content.
 *
 * @throws {BlockError} with the new name in its message.
 *
 * @category Jobs
 */
export async function changeBacking(
  disk: Disk,
  backing: BackingName | undefined,
): Promise<void> {
  const overlay = nodeOf("The overlay", disk);
  if (backing !== undefined) {
    checkBackingName("change the backing file", backing);
  }
  const { image } = skipFilters(overlay);
  if (!image?.changeBacking) throw cannotChange(backing, "ENOTSUP");
  try {
    await image.changeBacking(backing?.name, backing?.format);
  } catch (thrown) {
    throw cannotChange(backing, asBlockError(thrown));
  }
}

/** An empty name would remove the backing file. */
function checkBackingName(what: string, backing: BackingName): void {
  checkOptions(what, backing, { name: "string", format: "string" });
  if (backing.name !== undefined) return checkStoredName(backing.name);
  throw invalid(`Cannot ${what}: the new backing file has no name`);
}

function cannotChange(
  backing: BackingName | undefined,
  why: BlockError | "ENOTSUP",
): BlockError {
  const cause = why === "ENOTSUP" ? new BlockError(why) : why;
  const reason = cause.code === "ENOSPC"
    ? "No space left in the file header"
    : strerror(cause.code);
  return new BlockError(
    cause.code,
    `Could not change the backing file to '${backing?.name ?? ""}': ${reason}`,
    { cause },
  );
}

function notWritten(thrown: unknown): BlockError {
  const cause = asBlockError(thrown);
  const message = `Error while writing to COW image: ${strerror(cause.code)}`;
  return new BlockError(cause.code, message, { cause });
}

/** Copies into the overlay whatever would change with its backing file. */
class Merge {
  readonly #job: Job;
  readonly #disk: JobNode;
  readonly #newBacking?: JobNode;
  /** Whether the new backing file is in the chain below the old one. */
  readonly #isBelow: boolean;
  /** The overlay's unit of allocation, in bytes. */
  readonly #clusterSize: number;
  readonly #options: RebaseOptions;
  readonly #pace: Pace;
  readonly #buffers: [Uint8Array, Uint8Array];

  constructor(
    job: Job,
    overlay: JobNode,
    newBacking: JobNode | undefined,
    options: RebaseOptions,
    clusterSize: number,
  ) {
    this.#job = job;
    this.#disk = overlay;
    this.#newBacking = newBacking;
    this.#isBelow = isBelow(this.#new, this.#old);
    this.#clusterSize = clusterSize;
    this.#options = options;
    this.#pace = new Pace(options.signal);
    const size = roundUp(REQUEST_SIZE, clusterSize);
    this.#buffers = [allocate(size), allocate(size)];
  }

  // Nodes may be replaced by others with the same bytes: valid in one request.

  get #overlay(): BlockNode {
    return this.#disk.node;
  }

  get #old(): BlockNode | undefined {
    return backingOf(this.#overlay);
  }

  get #new(): BlockNode | undefined {
    return this.#newBacking?.node;
  }

  async run(): Promise<void> {
    if (this.#old === this.#new) return;
    const { size } = skipFilters(this.#overlay);
    for (let at = 0; at < size;) {
      const own = await this.#job.request(async () => {
        const image = skipFilters(this.#overlay);
        const extent = await readingMetadata(image.status(at, size - at));
        return checkedExtent(image, extent);
      });
      const end = at + own.length;
      while (at < end) {
        at = isInherited(own)
          ? await this.#job.request(() => this.#step(at, end))
          : end;
        this.#options.progress?.(at, size);
        if (this.#pace.isDue) await this.#pace.rest();
      }
    }
    this.#pace.check();
  }

  /**
   * Process the first part of a range of clusters that the overlay has not
   * allocated; returns where the rest begins.
   */
  async #step(start: number, end: number): Promise<number> {
    const oldEnd = roundUp(this.#old?.size ?? 0, this.#clusterSize);
    if (start < oldEnd) end = Math.min(end, oldEnd);
    const same = await this.#sameUntil(start, end);
    if (same.isSame) {
      const known = same.end === end
        ? end
        : roundDown(same.end, this.#clusterSize);
      if (known > start) return known;
    }
    const limit = Math.min(end, start + this.#buffers[0].length);
    let stop = same.end;
    // What may differ is written together, whatever extents it consists of.
    while (stop < limit) {
      const next = await this.#sameUntil(stop, limit);
      if (next.isSame) break;
      stop = next.end;
    }
    stop = Math.min(limit, roundUp(stop, this.#clusterSize));
    await this.#merge(start, stop);
    return stop;
  }

  /** Whether a range is known to be the same in both, and how far that goes. */
  async #sameUntil(
    start: number,
    end: number,
  ): Promise<{ isSame: boolean; end: number }> {
    if (this.#isBelow && start < this.#old!.size) {
      const length = Math.min(end, this.#old!.size) - start;
      const above = await readingMetadata(
        chainStatus(this.#old!, start, length, undefined, this.#new),
      );
      if (isInherited(above)) {
        return { isSame: true, end: start + above.length };
      }
    }
    const before = await extentOf(this.#old, start, end);
    const after = await extentOf(this.#new, start, end);
    return {
      isSame: before.zero && after.zero,
      end: start + Math.min(before.length, after.length),
    };
  }

  /** Copy the clusters that differ, adjacent ones together. */
  async #merge(start: number, end: number): Promise<void> {
    const [before, after] = this.#buffers.map((buffer) =>
      buffer.subarray(0, end - start)
    );
    await read(this.#old, start, before, "old");
    await read(this.#new, start, after, "new");
    const step = this.#clusterSize;
    const differs = (at: number) =>
      !isEqual(before.subarray(at, at + step), after.subarray(at, at + step));
    for (let at = 0; at < before.length;) {
      const from = at;
      while (at < before.length && differs(at)) at += step;
      if (at > from) await this.#write(start + from, before.subarray(from, at));
      else at += step;
    }
  }

  async #write(offset: number, bytes: Uint8Array): Promise<void> {
    const { compressed, compressionLevel: level } = this.#options;
    const overlay = this.#overlay;
    try {
      if (offset >= (this.#old?.size ?? 0)) {
        await this.#zero(offset, bytes.length);
      } else if (compressed) {
        await overlay.writeCompressed!(offset, [bytes], { level });
      } else {
        await overlay.writev!(offset, [bytes]);
      }
    } catch (error) {
      throw notWritten(error);
    }
  }

  /** Store zeroes that hide the data below. */
  async #zero(offset: number, length: number): Promise<void> {
    await writeZeroes(this.#overlay, offset, length);
    // A format may skip zeroes it sees no need for, without a backing file:
    // store those as data.
    const image = skipFilters(this.#overlay);
    for (let done = 0; done < length;) {
      const at = offset + done;
      const extent = checkedExtent(
        image,
        await image.status(at, length - done),
      );
      if (isInherited(extent)) {
        await writeZeroData(this.#overlay, at, extent.length);
      }
      done += extent.length;
    }
  }
}

/** Whether an image is in the chain below another. */
function isBelow(node: BlockNode | undefined, top?: BlockNode): boolean {
  for (let at = top && backingOf(top); at; at = backingOf(at)) {
    if (at === node) return true;
  }
  return false;
}

/**
 * The extent at `start` of a backing file, if there is one that reaches so far.
 */
async function extentOf(
  node: BlockNode | undefined,
  start: number,
  end: number,
): Promise<Pick<ChainExtent, "zero" | "length">> {
  if (!node || start >= node.size) return { zero: true, length: end - start };
  const length = Math.min(end, node.size) - start;
  return await readingMetadata(chainStatus(node, start, length));
}

async function readingMetadata<T>(status: Promise<T>): Promise<T> {
  try {
    return await status;
  } catch (thrown) {
    const cause = asBlockError(thrown);
    throw new BlockError(
      cause.code,
      `error while reading image metadata: ${strerror(cause.code)}`,
      { cause },
    );
  }
}

async function read(
  node: BlockNode | undefined,
  offset: number,
  bytes: Uint8Array,
  which: "old" | "new",
): Promise<void> {
  if (!node) return void bytes.fill(0);
  try {
    await readPadded(node, offset, [bytes]);
  } catch (thrown) {
    const cause = asBlockError(thrown);
    throw new BlockError(
      cause.code,
      `error while reading from ${which} backing file`,
      { cause },
    );
  }
}
