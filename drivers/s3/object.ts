/**
 * An object as a disk that is only read.
 *
 * @module
 */
import {
  fillVector,
  type IoVector,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { BlockNode, Extent, ReadFlags } from "../../core/node.ts";
import { BLOCK_SIZE } from "../../core/remote/block_cache.ts";
import {
  discardBody,
  openRanged,
  RangedObject,
  type SendRequest,
} from "../../core/remote/ranged_object.ts";
import { RemoteReader } from "../../core/remote/remote_reader.ts";
import type { DriverTraits } from "../../core/traits.ts";
import type { S3Client } from "./client.ts";
import { S3_FACTS, s3Name } from "./names.ts";

/** The statuses that tell of the object's version. */
const OF_VERSION = [412, 416];

/**
 * Open an object.
 *
 * @param readAhead Most bytes that are fetched ahead.
 * @throws {BlockError} ENOENT if there is none, EACCES …
 */
export async function openObject(
  client: S3Client,
  key: string,
  readAhead: number | undefined,
  signal: AbortSignal | undefined,
): Promise<BlockNode> {
  const { patience, bucket } = client.settings;
  const send: SendRequest = async ({ headers, signal }) => {
    const request = { method: "GET" as const, key, headers, signal };
    const response = await client.send(request, OF_VERSION);
    return response.status === 416
      ? await withRange(client, key, response, signal)
      : response;
  };
  const opened = await openRanged(send, BLOCK_SIZE, patience, signal);
  if (!("head" in opened)) {
    await opened.whole.cancel().catch(() => {});
    throw new BlockError("ENOTSUP", "The service does not read in ranges");
  }
  const { version, head } = opened;
  const object = new RangedObject(send, version, patience);
  const source = {
    size: version.size,
    read: object.read.bind(object) as RangedObject["read"],
  };
  const reader = new RemoteReader(source, head, { readAhead });
  return new ObjectNode(reader, version.size, s3Name(bucket, key));
}

/**
 * The answer to a request for what lies past the end, which some services do
 * not tell.
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
  readonly driver: DriverTraits = S3_FACTS;
  readonly filename: string;
  readonly size: number;
  readonly readOnly = true;
  readonly children = {};
  readonly #reader: RemoteReader;

  constructor(reader: RemoteReader, size: number, filename: string) {
    this.#reader = reader;
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

  status(offset: number, length: number): Promise<Extent> {
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

  close(): Promise<void> {
    return this.#reader.close();
  }
}
