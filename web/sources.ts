/**
 * Blobs and addresses as nodes. What was read is counted, and small reads come
 * from blocks that are kept for a while.
 *
 * @module
 */
import type { IoVector } from "../core/bytes.ts";
import { checkSignal } from "../core/abort.ts";
import { BlockError } from "../core/errors.ts";
import type { BlockNode, Extent, ReadFlags } from "../core/node.ts";
import type { DriverTraits } from "../core/traits.ts";

/** Counts what is read, for all sources of an image. */
export class Meter {
  fetched = 0;
  total = 0;

  /** Count bytes that were read. */
  add(bytes: number): void {
    this.fetched += bytes;
  }
}

/** Reads the bytes from `start` to `end` of something. */
type Fetcher = (
  start: number,
  end: number,
  signal?: AbortSignal,
) => Promise<Uint8Array>;

const BLOCK = 128 * 1024;
/** Blocks that are kept. */
const MAX_BLOCKS = 128;

/** A file as a node. */
export function blobNode(blob: Blob, name: string, meter: Meter): BlockNode {
  const read: Fetcher = async (start, end) => {
    try {
      return new Uint8Array(await blob.slice(start, end).arrayBuffer());
    } catch (error) {
      throw new BlockError("EIO", `'${name}' cannot be read any more`, {
        cause: error,
      });
    }
  };
  return new SourceNode("blob", name, blob.size, read, meter);
}

/** Most bytes that are fetched whole where a server has no ranges. */
const MAX_WHOLE = 256 * 1024 * 1024;

/**
 * What is at an address as a node, read by ranges.
 *
 * @throws {BlockError} EIO if it cannot be fetched; ENOTSUP if the server has no
 * ranges, and it is large.
 */
export async function urlNode(url: string, meter: Meter): Promise<BlockNode> {
  const first = await request(url, 0, BLOCK);
  if (first.status === 200) return await wholeNode(first, url, meter);
  const size = await sizeOf(first, url);
  const etag = first.headers.get("etag");
  const start = new Uint8Array(await first.arrayBuffer());
  const read: Fetcher = async (start, end, signal) => {
    const answer = await request(url, start, end, signal);
    const now = answer.headers.get("etag");
    if (answer.status !== 206 || now !== etag) {
      await answer.body?.cancel();
      throw new BlockError("EIO", `'${url}' has changed meanwhile`);
    }
    const bytes = new Uint8Array(await answer.arrayBuffer());
    if (bytes.length === end - start) return bytes;
    throw new BlockError("EIO", `'${url}' is shorter than it was`);
  };
  return new SourceNode("http", url, size, read, meter, start);
}

async function request(
  url: string,
  start: number,
  end: number,
  signal?: AbortSignal,
): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(url, {
      headers: { range: `bytes=${start}-${end - 1}` },
      signal,
    });
  } catch (error) {
    checkSignal(signal);
    // A browser does not tell a page which of these it was.
    throw new BlockError(
      "EIO",
      `'${url}' cannot be fetched: there is no such server, or it does not ` +
        "permit this page to read it (CORS)",
      { cause: error },
    );
  }
  if (answer.ok) return answer;
  await answer.body?.cancel();
  const { status, statusText } = answer;
  throw new BlockError(
    status === 404 ? "ENOENT" : "EIO",
    `'${url}': ${status} ${statusText}`.trim(),
  );
}

/** The size of something of which a part was answered. */
async function sizeOf({ headers }: Response, url: string): Promise<number> {
  const range = headers.get("content-range");
  const total = /\/(\d+)$/.exec(range ?? "")?.[1];
  if (total !== undefined) return Number(total);
  // Another origin's server has to permit that this header is read.
  const head = await fetch(url, { method: "HEAD" }).catch(() => undefined);
  const length = head?.ok ? head.headers.get("content-length") : null;
  if (length !== null && length !== undefined) return Number(length);
  throw new BlockError(
    "ENOTSUP",
    `The server does not say how long '${url}' is`,
  );
}

async function wholeNode(
  answer: Response,
  url: string,
  meter: Meter,
): Promise<BlockNode> {
  const length = Number(answer.headers.get("content-length") ?? Infinity);
  if (length <= MAX_WHOLE) {
    return blobNode(await answer.blob(), url, meter);
  }
  await answer.body?.cancel();
  throw new BlockError(
    "ENOTSUP",
    `The server of '${url}' does not answer ranges, so that all of it would ` +
      "have to be fetched",
  );
}

class SourceNode implements BlockNode {
  readonly driver: DriverTraits;
  readonly filename: string;
  readonly size: number;
  readonly readOnly = true;
  readonly children = {};
  readonly #read: Fetcher;
  readonly #meter: Meter;
  /** The blocks, the one used last at the end. */
  readonly #blocks = new Map<number, Promise<Uint8Array>>();

  constructor(
    driver: string,
    filename: string,
    size: number,
    read: Fetcher,
    meter: Meter,
    /** Its first block, if that was read already. */
    start?: Uint8Array,
  ) {
    this.driver = { name: driver, role: "protocol" };
    this.filename = filename;
    this.size = size;
    this.#read = read;
    this.#meter = meter;
    meter.total += size;
    if (start?.length !== Math.min(size, BLOCK)) return;
    meter.add(start.length);
    this.#blocks.set(0, Promise.resolve(start));
  }

  async readv(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    for (const part of iov) {
      await this.#fill(offset, part, flags?.signal);
      offset += part.length;
    }
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async status(offset: number, length: number): Promise<Extent> {
    const place = { allocated: true, hostOffset: offset, file: this };
    const inside = this.size - offset;
    if (inside <= 0) return { length, zero: true, ...place };
    return { length: Math.min(length, inside), zero: false, ...place };
  }

  async close(): Promise<void> {}

  /** Fill a buffer; past the end there are zeroes. */
  async #fill(
    offset: number,
    target: Uint8Array,
    signal?: AbortSignal,
  ): Promise<void> {
    const end = Math.min(offset + target.length, this.size);
    target.fill(0, Math.max(0, end - offset));
    if (end - offset >= 4 * BLOCK) {
      target.set(await this.#fetch(offset, end, signal));
      return;
    }
    for (let at = offset; at < end;) {
      const start = at - at % BLOCK;
      const block = await this.#block(start);
      const next = Math.min(start + BLOCK, end);
      target.set(block.subarray(at - start, next - start), at - offset);
      at = next;
    }
  }

  async #block(start: number): Promise<Uint8Array> {
    let block = this.#blocks.get(start);
    if (block) this.#blocks.delete(start);
    else {
      // Others may wait for it as well, so that nobody's signal ends it.
      block = this.#fetch(start, Math.min(start + BLOCK, this.size));
      block.catch(() => this.#blocks.delete(start));
    }
    this.#blocks.set(start, block);
    if (this.#blocks.size > MAX_BLOCKS) {
      this.#blocks.delete(this.#blocks.keys().next().value!);
    }
    return await block;
  }

  async #fetch(
    start: number,
    end: number,
    signal?: AbortSignal,
  ): Promise<Uint8Array> {
    const bytes = await this.#read(start, end, signal);
    this.#meter.add(bytes.length);
    return bytes;
  }
}
