/**
 * Storing an object front to back as a multipart upload: it appears as a whole
 * when complete, or not at all.
 *
 * @module
 */
import { aborted, checkSignal } from "../../core/abort.ts";
import { allocate, release } from "../../core/bytes.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { S3Client } from "./client.ts";
import { ConflictError, element, serviceError } from "./errors.ts";
import type { Lease } from "./lease.ts";

/** Bounds of a part other than the last, in bytes. */
const [MIN_PART, MAX_PART] = [5 * 1024 ** 2, 5 * 1024 ** 3];
/** Default bytes of a part. */
const USUAL_PART = 8 * 1024 ** 2;
/** Most parts of an object. */
const MAX_PARTS = 10_000;
/** Parts uploaded concurrently. */
const CONCURRENCY = 4;
/** Identifies the upload that created an object. */
const MARK = "x-amz-meta-bdrv-upload";
/** Longest time for aborting, in milliseconds. */
const ABORT_TIMEOUT = 5000;

/** How to store an object. */
export interface UploadOptions {
  /** Bytes of a part. */
  readonly partSize?: number;
  /** Approximate number of bytes. */
  readonly expected?: number;
  readonly signal?: AbortSignal;
  /** Acquires a lease against other uploaders; `undefined` if none is used. */
  acquire(signal: AbortSignal): Promise<Lease | undefined>;
}

/**
 * Store the bytes of `chunks` under `key`. An existing object is replaced at
 * the end, unless another program has replaced it meanwhile.
 *
 * @throws {BlockError} EBUSY in that case.
 */
export async function upload(
  client: S3Client,
  key: string,
  chunks: AsyncIterable<Uint8Array>,
  options: UploadOptions,
): Promise<void> {
  const size = partSize(options);
  const target = new Upload(client, key, options);
  try {
    await target.open();
    let part = allocate(size);
    let filled = 0;
    for await (const chunk of chunks) {
      checkSignal(options.signal);
      for (let at = 0; at < chunk.length;) {
        const take = Math.min(chunk.length - at, size - filled);
        part.set(chunk.subarray(at, at + take), filled);
        at += take;
        filled += take;
        // A full part waits for more data, since the last part completes the
        // upload.
        if (filled < size || at === chunk.length) continue;
        await target.add(part);
        part = allocate(size);
        filled = 0;
      }
    }
    await target.complete(part.subarray(0, filled));
    await target.leave();
  } catch (error) {
    await target.abandon();
    throw options.signal?.aborted ? aborted(options.signal) : error;
  }
}

function partSize({ partSize, expected = 0 }: UploadOptions): number {
  if (partSize !== undefined) {
    if (partSize >= MIN_PART && partSize <= MAX_PART) return partSize;
    throw invalid("The size of a part must be between 5 MiB and 5 GiB");
  }
  // Allow for tables in addition to the data.
  const needed = Math.ceil(expected * 1.1 / MAX_PARTS / 1024 ** 2) * 1024 ** 2;
  return Math.max(USUAL_PART, needed);
}

/** An upload under way. */
class Upload {
  readonly #client: S3Client;
  readonly #key: string;
  readonly #signal: AbortSignal | undefined;
  readonly #acquire: UploadOptions["acquire"];
  #lease?: Lease;
  readonly #stop = new AbortController();
  /** The version to be replaced; `null` if there is none. */
  #before: string | null = null;
  /** Absent for an upload of one part. */
  #id?: string;
  #count = 0;
  readonly #mark = crypto.randomUUID();
  readonly #tags: string[] = [];
  readonly #pending = new Set<Promise<void>>();
  #failure?: { readonly error: unknown };

  constructor(client: S3Client, key: string, options: UploadOptions) {
    this.#client = client;
    this.#key = key;
    this.#signal = options.signal;
    this.#acquire = (signal) => options.acquire(signal);
    this.#signal?.addEventListener("abort", this.#halt, { once: true });
  }

  readonly #halt = () => this.#stop.abort();

  async open(): Promise<void> {
    this.#before = await this.#version();
  }

  /** The present version; `null` if there is none. */
  async #version(): Promise<string | null> {
    try {
      const { headers } = await this.#ask({ method: "HEAD" });
      return headers.get("etag");
    } catch (error) {
      // With only write permission, looking is denied; the condition decides
      // later.
      const isUnseen = error instanceof BlockError &&
        (error.code === "ENOENT" || error.code === "EACCES");
      if (isUnseen) return null;
      throw error;
    }
  }

  #ask(
    request: Omit<Parameters<S3Client["ask"]>[0], "key">,
    again?: () => void,
  ) {
    const signal = this.#stop.signal;
    const whole = { ...request, key: this.#key, signal };
    return this.#client.ask(whole, undefined, again);
  }

  /** Upload a part other than the last; the upload takes over `bytes`. */
  async add(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    if (this.#count === MAX_PARTS) {
      throw new BlockError(
        "EFBIG",
        `The object would have more than ${MAX_PARTS} parts`,
        { hint: "Give larger ones by the option 'part-size'." },
      );
    }
    this.#id ??= await this.#begin();
    const number = ++this.#count;
    const sent = this.#send(number, bytes).catch((error) => {
      this.#failure ??= { error };
    }).finally(() => {
      this.#pending.delete(sent);
      release(bytes);
    });
    this.#pending.add(sent);
    if (this.#pending.size >= CONCURRENCY) await Promise.race(this.#pending);
    if (this.#failure) throw this.#failure.error;
  }

  /**
   * Begin a multipart upload. Not all services check conditions on completing
   * one, so the version is checked here.
   */
  async #begin(): Promise<string> {
    this.#lease = await this.#acquire(this.#stop.signal);
    const { body } = await this.#ask({
      method: "POST",
      query: { uploads: "" },
      headers: { [MARK]: this.#mark },
    });
    const id = element(new TextDecoder().decode(body), "UploadId");
    if (id) return id;
    throw new BlockError("EIO", "The service has not begun the upload");
  }

  async #send(
    number: number,
    body: Uint8Array<ArrayBuffer>,
  ): Promise<void> {
    const query = { partNumber: String(number), uploadId: this.#id! };
    const { headers } = await this.#ask({ method: "PUT", query, body });
    const tag = headers.get("etag");
    if (!tag) throw new BlockError("EIO", "The service has not tagged a part");
    this.#tags[number - 1] = tag;
  }

  /** Upload the last part, and make the object visible. */
  async complete(last: Uint8Array<ArrayBuffer>): Promise<void> {
    if (this.#id === undefined) return await this.#putAtOnce(last);
    if (last.length > 0) await this.add(last);
    await Promise.all(this.#pending);
    if (this.#failure) throw this.#failure.error;
    this.#lease?.check();
    if (await this.#version() !== this.#before) throw new ConflictError();
    const parts = this.#tags.map((tag, index) =>
      `<Part><PartNumber>${index + 1}</PartNumber><ETag>${
        tag.replaceAll("&", "&amp;").replaceAll('"', "&quot;")
          .replaceAll("<", "&lt;")
      }</ETag></Part>`
    );
    const xml = '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc' +
      `/2006-03-01/">${parts.join("")}</CompleteMultipartUpload>`;
    await this.#confirmed((again) =>
      this.#completed(new TextEncoder().encode(xml), again)
    );
  }

  /** A request that may fail even after status 200. */
  async #completed(
    body: Uint8Array<ArrayBuffer>,
    again: () => void,
  ): Promise<void> {
    const query = { uploadId: this.#id! };
    const headers = this.#condition;
    const request = { method: "POST" as const, query, body, headers };
    const answer = await this.#ask(request, again);
    const text = new TextDecoder().decode(answer.body);
    if (!text.includes("<Error>")) return;
    throw serviceError({
      status: 500,
      code: element(text, "Code"),
      message: element(text, "Message"),
    }, this.#client.asked(this.#key));
  }

  async #putAtOnce(body: Uint8Array<ArrayBuffer>): Promise<void> {
    const headers = { ...this.#condition, [MARK]: this.#mark };
    await this.#confirmed((again) =>
      this.#ask({ method: "PUT", body, headers }, again)
    );
  }

  /**
   * Make the request that publishes the object. If it was repeated, a refusal
   * may mean that the first attempt succeeded.
   */
  async #confirmed(
    make: (again: () => void) => Promise<unknown>,
  ): Promise<void> {
    let isRepeated = false;
    try {
      await make(() => isRepeated = true);
    } catch (error) {
      if (!isRepeated || this.#stop.signal.aborted) throw error;
      const { headers } = await this.#ask({ method: "HEAD" });
      if (headers.get(MARK) !== this.#mark) throw error;
    }
  }

  get #condition(): { readonly [name: string]: string } {
    return this.#before === null
      ? { "if-none-match": "*" }
      : { "if-match": this.#before };
  }

  /** Cancel the parts being uploaded. */
  async leave(): Promise<void> {
    this.#signal?.removeEventListener("abort", this.#halt);
    await this.#lease?.release();
  }

  /** Let the service discard the parts. */
  async abandon(): Promise<void> {
    this.#stop.abort();
    await Promise.all(this.#pending);
    try {
      if (this.#id !== undefined) {
        await this.#client.ask({
          method: "DELETE",
          key: this.#key,
          query: { uploadId: this.#id },
          signal: AbortSignal.timeout(ABORT_TIMEOUT),
        });
      }
      await this.leave();
    } catch {
      // The rest costs space, but cannot be mistaken for an object.
    }
  }
}
