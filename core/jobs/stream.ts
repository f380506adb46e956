/**
 * Images as streams, written front to back, for pipes and downloads, which
 * cannot seek.
 *
 * @module
 */
import { allocate } from "../bytes.ts";
import type { StreamExtent, StreamSource, StreamTarget } from "../driver.ts";
import { AMOUNT, checkOptions } from "../checks.ts";
import { asBlockError, BlockError } from "../errors.ts";
import type { Disk } from "../node.ts";
import {
  defaultOptions,
  newImageOptions,
  type OptionValues,
  parseOptions,
} from "../options.ts";
import { findDriver, loadFormat } from "../registry.ts";
import { limitedWrites } from "../throttle_group.ts";
import { backingOf, isInherited } from "../extents.ts";
import { Concatenation, sourceNodes } from "./concatenation.ts";
import { CopySource } from "./copy_source.ts";
import { Job } from "./job.ts";
import { Pace } from "../abort.ts";

/**
 * How to stream an image.
 *
 * @category Jobs
 */
export interface StreamImageOptions {
  /** The format's create options; the size comes from the sources. */
  create?: OptionValues;
  /**
   * The name of the file that will hold the image, which the format may record:
   * `vmdk` does, and some programs look for its data there. Default: unknown.
   */
  filename?: string;
  /** Whether to store zeroes as data. Default: false. */
  fill?: boolean;
  /**
   * Store only what differs from the source's backing file; the new image's
   * backing file must have the same content. One source only. Default: false.
   */
  onlyDifferences?: boolean;
  /**
   * Continue past unreadable sectors: they become zeroes, each with a warning.
   * Default: false.
   */
  salvage?: boolean;
  /** Receives warnings. Default: they are dropped. */
  warn?(message: string): void;
  /** Most bytes per second; 0 for no limit. Default: 0. */
  rateLimit?: number;
  /** Ends the stream with ECANCELED. */
  signal?: AbortSignal;
  /** Receives how many bytes of data have been read, and the total. */
  progress?(done: number, total: number): void;
}

/** Small parts are combined into chunks of this many bytes. */
const CHUNK_SIZE = 256 * 1024;

/**
 * An image of `format` that holds `sources`, concatenated, as a stream for a
 * download, an upload or a pipe. It is produced as it is read; only the
 * allocation is kept in memory. The sources are traversed twice, so they must
 * not change meanwhile.
 *
 * @param format A registered format whose driver has `stream`: `qcow2`, `raw`.
 * @throws {BlockError} through the stream: EINVAL for invalid options, ENOTSUP
 * for what cannot be written front to back (compression, encryption,
 * preallocation), and errors of the sources.
 *
 * @example A disk in memory, to be downloaded as qcow2
 * ```ts
 * import { MemoryStore, openImage, streamImage } from "@bdrv/bdrv";
 *
 * const file = { driver: "memory", store: new MemoryStore(1 << 20) };
 * await using disk = await openImage({ driver: "raw", file });
 * await disk.write(4096, new TextEncoder().encode("hello"));
 * const stream = streamImage("qcow2", disk);
 * const bytes = await new Response(stream).bytes();
 * console.log(bytes.length); // 393216
 * ```
 *
 * @category Jobs
 */
export function streamImage(
  format: string,
  sources: Disk | readonly Disk[],
  options: StreamImageOptions = {},
): ReadableStream<Uint8Array<ArrayBuffer>> {
  const chunks = imageChunks(format, sources, options);
  return new ReadableStream({
    async pull(controller) {
      try {
        const { value, done } = await chunks.next();
        if (done) controller.close();
        // The reader may keep the chunk, but its buffer is reused here.
        else controller.enqueue(value.slice());
      } catch (error) {
        throw asBlockError(error);
      }
    },
    async cancel() {
      await chunks.return();
    },
  });
}

/**
 * As {@linkcode streamImage}; each chunk is valid until the next one is
 * requested.
 */
export async function* imageChunks(
  format: string,
  sources: Disk | readonly Disk[],
  options: StreamImageOptions = {},
  target?: StreamTarget,
): AsyncGenerator<Uint8Array, void> {
  const driver = await loadFormat(format);
  const nodes = sourceNodes(sources);
  checkOptions("stream an image", options, {
    create: "object",
    filename: "string",
    fill: "boolean",
    onlyDifferences: "boolean",
    salvage: "boolean",
    warn: "function",
    rateLimit: AMOUNT,
    signal: "object",
    progress: "function",
  });
  if (!driver.stream || !driver.createOptions) {
    throw new BlockError(
      "ENOTSUP",
      `Format driver '${format}' does not support streams`,
    );
  }
  await using job = new Job(options.signal);
  const source = new Source(await Concatenation.of(nodes, job), options);
  if (options.progress) await source.count();
  const { createOptions } = driver;
  const parsed = parseOptions(
    newImageOptions(driver, findDriver("file")),
    { ...options.create, size: source.size },
  );
  const surplus = Object.keys(parsed).find((name) =>
    !Object.hasOwn(createOptions, name) &&
    !(name === "preallocation" && parsed[name] === "off")
  );
  if (surplus === "preallocation") {
    throw new BlockError(
      "ENOTSUP",
      "Preallocation is not possible in a stream",
    );
  }
  if (surplus !== undefined) {
    throw new BlockError("ENOTSUP", `'${surplus}' is for a file, not a stream`);
  }
  const values = { ...defaultOptions(createOptions), ...parsed };
  const { rateLimit = 0, signal, filename } = options;
  const throttle = limitedWrites(rateLimit);
  const parts = driver.stream(values, source, target, filename);
  for await (const chunk of gathered(parts)) {
    await throttle?.admit("write", chunk.length, signal);
    yield chunk;
  }
}

/** Combine small parts: each one costs the reader a system call. */
async function* gathered(
  parts: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void> {
  const chunk = allocate(CHUNK_SIZE);
  let filled = 0;
  for await (const part of parts) {
    if (filled + part.length > CHUNK_SIZE && filled > 0) {
      yield chunk.subarray(0, filled);
      filled = 0;
    }
    if (part.length > CHUNK_SIZE / 4 && filled === 0) {
      yield part;
    } else {
      chunk.set(part, filled);
      filled += part.length;
    }
  }
  if (filled > 0) yield chunk.subarray(0, filled);
}

/** The source as drivers see it. */
class Source implements StreamSource {
  readonly #copied: CopySource;
  readonly #options: StreamImageOptions;
  readonly #pace: Pace;
  #read = 0;
  #total = 0;

  constructor(
    whole: Concatenation,
    options: StreamImageOptions,
  ) {
    const first = whole.partAt(0)?.disk;
    const baseOf = options.onlyDifferences && first
      ? () => backingOf(first.node)
      : undefined;
    this.#copied = new CopySource(whole, { ...options, baseOf });
    this.#options = options;
    this.#pace = new Pace(options.signal);
  }

  get size(): number {
    return this.#copied.size;
  }

  get fills(): boolean {
    return this.#options.fill ?? false;
  }

  /** Count the data. */
  async count(): Promise<void> {
    for await (const { kind, length } of this.extents()) {
      if (kind === "data") this.#total += length;
    }
  }

  async *extents(): AsyncGenerator<StreamExtent> {
    for (let offset = 0; offset < this.size;) {
      if (this.#pace.isDue) await this.#pace.rest();
      const extent = await this.#copied.status(offset);
      const { length } = extent;
      const kind = isInherited(extent)
        ? "unallocated"
        : extent.zero && !this.#options.fill
        ? "zero"
        : "data";
      yield { offset, length, kind };
      offset += length;
    }
  }

  async read(offset: number, bytes: Uint8Array): Promise<void> {
    if (this.#pace.isDue) await this.#pace.rest();
    this.#read += bytes.length;
    this.#options.progress?.(this.#read, Math.max(this.#read, this.#total));
    await this.#copied.read(offset, bytes);
  }
}
