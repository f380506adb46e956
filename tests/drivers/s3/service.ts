/**
 * An S3 service in this process: one bucket, in memory, which checks signatures
 * and conditions, and fails on demand.
 *
 * @module
 */
import { faultOf, sha256 } from "./signature.ts";

/** The keys known to the service. */
export const KEYS = { id: "AKIDEXAMPLE", secret: "a/very+secret=key" };
/** Its only bucket. */
export const BUCKET = "bucket";

/** A request as faults see it. */
export interface Asked {
  readonly method: string;
  /** Decoded. */
  readonly key: string;
  readonly query: URLSearchParams;
  readonly headers: Headers;
}

/**
 * A fault: responds in place of the service, or lets it respond and changes the
 * response.
 */
export type Fault = (
  asked: Asked,
  answer: () => Promise<Response>,
) => Response | undefined | Promise<Response | undefined>;

interface Stored {
  readonly body: Uint8Array<ArrayBuffer>;
  readonly etag: string;
  readonly changed: number;
  readonly headers: Record<string, string>;
}

/** An upload in progress: its parts by number, and the object's headers. */
interface Upload {
  readonly parts: Map<number, Uint8Array<ArrayBuffer>>;
  readonly headers: Record<string, string>;
}

/** The headers stored with an object. */
function kept(headers: Headers): Record<string, string> {
  return Object.fromEntries(
    [...headers].filter(([name]) =>
      name.startsWith("x-amz-meta-") || name === "content-type"
    ),
  );
}

async function etagOf(body: Uint8Array<ArrayBuffer>): Promise<string> {
  return `"${(await sha256(body)).slice(0, 32)}"`;
}

/** The service. */
export class Service implements AsyncDisposable {
  /** The objects, by key. */
  readonly objects = new Map<string, Stored>();
  /** Uploads in progress, by id. */
  readonly uploads = new Map<string, Upload>();
  /** All requests, as `METHOD key`. */
  readonly log: string[] = [];
  /** Called for each request. */
  fault?: Fault;
  /** Whether conditions of changes are checked; those of GET always are. */
  checksConditions = true;
  /** Whether tags of changes are compared without quotes, as Ceph does. */
  comparesBareTags = false;
  /** How far the service's clock is ahead, in milliseconds. */
  clock = 0;
  /** The most keys in one page of a listing. */
  pageSize = 1000;
  readonly #server: Deno.HttpServer<Deno.NetAddr>;
  #ids = 0;

  constructor() {
    this.#server = Deno.serve({
      hostname: "127.0.0.1",
      port: 0,
      onListen() {},
      // The client has gone.
      onError: () => new Response(null, { status: 500 }),
    }, (request) => this.#handle(request));
  }

  /** The URL of the service. */
  get endpoint(): string {
    return `http://127.0.0.1:${this.#server.addr.port}`;
  }

  /** The environment variables by which programs find it. */
  get env(): Record<string, string> {
    return {
      AWS_ENDPOINT_URL: this.endpoint,
      AWS_ACCESS_KEY_ID: KEYS.id,
      AWS_SECRET_ACCESS_KEY: KEYS.secret,
      AWS_REGION: "eu-test-1",
    };
  }

  /** Options of the driver, for the object with this key. */
  stack(key: string, options: Record<string, unknown> = {}) {
    return {
      driver: "s3",
      bucket: BUCKET,
      key,
      "endpoint-url": this.endpoint,
      region: "eu-test-1",
      "access-key": KEYS.id,
      "secret-key-secret": "s3key",
      ...options,
    };
  }

  /** The secrets named by those options. */
  readonly secrets = { s3key: `${KEYS.secret}\n` };

  /** Store an object. */
  async put(
    key: string,
    body: Uint8Array<ArrayBuffer>,
    headers: Record<string, string> = {},
  ): Promise<void> {
    this.#store(key, body, headers, await etagOf(body));
  }

  #store(
    key: string,
    body: Uint8Array<ArrayBuffer>,
    headers: Record<string, string>,
    etag: string,
  ): void {
    const changed = Date.now() + this.clock;
    this.objects.set(key, { body, etag, changed, headers });
  }

  /** How many requests matched a pattern. */
  count(pattern: RegExp): number {
    return this.log.filter((line) => pattern.test(line)).length;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }

  async #handle(request: Request): Promise<Response> {
    const { method, headers } = request;
    const target = request.url.slice(this.endpoint.length);
    const url = new URL(request.url);
    const [, bucket, ...rest] = url.pathname.split("/");
    const key = rest.map(decodeURIComponent).join("/");
    const body = await request.bytes();
    this.log.push(`${method} ${key}${url.search && ` ${url.search}`}`);
    const arrived = { method, target, headers, bodyHash: await sha256(body) };
    const bad = await faultOf(arrived, { [KEYS.id]: KEYS.secret });
    if (bad) return failure(403, bad);
    if (bucket !== BUCKET) return failure(404, "NoSuchBucket");
    const asked = { method, key, query: url.searchParams, headers };
    const answer = () => this.#answer(asked, body);
    const response = await this.fault?.(asked, answer) ?? await answer();
    const date = new Date(Date.now() + this.clock).toUTCString();
    response.headers.set("date", date);
    return response;
  }

  async #answer(
    { method, key, query, headers }: Asked,
    body: Uint8Array<ArrayBuffer>,
  ): Promise<Response> {
    const upload = query.get("uploadId");
    if (key === "" && method === "GET") return this.#list(query);
    if (query.has("uploads")) {
      const id = `id ${this.#ids++}&<>`;
      this.uploads.set(id, { parts: new Map(), headers: kept(headers) });
      return new Response(
        `<Result><UploadId>${escaped(id)}</UploadId></Result>`,
      );
    }
    if (upload !== null) {
      const begun = this.uploads.get(upload);
      if (!begun) return failure(404, "NoSuchUpload");
      const { parts } = begun;
      if (method === "PUT") {
        parts.set(Number(query.get("partNumber")), body);
        const etag = `"${(await sha256(body)).slice(0, 32)}"`;
        return new Response(null, { headers: { etag } });
      }
      this.uploads.delete(upload);
      if (method === "DELETE") return new Response(null, { status: 204 });
      const refusal = this.#condition(key, headers);
      if (refusal) return refusal;
      const numbers = [
        ...new TextDecoder().decode(body).matchAll(
          /<PartNumber>(\d+)</g,
        ),
      ].map(([, number]) => Number(number));
      const isSmall = numbers.slice(0, -1).some((number) =>
        parts.get(number)!.length < 5 << 20
      );
      if (isSmall) return failure(400, "EntityTooSmall");
      await this.put(
        key,
        joined(numbers.map((it) => parts.get(it)!)),
        begun.headers,
      );
      const { etag } = this.objects.get(key)!;
      return new Response(`\n<Result><ETag>${escaped(etag)}</ETag></Result>`);
    }
    if (method === "PUT") {
      const etag = await etagOf(body);
      // From here on synchronously: of several conditional writes, one
      // succeeds.
      const refusal = this.#condition(key, headers);
      if (refusal) return refusal;
      this.#store(key, body, kept(headers), etag);
      return new Response(null, { headers: { etag } });
    }
    const stored = this.objects.get(key);
    if (method === "DELETE") {
      this.objects.delete(key);
      return new Response(null, { status: 204 });
    }
    if (!stored) return failure(404, "NoSuchKey", method);
    const wanted = headers.get("if-match");
    if (wanted !== null && wanted !== stored.etag) {
      return failure(412, "PreconditionFailed");
    }
    if (headers.get("if-none-match") === stored.etag) {
      return new Response(null, {
        status: 304,
        headers: { etag: stored.etag },
      });
    }
    return send(stored, method, headers.get("range"));
  }

  #condition(key: string, headers: Headers): Response | undefined {
    if (!this.checksConditions) return undefined;
    const stored = this.objects.get(key);
    const match = headers.get("if-match");
    const tag = this.comparesBareTags
      ? stored?.etag.replaceAll('"', "")
      : stored?.etag;
    const holds = headers.get("if-none-match") === "*"
      ? !stored
      : match === null || tag === match;
    return holds ? undefined : failure(412, "PreconditionFailed");
  }

  #list(query: URLSearchParams): Response {
    const [prefix, after] = [query.get("prefix"), query.get("start-after")];
    const keys = [...this.objects.keys()].sort().filter((key) =>
      key.startsWith(prefix ?? "") && key > (after ?? "")
    );
    const most = Math.min(this.pageSize, Number(query.get("max-keys")));
    const contents = keys.slice(0, most).map((key) => {
      const { etag, changed } = this.objects.get(key)!;
      const when = new Date(Math.floor(changed / 1000) * 1000).toISOString();
      return `<Contents><Key>${escaped(key)}</Key>` +
        `<LastModified>${when}</LastModified>` +
        `<ETag>${escaped(etag)}</ETag></Contents>`;
    });
    const isTruncated = `<IsTruncated>${keys.length > most}</IsTruncated>`;
    return new Response(
      `<ListBucketResult>${isTruncated}${contents.join("")}</ListBucketResult>`,
    );
  }
}

function send(
  { body, etag, changed, headers }: Stored,
  method: string,
  range: string | null,
): Response {
  const about = {
    ...headers,
    etag,
    "last-modified": new Date(changed).toUTCString(),
  };
  if (method === "HEAD") {
    const length = { "content-length": String(body.length) };
    return new Response(null, { headers: { ...about, ...length } });
  }
  if (range === null) return new Response(body, { headers: about });
  const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(range)!;
  const start = Number(first);
  const end = Math.min(Number(last) + 1, body.length);
  if (start >= body.length) return failure(416, "InvalidRange");
  const where = `bytes ${start}-${end - 1}/${body.length}`;
  return new Response(body.slice(start, end), {
    status: 206,
    headers: { ...about, "content-range": where },
  });
}

/** A response that reports an error. */
export function failure(
  status: number,
  code: string,
  method = "GET",
): Response {
  const xml = `<?xml version="1.0"?><Error><Code>${code}</Code>` +
    `<Message>It is so &amp; not otherwise</Message></Error>`;
  return new Response(method === "HEAD" ? null : xml, { status });
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

function joined(
  parts: readonly Uint8Array<ArrayBuffer>[],
): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((sum, it) => sum + it.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
