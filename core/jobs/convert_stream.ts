/**
 * Copying a stream of bytes of unknown length into a disk.
 *
 * @module
 */
import { allocate, roundUp, SECTOR_SIZE } from "../bytes.ts";
import { checkOptions, writableNodeOf } from "../checks.ts";
import { BlockError, invalid } from "../errors.ts";
import type { Disk } from "../node.ts";
import { limitedWrites, type ThrottleGroup } from "../throttle_group.ts";
import { valueText } from "../values.ts";
import { CONVERT_OPTIONS, copyTargetOptions } from "./convert.ts";
import type { ConvertOptions } from "./convert_options.ts";
import { REQUEST_SIZE } from "./copy.ts";
import { CopyTarget, type CopyTargetOptions } from "./copy_target.ts";
import { Job, type JobNode } from "./job.ts";
import { Pace } from "../abort.ts";

/**
 * How to convert a stream.
 *
 * @category Jobs
 */
export interface ConvertStreamOptions extends
  Pick<
    ConvertOptions,
    | "sparseSize"
    | "targetIsZero"
    | "compressed"
    | "compressionLevel"
    | "rateLimit"
    | "flags"
    | "signal"
  > {
  /**
   * Whether to resize the target to the stream, rounded up to sectors. Default:
   * false; the stream must fit.
   */
  resize?: boolean;
}

/** A growing target doubles, within these bounds, in bytes. */
const [LEAST_GROWTH, MOST_GROWTH] = [16 * 1024 ** 2, 1024 ** 3];

/**
 * Copy the bytes of a raw disk, as they arrive, into `disk`. Zeroes are left
 * out as by `convert`.
 *
 * @returns the length of the stream in bytes.
 * @throws {BlockError} the error of the first failed write; EINVAL if the
 * disk is too small; and whatever the stream throws.
 *
 * @example An upload, stored as qcow2
 * ```ts
 * import {
 *   convertStream,
 *   createImage,
 *   MemoryStore,
 *   openImage,
 * } from "@bdrv/bdrv";
 *
 * const upload = new Response("all bytes of a disk").body!;
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: 0 });
 * await using image = await openImage({ driver: "qcow2", file });
 * await convertStream(upload, image, { resize: true, targetIsZero: true });
 * console.log(image.size); // 512
 * ```
 *
 * @category Jobs
 */
export async function convertStream(
  stream: AsyncIterable<Uint8Array>,
  disk: Disk,
  options: ConvertStreamOptions = {},
): Promise<number> {
  const target = writableNodeOf("Cannot convert", disk);
  checkOptions("convert", options, { ...CONVERT_OPTIONS, resize: "boolean" });
  if (options.resize && !target.truncate) {
    throw new BlockError(
      "ENOTSUP",
      `Cannot convert: driver '${target.driver.name}' cannot be resized`,
    );
  }
  const chunks = (stream as Partial<typeof stream> | undefined)
    ?.[Symbol.asyncIterator];
  if (typeof chunks !== "function") {
    throw invalid(`Cannot convert ${valueText(stream)}: it is not a stream`);
  }
  await using job = new Job(options.signal);
  const filling = new Filling(
    job,
    job.use(target),
    options,
    await copyTargetOptions(target, options),
  );
  for await (const bytes of stream) {
    if (!(bytes instanceof Uint8Array)) {
      throw invalid(
        `Cannot convert a stream of ${valueText(bytes)}: it must be of bytes`,
      );
    }
    await filling.add(bytes);
  }
  return await filling.end();
}

class Filling {
  readonly #job: Job;
  readonly #target: JobNode;
  readonly #writer: CopyTarget;
  readonly #resizes: boolean;
  readonly #signal?: AbortSignal;
  readonly #throttle?: ThrottleGroup;
  readonly #pace: Pace;
  /** Holds whole clusters if they are compressed. */
  readonly #buffer: Uint8Array;
  #filled = 0;
  /** Where on the disk the buffer begins. */
  #position = 0;

  constructor(
    job: Job,
    target: JobNode,
    { resize = false, rateLimit = 0, signal }: ConvertStreamOptions,
    options: CopyTargetOptions,
  ) {
    this.#job = job;
    this.#target = target;
    this.#writer = new CopyTarget(job, target, options);
    this.#resizes = resize;
    this.#signal = signal;
    this.#throttle = limitedWrites(rateLimit);
    this.#pace = new Pace(signal);
    const { clusterSize = 0 } = options.compression ?? {};
    this.#buffer = allocate(Math.max(REQUEST_SIZE, clusterSize));
  }

  async add(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length;) {
      const take = Math.min(
        this.#buffer.length - this.#filled,
        bytes.length - done,
      );
      this.#buffer.set(bytes.subarray(done, done + take), this.#filled);
      this.#filled += take;
      done += take;
      if (this.#filled === this.#buffer.length) await this.#write();
    }
  }

  /** Write the rest; returns the length of the stream. */
  async end(): Promise<number> {
    const length = this.#position + this.#filled;
    const size = roundUp(length, SECTOR_SIZE);
    // A compressed last cluster ends where the disk does: resize first.
    if (this.#resizes) await this.#resize(size);
    const rest = size - this.#position;
    this.#buffer.fill(0, this.#filled, rest);
    this.#filled = rest;
    await this.#write();
    return length;
  }

  async #write(): Promise<void> {
    if (this.#filled === 0) return;
    if (this.#pace.isDue) await this.#pace.rest();
    await this.#throttle?.admit("write", this.#filled, this.#signal);
    await this.#reach(this.#position + this.#filled);
    await this.#writer.write(
      this.#position,
      this.#buffer.subarray(0, this.#filled),
    );
    this.#position += this.#filled;
    this.#filled = 0;
  }

  /** Grow the disk to `end` or beyond. */
  async #reach(end: number): Promise<void> {
    const { size } = this.#target.node;
    if (end <= size) return;
    if (!this.#resizes) {
      throw new BlockError("EINVAL", "output file is smaller than input file");
    }
    // Each change of size rewrites the header of a qcow2 image.
    const growth = Math.min(Math.max(size, LEAST_GROWTH), MOST_GROWTH);
    await this.#resize(Math.max(end, size + growth));
  }

  async #resize(size: number): Promise<void> {
    await this.#job.request(() => this.#target.node.truncate!(size));
  }
}
