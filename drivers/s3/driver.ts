/**
 * The protocol driver `s3`: an object, read-only or stored front to back; or a
 * disk in numbered blocks, each an object, with random writes.
 *
 * @module
 */
import type {
  BlockDriver,
  OpenContext,
  StoreContext,
} from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { type OptionValues, parseOptions } from "../../core/options.ts";
import { DEFAULT_READ_AHEAD } from "../../core/remote/remote_reader.ts";
import { S3Client } from "./client.ts";
import { Disk, removeBlocks } from "./disk.ts";
import {
  checkSizes,
  type Layout,
  nbdkitLayout,
  readDescription,
  readFirstBlock,
  s3backerLayout,
  type Sizes,
  writeDescription,
} from "./layout.ts";
import { Lease, readLease } from "./lease.ts";
import { hasBlocks, OPEN_OPTIONS, parseS3Name, S3_TRAITS } from "./names.ts";
import { openObject } from "./object.ts";
import { checkedKey, type FindSecret, settingsOf } from "./settings.ts";
import { upload } from "./upload.ts";

/** Objects of an S3 service: `s3://bucket/key`. */
export const s3Driver: BlockDriver = {
  ...S3_TRAITS,
  async open(options, context) {
    return await new Place(options).open(context);
  },
  async create(options, context) {
    const { size = 0, preallocation, ...rest } = options;
    if ((preallocation ?? "off") !== "off") {
      throw new BlockError("ENOTSUP", "Objects of S3 cannot be preallocated");
    }
    await new Place(rest).create(Number(size), context.secret);
  },
  async store(options, chunks, context) {
    await new Place(options).store(chunks, context);
  },
  storesWhole: (options) => !hasBlocks(options),
};

/** The location that options describe. */
class Place {
  readonly #options: OptionValues;
  readonly #key: string;
  readonly #hasBlocks: boolean;
  readonly #layout: Layout;
  readonly #leaseSeconds: number;

  constructor(given: OptionValues) {
    const { url, ...options } = parseOptions(OPEN_OPTIONS, given);
    if (url !== undefined) {
      if (options.bucket !== undefined || options.key !== undefined) {
        throw invalid("'url' cannot be used with 'bucket' and 'key'");
      }
      Object.assign(options, parseS3Name(String(url)));
    }
    const isS3backer = options.layout === "s3backer";
    this.#options = options;
    this.#key = checkedKey(options.key, isS3backer);
    this.#hasBlocks = hasBlocks(options);
    this.#layout = isS3backer
      ? s3backerLayout(this.#key)
      : nbdkitLayout(this.#key);
    const { lease = 30 } = options;
    this.#leaseSeconds = lease as number;
  }

  async #client(secret: FindSecret): Promise<S3Client> {
    return new S3Client(await settingsOf(this.#options, secret));
  }

  async open(context: OpenContext): Promise<BlockNode> {
    const client = await this.#client(context.secret);
    const { signal } = context;
    const given = this.#options.readahead as number | undefined;
    const readAhead = given ?? DEFAULT_READ_AHEAD;
    if (this.#hasBlocks) {
      return await this.#openDisk(client, context, readAhead);
    }
    let node: BlockNode;
    try {
      node = await openObject(client, this.#key, readAhead, signal);
    } catch (error) {
      if (!isMissing(error)) throw error;
      const sizes = await this.#described(client, signal);
      if (!sizes) throw error;
      return await this.#openDisk(client, context, readAhead, sizes);
    }
    if (context.readOnly) return node;
    await node.close();
    throw new BlockError("EACCES", "An object of S3 cannot be changed", {
      hint: "One that was created with 'object-size' is a disk in blocks, " +
        "which can be written to.",
    });
  }

  /** Our description of a disk, if there is one in place of an object. */
  async #described(
    client: S3Client,
    signal?: AbortSignal,
  ): Promise<Sizes | undefined> {
    try {
      return await readDescription(client, this.#layout, signal);
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
  }

  async #openDisk(
    client: S3Client,
    context: OpenContext,
    readAhead: number,
    known?: Sizes,
  ): Promise<BlockNode> {
    const { readOnly, noFlush, signal } = context;
    const layout = this.#layout;
    const described = known ?? await this.#described(client, signal);
    const sizes = described
      ? this.#agreed(described)
      : await this.#given(client, signal);
    checkSizes(sizes, layout.digits);
    const options = {
      key: this.#key,
      layout,
      isDescribed: described !== undefined,
      readAhead,
      readOnly,
      noFlush,
      sizes,
    };
    if (readOnly) {
      const lease = await readLease(client, layout, signal);
      const foreign = lease && lease.rest > 0 ? lease : undefined;
      return new Disk(client, { ...options, foreign });
    }
    const lease = await this.#acquire(client, signal);
    if (!lease || !described) {
      return new Disk(client, { ...options, lease });
    }
    try {
      // The last writer may have been active until now.
      const sizes = await readDescription(client, layout, signal) ?? described;
      checkSizes(sizes, layout.digits);
      return new Disk(client, { ...options, sizes, lease });
    } catch (error) {
      await lease.release().catch(() => {});
      throw error;
    }
  }

  async #acquire(
    client: S3Client,
    signal?: AbortSignal,
  ): Promise<Lease | undefined> {
    const seconds = this.#leaseSeconds;
    if (seconds === 0) return undefined;
    return await Lease.acquire(client, this.#layout, seconds, signal);
  }

  /** The sizes of the description, which options may only repeat. */
  #agreed(described: Sizes): Sizes {
    const { size, "object-size": objectSize } = this.#options;
    const isOther = (objectSize ?? described.objectSize) !==
        described.objectSize || (size ?? described.size) !== described.size;
    if (!isOther) return described;
    throw invalid(
      `The disk was created with size=${described.size} and ` +
        `object-size=${described.objectSize}`,
    );
  }

  /** The sizes of a disk created by another program. */
  async #given(client: S3Client, signal?: AbortSignal): Promise<Sizes> {
    const { size, "object-size": objectSize, layout } = this.#options;
    const found = layout === "s3backer"
      ? await readFirstBlock(client, this.#layout, signal)
      : undefined;
    if (
      found && objectSize !== undefined && objectSize !== found.objectSize
    ) {
      throw invalid(
        `The disk was created with object-size=${found.objectSize}`,
      );
    }
    const sizes = {
      size: (size ?? found?.size) as number | undefined,
      objectSize: (objectSize ?? found?.objectSize) as number | undefined,
    };
    if (sizes.size === undefined || sizes.objectSize === undefined) {
      throw invalid(
        "Both 'size' and 'object-size' are needed: the disk does not tell them",
      );
    }
    return sizes as Sizes;
  }

  async create(size: number, secret: FindSecret): Promise<void> {
    const { "object-size": objectSize, layout } = this.#options;
    if (objectSize === undefined) {
      throw new BlockError(
        "ENOTSUP",
        "An object of S3 is written whole, and cannot be changed afterwards",
        {
          hint: "With -o object-size=1M, it becomes a disk in blocks, which " +
            "can be; or 'convert' an image to it.",
        },
      );
    }
    const sizes = { size, objectSize: objectSize as number };
    checkSizes(sizes, this.#layout.digits);
    if (layout === "s3backer") return await this.#useExisting(secret, sizes);
    const client = await this.#client(secret);
    await this.#refuseObject(client);
    const lease = await this.#acquire(client);
    try {
      await removeBlocks(client, this.#layout, lease, sizes.objectSize);
      lease?.check();
      await writeDescription(client, this.#layout, sizes, lease?.signal);
    } finally {
      await lease?.release();
    }
  }

  /** An s3backer disk has a fixed size, and is not created here. */
  async #useExisting(secret: FindSecret, { size }: Sizes): Promise<void> {
    const client = await this.#client(secret);
    const given = await this.#given(client);
    if (size > given.size) {
      throw new BlockError("ENOSPC", "The disk of s3backer's is smaller");
    }
  }

  /**
   * Refuse a disk where an object has the key: it would be found before the
   * blocks.
   */
  async #refuseObject(client: S3Client): Promise<void> {
    try {
      await client.ask({ method: "HEAD", key: this.#key });
    } catch (error) {
      if (isMissing(error)) return;
      throw error;
    }
    throw new BlockError("EEXIST", "There is an object with this key already");
  }

  async store(
    chunks: AsyncIterable<Uint8Array>,
    { expected, signal, secret }: StoreContext,
  ): Promise<void> {
    const client = await this.#client(secret);
    if (await this.#described(client, signal)) {
      throw new BlockError(
        "EEXIST",
        "There is a disk in numbered blocks with this key already",
      );
    }
    const partSize = this.#options["part-size"] as number | undefined;
    await upload(client, this.#key, chunks, {
      partSize,
      expected,
      signal,
      acquire: (signal) => this.#acquire(client, signal),
    });
  }
}

/** Whether the object does not exist, as far as can be told. */
function isMissing(error: unknown): boolean {
  // Without permission to list a bucket, missing objects are reported as
  // denied.
  return error instanceof BlockError &&
    (error.code === "ENOENT" || error.code === "EACCES");
}
