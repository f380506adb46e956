/**
 * Signed requests to a bucket, with retries, and their responses.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { fetchOnce, NoConnectionError } from "../../core/remote/fetch.ts";
import { pauseOf, retrying, TransientError } from "../../core/remote/retry.ts";
import { ConflictError, element, serviceError } from "./errors.ts";
import type { Settings } from "./settings.ts";

/** A request to a bucket. */
export interface S3Request {
  readonly method: "GET" | "PUT" | "POST" | "DELETE" | "HEAD";
  /** Empty for the bucket itself. */
  readonly key: string;
  readonly query?: { readonly [name: string]: string };
  /** Names are in lower case. */
  readonly headers?: { readonly [name: string]: string };
  readonly body?: Uint8Array<ArrayBuffer>;
  readonly signal?: AbortSignal;
}

/** A complete response. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Uint8Array<ArrayBuffer>;
}

/** Most bytes of a response other than an object's content. */
const MAX_TEXT = 16 * 1024 * 1024;
/** Bytes per millisecond of the slowest useful connection. */
const SLOWEST = 128;

/** Statuses of success. */
const GOOD = new Set([200, 204, 206]);

const EMPTY = new Uint8Array();

/** Makes requests to one bucket. */
export class S3Client {
  readonly settings: Settings;
  /** Keys derived by `aws4fetch` from the secret one, by day. */
  readonly #derived = new Map<string, ArrayBuffer>();
  /**
   * Whether the service compares the tags in conditions without their quotes,
   * as Ceph's gateway does; absent if unknown.
   */
  #takesBareTags?: boolean;
  #hasAnswered = false;
  #now?: number;

  constructor(settings: Settings) {
    this.settings = settings;
  }

  /** The service's time as of its last response, in milliseconds. */
  get now(): number {
    return this.#now ?? Date.now();
  }

  /**
   * Make a request, with retries, and wait for the complete response.
   *
   * @param limit Most bytes of the response.
   * @param again Called before a request is repeated, which the service may
   * have carried out the first time.
   * @throws {ConflictError} if a condition does not hold;
   * {@linkcode BlockError} for other failures.
   */
  async ask(
    request: S3Request,
    limit = MAX_TEXT,
    again?: () => void,
  ): Promise<Answer> {
    const { method, headers } = request;
    const tag = headers?.["if-match"];
    if (method === "GET" || tag === undefined) {
      return await this.#ask(request, limit, again);
    }
    const bare = {
      ...request,
      headers: { ...headers, "if-match": tag.replace(/^"(.*)"$/, "$1") },
    };
    const before = this.#takesBareTags;
    if (before) return await this.#ask(bare, limit, again);
    try {
      const answer = await this.#ask(request, limit, again);
      this.#takesBareTags = false;
      return answer;
    } catch (error) {
      // Another request may have found it out meanwhile.
      const isDoubtful = error instanceof ConflictError &&
        before === undefined && this.#takesBareTags !== false;
      if (!isDoubtful) throw error;
    }
    const answer = await this.#ask(bare, limit, again);
    this.#takesBareTags = true;
    return answer;
  }

  async #ask(
    request: S3Request,
    limit: number,
    again?: () => void,
  ): Promise<Answer> {
    const { patience } = this.settings;
    const { body, signal } = request;
    const timeout = patience.timeout +
      Math.ceil((body?.length ?? 0) / SLOWEST);
    let isFirst = true;
    return await retrying(
      { ...patience, timeout },
      signal,
      async (signal, progress) => {
        if (!isFirst) again?.();
        isFirst = false;
        const response = await this.send({ ...request, signal });
        progress(0);
        return {
          status: response.status,
          headers: response.headers,
          body: request.method === "HEAD"
            ? EMPTY
            : await bodyOf(response, limit, progress),
        };
      },
    );
  }

  /**
   * Make a single attempt.
   *
   * @param expected Further statuses to return rather than throw.
   * @throws {TransientError} if repeating it may succeed.
   */
  async send(
    request: S3Request,
    expected: readonly number[] = [],
  ): Promise<Response> {
    const { url, headers } = await this.#signed(request);
    const { method, body, signal } = request;
    let response: Response;
    try {
      response = await fetchOnce(url, { method, headers, body, signal });
      this.#hasAnswered = true;
      const date = Date.parse(response.headers.get("date") ?? "");
      if (!Number.isNaN(date)) this.#now = date;
    } catch (error) {
      // A service that has answered before may come back.
      if (!(error instanceof NoConnectionError) || this.#hasAnswered) {
        throw error;
      }
      throw new BlockError(error.code, error.message);
    }
    const { status } = response;
    if (GOOD.has(status) || expected.includes(status)) return response;
    throw await this.#error(request, response);
  }

  async #signed(
    { method, key, query = {}, headers: given, body }: S3Request,
  ): Promise<{ url: string; headers: Headers }> {
    const { base, region, credentials } = this.settings;
    const path = encodeKey(key);
    const search = new URLSearchParams(query).toString()
      .replaceAll("+", "%20");
    const url = `${base}/${path}${search && `?${search}`}`;
    const headers = new Headers(given);
    headers.set("x-amz-content-sha256", await sha256(body ?? EMPTY));
    if (!credentials) return { url, headers };
    const { AwsV4Signer } = await import("aws4fetch");
    const signer = new AwsV4Signer({
      method,
      url,
      headers,
      ...credentials,
      region,
      service: "s3",
      cache: this.#derived,
    });
    return { url, headers: (await signer.sign()).headers };
  }

  /** The error for a response. */
  async #error(
    { key }: S3Request,
    response: Response,
  ): Promise<BlockError> {
    const { status, headers } = response;
    const bytes = await bodyOf(response, MAX_TEXT, () => {});
    const xml = new TextDecoder().decode(bytes);
    return serviceError({
      status,
      code: element(xml, "Code"),
      message: element(xml, "Message"),
      region: headers.get("x-amz-bucket-region") ?? element(xml, "Region"),
      pause: pauseOf(response),
    }, this.asked(key));
  }

  /** What an error about `key` needs to know of the request. */
  asked(key: string) {
    const { bucket, region, credentials, unread } = this.settings;
    const isSigned = credentials !== undefined;
    return { bucket, key, region, isSigned, unread };
  }
}

/** A key as a path: only its slashes stay unencoded. */
function encodeKey(key: string): string {
  return key.split("/").map((part) =>
    encodeURIComponent(part).replace(
      /[!'()*]/g,
      (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`,
    )
  ).join("/");
}

async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return [...new Uint8Array(digest)]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Read a complete response. */
async function bodyOf(
  { body, headers }: Response,
  limit: number,
  progress: (bytes: number) => void,
): Promise<Uint8Array<ArrayBuffer>> {
  if (!body) return EMPTY;
  const tooLong = () =>
    new BlockError("EIO", "The service's answer is too long");
  const reader = body.getReader();
  const chunks: Uint8Array[] = [];
  let length = 0;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      length += value.length;
      if (length > limit) throw tooLong();
      chunks.push(value);
      progress(value.length);
    }
  } catch (error) {
    await reader.cancel().catch(() => {});
    if (error instanceof BlockError) throw error;
    throw new TransientError(
      "ECONNRESET",
      "The connection to the service broke",
    );
  }
  const stated = headers.get("content-length");
  if (stated !== null && length < Number(stated)) {
    throw new TransientError(
      "EIO",
      "The service has sent less than it announced",
    );
  }
  const whole = new Uint8Array(length);
  let at = 0;
  for (const chunk of chunks) {
    whole.set(chunk, at);
    at += chunk.length;
  }
  return whole;
}
