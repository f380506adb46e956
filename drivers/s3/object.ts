/**
 * An object as a read-only disk.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import {
  fillVector,
  type IoVector,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type {
  BlockNode,
  Extent,
  ReadFlags,
  RequestFlags,
} from "../../core/node.ts";
import {
  discardBody,
  openRanged,
  RangedObject,
  type SendRequest,
  type Version,
} from "../../core/remote/ranged_object.ts";
import { RemoteReader } from "../../core/remote/remote_reader.ts";
import type { DriverTraits } from "../../core/traits.ts";
import type { S3Client } from "./client.ts";
import { S3_TRAITS, s3Name } from "./names.ts";

/** Statuses that depend on the object's version. */
const OF_VERSION = [304, 412, 416];

/** Bytes fetched on opening: the metadata of most images. */
const HEAD = 320 * 1024;

/** An object that several nodes of this process may share. */
interface Shared {
  readonly version: Version;
  readonly reader: RemoteReader;
  users: number;
}

/** Objects being read, keyed by everything that distinguishes them. */
const objects = new Map<string, Shared>();

/**
 * Open an object.
 *
 * @param readAhead Most bytes read ahead.
 * @throws {BlockError} ENOENT if there is none, EACCES …
 */
export async function openObject(
  client: S3Client,
  key: string,
  readAhead: number | undefined,
  signal: AbortSignal | undefined,
): Promise<BlockNode> {
  const { base, patience, bucket, credentials } = client.settings;
  const send: SendRequest = async ({ headers, signal }) => {
    const request = { method: "GET" as const, key, headers, signal };
    const response = await client.send(request, OF_VERSION);
    return response.status === 416
      ? await withRange(client, key, response, signal)
      : response;
  };
  const id = JSON.stringify([
    base,
    key,
    credentials?.accessKeyId,
    readAhead,
    patience,
  ]);
  const before = objects.get(id)?.version;
  const opened = await openRanged(send, HEAD, patience, signal, before);
  if (!("head" in opened)) {
    await opened.whole.cancel().catch(() => {});
    throw new BlockError("ENOTSUP", "The service does not read in ranges");
  }
  const { version, head } = opened;
  let shared = objects.get(id);
  if (!shared || !isSame(shared.version, version)) {
    const object = new RangedObject(send, version, patience);
    const source = { size: version.size, read: object.read.bind(object) };
    const reader = new RemoteReader(source, head, { readAhead });
    shared = { version, reader, users: 0 };
    objects.set(id, shared);
  }
  shared.users++;
  const { reader } = shared;
  return new ObjectNode(reader, version.size, s3Name(bucket, key), async () => {
    if (--shared.users > 0) return;
    if (objects.get(id) === shared) objects.delete(id);
    await reader.close();
  });
}

function isSame(one: Version, other: Version): boolean {
  return one.etag !== undefined && one.etag === other.etag &&
    one.size === other.size;
}

/**
 * Complete a response to a request past the end, for which some services omit
 * the size.
 */
async function withRange(
  client: S3Client,
  key: string,
  response: Response,
  signal: AbortSignal,
): Promise<Response> {
  if (response.headers.has("content-range")) return response;
  await discardBody(response);
  const { headers } = await client.ask({ method: "HEAD", key, signal });
  const size = headers.get("content-length");
  return new Response(null, {
    status: 416,
    headers: {
      etag: headers.get("etag") ?? "",
      "content-range": `bytes */${size}`,
    },
  });
}

class ObjectNode implements BlockNode {
  readonly driver: DriverTraits = S3_TRAITS;
  readonly filename: string;
  readonly size: number;
  readonly readOnly = true;
  readonly children = {};
  readonly #reader: RemoteReader;
  /** Releases the reader. */
  readonly close: () => Promise<void>;

  constructor(
    reader: RemoteReader,
    size: number,
    filename: string,
    close: () => Promise<void>,
  ) {
    this.#reader = reader;
    this.close = close;
    this.size = size;
    this.filename = filename;
  }

  async readv(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const length = vectorLength(iov);
    const inside = Math.max(0, Math.min(length, this.size - offset));
    if (inside > 0) {
      const part = sliceVector(iov, 0, inside);
      await this.#reader.readv(offset, part, flags?.signal);
    }
    if (inside < length) fillVector(iov, inside, length - inside);
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    checkSignal(flags?.signal);
    const place = { allocated: true, hostOffset: offset, file: this };
    const inside = Math.min(length, this.size - offset);
    return Promise.resolve(
      inside > 0
        ? { length: inside, zero: false, ...place }
        : { length, zero: true, ...place },
    );
  }

  info(): Promise<{ actualSize: number }> {
    return Promise.resolve({ actualSize: this.size });
  }
}
