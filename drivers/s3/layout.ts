/**
 * Layouts of disks in numbered blocks: each block that is not all zeroes is an
 * object whose key contains its number. nbdkit's S3 plugin and s3backer use the
 * same blocks with different keys.
 *
 * @module
 */
import { BlockError, invalid } from "../../core/errors.ts";
import { isPlainObject } from "../../core/values.ts";
import type { S3Client } from "./client.ts";

/** The keys of a disk's objects. */
export interface Layout {
  /** The prefix of all blocks' keys. */
  readonly prefix: string;
  /** Hexadecimal digits of a number. */
  readonly digits: number;
  /** The key of the lease, which keeps other writers away. */
  readonly leaseKey: string;
  /** Whether a lease is valid until it is released, however long that takes. */
  readonly isEndless: boolean;
  /** The key of our own description of the disk, if it may have one. */
  readonly descriptionKey?: string;
}

/**
 * nbdkit's keys: a slash and sixteen digits. The other objects are ours; nbdkit
 * ignores them.
 */
export function nbdkitLayout(key: string): Layout {
  return {
    prefix: `${key}/`,
    digits: 16,
    leaseKey: `${key}/lease`,
    isEndless: false,
    descriptionKey: `${key}/layout.json`,
  };
}

/** s3backer's keys: eight digits, right after its prefix. */
export function s3backerLayout(key: string): Layout {
  return {
    prefix: key,
    digits: 8,
    leaseKey: `${key}s3backer-mounted`,
    isEndless: true,
  };
}

/** The key of a block. */
export function blockKey({ prefix, digits }: Layout, index: number): string {
  return prefix + index.toString(16).padStart(digits, "0");
}

/** The number of the block with this key; absent for other keys. */
export function blockIndex(
  { prefix, digits }: Layout,
  key: string,
): number | undefined {
  const number = key.slice(prefix.length);
  if (!key.startsWith(prefix) || number.length !== digits) return undefined;
  const index = /^[0-9a-f]+$/.test(number) ? parseInt(number, 16) : NaN;
  return Number.isSafeInteger(index) ? index : undefined;
}

/** The sizes of a disk and its blocks, in bytes. */
export interface Sizes {
  readonly size: number;
  readonly objectSize: number;
}

/** Bounds of the block size, in bytes. */
const [MIN_OBJECT, MAX_OBJECT] = [512, 32 * 1024 ** 2];

/** @throws {BlockError} EINVAL if the sizes are invalid. */
export function checkSizes({ size, objectSize }: Sizes, digits: number): void {
  const isUsable = objectSize >= MIN_OBJECT && objectSize <= MAX_OBJECT &&
    objectSize % MIN_OBJECT === 0;
  if (!isUsable) {
    throw invalid(
      "'object-size' must be a multiple of 512, between 512 and 32 MiB",
    );
  }
  if (!Number.isSafeInteger(size) || size / objectSize > 16 ** digits) {
    throw new BlockError("EFBIG", "The disk is too large for its blocks");
  }
}

/** Our description of a disk; absent if there is none. */
export async function readDescription(
  client: S3Client,
  { descriptionKey: key }: Layout,
  signal?: AbortSignal,
): Promise<Sizes | undefined> {
  if (key === undefined) return undefined;
  let text: string;
  try {
    const { body } = await client.ask({ method: "GET", key, signal }, 4096);
    text = new TextDecoder().decode(body);
  } catch (error) {
    if (error instanceof BlockError && error.code === "ENOENT") return;
    throw error;
  }
  const damaged = () =>
    new BlockError("EINVAL", `The description '${key}' of the disk is damaged`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw damaged();
  }
  if (!isPlainObject(value)) throw damaged();
  const { size, "object-size": objectSize } = value;
  if (typeof size !== "number" || typeof objectSize !== "number") {
    throw damaged();
  }
  return { size, objectSize };
}

/** Store our description of a disk. */
export async function writeDescription(
  client: S3Client,
  { descriptionKey: key }: Layout,
  { size, objectSize }: Sizes,
  signal?: AbortSignal,
): Promise<void> {
  const text = JSON.stringify({ size, "object-size": objectSize });
  const body = new TextEncoder().encode(`${text}\n`);
  const headers = { "content-type": "application/json" };
  await client.ask({ method: "PUT", key: key!, body, headers, signal });
}

/** Headers of s3backer's first block that hold the sizes of the disk. */
export const FILE_SIZE_HEADER = "x-amz-meta-s3backer-filesize";
/** In bytes, as the size of the disk is. */
export const BLOCK_SIZE_HEADER = "x-amz-meta-s3backer-blocksize";

/** The sizes in s3backer's first block; absent if there is none. */
export async function readFirstBlock(
  client: S3Client,
  layout: Layout,
  signal?: AbortSignal,
): Promise<Sizes | undefined> {
  try {
    const key = blockKey(layout, 0);
    const { headers } = await client.ask({ method: "HEAD", key, signal });
    const size = Number(headers.get(FILE_SIZE_HEADER) ?? NaN);
    const objectSize = Number(headers.get("content-length") ?? NaN);
    return size > 0 && objectSize > 0 ? { size, objectSize } : undefined;
  } catch (error) {
    if (error instanceof BlockError && error.code === "ENOENT") return;
    throw error;
  }
}
