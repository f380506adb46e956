/**
 * One version of an object on an HTTP server, read in ranges.
 *
 * Ranges and conditions follow RFC 9110, sections 13 and 14. Reads are pinned
 * to the version that was opened: if the server has another one, or may have,
 * all further reads fail, so that versions are never mixed.
 *
 * @module
 */
import { unlessAborted } from "../abort.ts";
import { BlockError } from "../errors.ts";
import { shortened } from "../values.ts";
import { type Patience, pauseOf, retrying, TransientError } from "./retry.ts";

/** A request to be sent to the object's URL. */
export interface RangeRequest {
  /** Default: `GET`. */
  readonly method?: "HEAD";
  /** Its headers, in lower case. */
  readonly headers: Readonly<Record<string, string>>;
  /** Cancels the request and its response. */
  readonly signal: AbortSignal;
}

/**
 * Sends a request and returns the response, whatever its status. It follows
 * redirects, authorises and signs as needed.
 *
 * @throws {TransientError} if the request can be repeated, {@linkcode BlockError}
 * if that is useless.
 */
export type SendRequest = (request: RangeRequest) => Promise<Response>;

/** What identifies one version of an object. */
export interface Version {
  /** Bytes. */
  readonly size: number;
  /** The entity tag, quoted as it was sent. */
  readonly etag?: string;
  /** The time of the last change, as it was sent. */
  readonly lastModified?: string;
  /**
   * Whether a browser requests it on behalf of another server's page. It then
   * reveals only some response headers, and asks the server's permission to
   * send conditions, which few servers grant.
   */
  readonly isForeign?: boolean;
}

/** The response to the first request. */
export type Opened =
  /** Ranges can be read; `head` holds the first bytes. */
  | { readonly version: Version; readonly head: Uint8Array }
  /**
   * The server does not support ranges, and is sending everything. The size is
   * absent if the server does not announce it.
   */
  | {
    readonly version: Omit<Version, "size"> & { readonly size?: number };
    readonly whole: ReadableStream<Uint8Array>;
    /** Whether a premature end would be noticed. */
    readonly hasEnd: boolean;
  };

/** The entity tag, if it guarantees equal bytes. */
function strongTag({ etag }: Version): string | undefined {
  // A weak one never matches a range, by RFC 9110, section 13.1.1.
  return etag?.startsWith("W/") ? undefined : etag;
}

/** Whether a version can be told from others for certain. */
export function isPinned({ etag, lastModified }: Omit<Version, "size">) {
  return etag !== undefined || lastModified !== undefined;
}

/**
 * Request the first bytes of an object.
 *
 * @param length How many bytes, at least one.
 * @param known A version that need not be sent again: if it is still current,
 * `head` is empty.
 * @throws {BlockError} ENOENT, EACCES, EIO …
 */
export async function openRanged(
  send: SendRequest,
  length: number,
  patience: Patience,
  signal?: AbortSignal,
  known?: Version,
): Promise<Opened> {
  return await retrying(patience, signal, async (signal, progress) => {
    // Each attempt starts over: received bytes are no progress.
    const alive = () => progress(0);
    const headers: Record<string, string> = rangeHeaders(0, length);
    const tag = known && (known.isForeign ? undefined : strongTag(known));
    if (tag) headers["if-none-match"] = tag;
    // The stream of a whole object outlives this attempt's timeout.
    const outer = new AbortController();
    const leave = () => outer.abort(signal.reason);
    signal.addEventListener("abort", leave, { once: true });
    const response = await send({ headers, signal: outer.signal });
    try {
      progress(0);
      if (tag && response.status === 304) {
        return { version: known, head: new Uint8Array() };
      }
      checkEncoding(response);
      const version = versionOf(response);
      if (response.status === 206) {
        const { start, end, size } = contentRange(
          response,
          isRangeHidden(response)
            ? { offset: 0, size: await askSize(send, signal) }
            : undefined,
        );
        if (start !== 0 || end > length) {
          throw wrongRange(response, 0, length);
        }
        const head = new Uint8Array(end);
        await readBody(response, [head], 0, end, signal, alive);
        return { version: { ...version, size }, head };
      }
      if (response.status === 416) {
        discardBody(response);
        const empty = /^bytes \*\/0+$/.test(
          response.headers.get("content-range") ?? "",
        );
        if (empty) {
          return { version: { ...version, size: 0 }, head: new Uint8Array() };
        }
      }
      if (response.status !== 200) throw statusError(response);
      const size = contentLength(response);
      if (size !== undefined && size <= length) {
        const head = new Uint8Array(size);
        await readBody(response, [head], 0, size, signal, alive);
        return { version: { ...version, size }, head };
      }
      return {
        version: { ...version, size },
        whole: response.body ?? new ReadableStream<Uint8Array>(),
        hasEnd: size !== undefined || response.url.startsWith("https:") ||
          response.headers.has("transfer-encoding"),
      };
    } catch (error) {
      discardBody(response);
      throw error;
    } finally {
      signal.removeEventListener("abort", leave);
    }
  });
}

/** Reads ranges of one version of an object. */
export class RangedObject {
  /** The version that is read. */
  readonly version: Version;
  readonly #send: SendRequest;
  readonly #patience: Patience;
  /** Why nothing can be read any more: the object has changed. */
  #changed?: BlockError;

  /** Read the version that {@linkcode openRanged} has found. */
  constructor(send: SendRequest, version: Version, patience: Patience) {
    this.#send = send;
    this.version = version;
    this.#patience = patience;
  }

  /**
   * Fill `parts`, one after the other, from `offset` on. The range must be
   * within the object.
   *
   * @param filled Called with the index of each part that is complete.
   * @throws {BlockError} EIO … if it cannot be read, or has changed.
   */
  async read(
    offset: number,
    parts: readonly Uint8Array[],
    signal: AbortSignal | undefined,
    filled: (part: number) => void,
  ): Promise<void> {
    let length = 0;
    for (const part of parts) length += part.length;
    let done = 0;
    await retrying(this.#patience, signal, async (signal, progress) => {
      // An attempt continues where the last one ended.
      while (done < length) {
        if (this.#changed) throw this.#changed;
        const headers = {
          ...rangeHeaders(offset + done, length - done),
          ...this.#conditions(),
        };
        const response = await this.#send({ headers, signal });
        try {
          progress(0);
          const sent = this.#check(response, offset + done, length - done);
          await readBody(response, parts, done, sent, signal, (arrived) => {
            done += arrived;
            progress(arrived);
          }, filled);
        } catch (error) {
          discardBody(response);
          throw error;
        }
      }
    });
  }

  /** Headers under which the server may send content. */
  #conditions(): Record<string, string> {
    const { etag, lastModified, isForeign } = this.version;
    // The response is checked in any case.
    if (isForeign) return {};
    const tag = strongTag(this.version);
    if (tag) return { "if-match": tag };
    return etag === undefined && lastModified !== undefined
      ? { "if-unmodified-since": lastModified }
      : {};
  }

  /**
   * Check that a response has the requested range of the same version.
   *
   * @returns the number of bytes in it.
   */
  #check(response: Response, offset: number, length: number): number {
    const { status } = response;
    if (status === 412 || status === 416) throw this.#change();
    if (status !== 206 && status !== 200) throw statusError(response);
    checkEncoding(response);
    const { etag, lastModified } = versionOf(response);
    const { version } = this;
    const isOther = etag !== version.etag ||
      (etag === undefined && lastModified !== version.lastModified);
    if (isOther) throw this.#change();
    if (status === 200) {
      const size = contentLength(response);
      if (size !== undefined && size !== version.size) throw this.#change();
      if (offset === 0 && length === version.size) return length;
      throw new BlockError(
        "EIO",
        "The server has sent the whole object for a range of it",
      );
    }
    const { start, end, size } = contentRange(response, {
      offset,
      size: version.size,
    });
    if (size !== version.size) throw this.#change();
    // It may send less than was requested; the rest is requested again.
    if (start !== offset || end > offset + length) {
      throw wrongRange(response, offset, length);
    }
    return end - start;
  }

  #change(): BlockError {
    return this.#changed = new BlockError(
      "EIO",
      "The object on the server has changed since it was opened",
    );
  }
}

function rangeHeaders(offset: number, length: number): Record<string, string> {
  return {
    range: `bytes=${offset}-${offset + length - 1}`,
    // Ranges of compressed content would be useless.
    "accept-encoding": "identity",
  };
}

function versionOf({ headers, type }: Response): Omit<Version, "size"> {
  return {
    etag: headers.get("etag") || undefined,
    lastModified: headers.get("last-modified") ?? undefined,
    ...(type === "cors" && { isForeign: true }),
  };
}

/** Whether a browser conceals which range was sent. */
function isRangeHidden({ headers, type }: Response): boolean {
  return type === "cors" && !headers.has("content-range");
}

/** The size of an object, by a separate request: browsers reveal that. */
async function askSize(
  send: SendRequest,
  signal: AbortSignal,
): Promise<number | undefined> {
  const response = await send({ method: "HEAD", headers: {}, signal });
  discardBody(response);
  return response.ok ? contentLength(response) : undefined;
}

function contentLength({ headers }: Response): number | undefined {
  const text = headers.get("content-length");
  if (text === null) return undefined;
  const length = /^\d+$/.test(text) ? Number(text) : NaN;
  if (Number.isSafeInteger(length)) return length;
  throw new BlockError(
    "EIO",
    `The server's Content-Length '${shortened(text, 80)}' is invalid`,
  );
}

/**
 * The range in a response; `end` is the first byte after it.
 *
 * @param known The offset, and the size of the object, if a browser conceals
 * the range.
 */
function contentRange(
  response: Response,
  known?: { readonly offset: number; readonly size: number | undefined },
): { start: number; end: number; size: number } {
  const { headers } = response;
  const type = headers.get("content-type") ?? "";
  if (/^multipart\/byteranges\b/i.test(type)) {
    throw new BlockError("EIO", "The server has sent ranges in several parts");
  }
  const text = headers.get("content-range");
  if (known?.size !== undefined && isRangeHidden(response)) {
    const { offset: start, size } = known;
    return { start, end: start + (contentLength(response) ?? NaN), size };
  }
  if (text === null) {
    throw new BlockError(
      "EIO",
      "The server does not say which range it has sent (in a browser, it has " +
        "to expose Content-Range)",
    );
  }
  const [, first, last, total] =
    /^bytes (\d+)-(\d+)\/(\d+|\*)$/i.exec(text.trim()) ?? [];
  const [start, end, size] = [Number(first), Number(last) + 1, Number(total)];
  if (total === "*") {
    throw new BlockError(
      "EIO",
      "The server does not announce the size of the object",
    );
  }
  if (start < end && end <= size && Number.isSafeInteger(size)) {
    return { start, end, size };
  }
  throw new BlockError(
    "EIO",
    `The server's Content-Range '${shortened(text, 80)}' is invalid`,
  );
}

function wrongRange(
  { headers }: Response,
  offset: number,
  length: number,
): BlockError {
  const text = shortened(headers.get("content-range") ?? "", 80);
  return new BlockError(
    "EIO",
    `The server has sent '${text}' for bytes ${offset}-${offset + length - 1}`,
  );
}

/** Refuse content that is encoded, since it is not the object's own bytes. */
function checkEncoding({ headers }: Response): void {
  const encoding = headers.get("content-encoding") ?? "";
  if (encoding === "" || /^identity$/i.test(encoding.trim())) return;
  throw new BlockError(
    "EIO",
    `The server sends it encoded (Content-Encoding: ${
      shortened(encoding, 40)
    }) although it was asked not to`,
  );
}

/** Statuses of failures that may be transient. */
const TRANSIENT = new Set([408, 425, 429, 500, 502, 503, 504]);

/** The error for a status that is not success. */
export function statusError(response: Response): BlockError {
  const { status } = response;
  const message = `The requested URL returned error: ${status}`;
  if (TRANSIENT.has(status)) {
    return new TransientError("EIO", message, pauseOf(response));
  }
  const code = status === 404 || status === 410
    ? "ENOENT"
    : status === 401 || status === 403 || status === 407
    ? "EACCES"
    : "EIO";
  return new BlockError(code, message);
}

/**
 * Read a body into `parts`, from byte `done` of them on. The response announces
 * `rest` bytes.
 *
 * @throws {TransientError} if it ends early, {@linkcode BlockError} if it is too
 * long.
 */
async function readBody(
  response: Response,
  parts: readonly Uint8Array[],
  done: number,
  rest: number,
  signal: AbortSignal,
  arrived: (bytes: number) => void,
  filled?: (part: number) => void,
): Promise<void> {
  let [part, at] = [0, done];
  while (part < parts.length && at >= parts[part].length) {
    at -= parts[part++].length;
  }
  for await (const bytes of chunksOf(response, signal)) {
    rest -= bytes.length;
    if (rest < 0) throw sentMore();
    for (let taken = 0; taken < bytes.length;) {
      if (part === parts.length) throw sentMore();
      const target = parts[part];
      const take = Math.min(bytes.length - taken, target.length - at);
      target.set(bytes.subarray(taken, taken + take), at);
      taken += take;
      at += take;
      if (at === target.length) {
        filled?.(part++);
        at = 0;
      }
    }
    arrived(bytes.length);
  }
  if (rest > 0 && rest < Infinity) {
    throw new TransientError(
      "EIO",
      "The server has sent less than it announced",
    );
  }
}

function sentMore(): BlockError {
  return new BlockError("EIO", "The server has sent more than it announced");
}

/** The chunks of a body, which is cancelled if not all are consumed. */
async function* chunksOf(
  { body }: Response,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const reader = body?.getReader();
  let isEnd = reader === undefined;
  try {
    while (!isEnd) {
      const { value, done } = await readChunk(reader!, signal);
      isEnd = done;
      if (value) yield value;
    }
  } finally {
    if (!isEnd) reader!.cancel().catch(() => {});
  }
}

async function readChunk(
  reader: ReadableStreamDefaultReader<Uint8Array>,
  signal: AbortSignal,
): Promise<ReadableStreamReadResult<Uint8Array>> {
  try {
    // Node.js 22 never settles a read that is aborted right after the last
    // byte.
    return await unlessAborted(reader.read(), signal);
  } catch {
    throw new TransientError(
      "ECONNRESET",
      "The connection to the server broke",
    );
  }
}

/** Cancel a response whose body is not needed. */
export function discardBody({ body }: Response): void {
  if (body && !body.locked) body.cancel().catch(() => {});
}
