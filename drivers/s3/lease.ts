/**
 * The lease of a writer: an object that only one writer can create, which tells
 * others to keep away.
 *
 * It is created on the condition that there is none (`If-None-Match: *`), and
 * renewed on the condition that it is still ours (`If-Match`). A writer that
 * died does not renew it; its age is determined by the service's clock alone:
 * `Date` and the object's `Last-Modified`. An expired lease may be replaced, on
 * the condition that nobody else has done so.
 *
 * The writer itself uses its own clock, from before the request, so that the
 * lease expires for it earlier than for anybody else.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { unrefTimer } from "../../core/runtime.ts";
import type { Answer, S3Client } from "./client.ts";
import { ConflictError } from "./errors.ts";
import type { Layout } from "./layout.ts";

/** Renewals during the time of a lease. */
const RENEWALS = 3;
/** The longest accepted lease, in seconds. */
const LONGEST = 24 * 3600;

/** Another writer's lease. */
export interface ForeignLease {
  /** Seconds until it expires, unless renewed; not positive if it has. */
  readonly rest: number;
  readonly tag: string | null;
}

/** The lease that an object holds; absent if there is none. */
export async function readLease(
  client: S3Client,
  { leaseKey: key, isEndless }: Layout,
  signal?: AbortSignal,
): Promise<ForeignLease | undefined> {
  let answer: Answer;
  try {
    answer = await client.ask({ method: "GET", key, signal }, 4096);
  } catch (error) {
    if (error instanceof BlockError && error.code === "ENOENT") {
      return undefined;
    }
    throw error;
  }
  const { headers, body } = answer;
  const time = (name: string) => Date.parse(headers.get(name) ?? "");
  const age = (time("date") - time("last-modified")) / 1000;
  const seconds = isEndless ? Infinity : secondsOf(body);
  return {
    rest: Number.isNaN(age) ? Infinity : seconds - age,
    tag: headers.get("etag"),
  };
}

/** A lease that cannot be parsed never expires. */
function secondsOf(body: Uint8Array): number {
  try {
    const { seconds } = JSON.parse(new TextDecoder().decode(body));
    return seconds > 0 && seconds <= LONGEST ? seconds : Infinity;
  } catch {
    return Infinity;
  }
}

/** The error for a disk that another writer has leased. */
export function inUse(
  { leaseKey, isEndless }: Layout,
  { rest }: ForeignLease,
): BlockError {
  const why = isEndless
    ? "s3backer has mounted it, or another program is writing to it"
    : "Another program is writing to it";
  return new BlockError("EAGAIN", why, {
    hint: Number.isFinite(rest)
      ? `If that program was killed, its lease ends in ${Math.ceil(rest)} s.`
      : `If that is no longer so, remove the object '${leaseKey}'.`,
  });
}

/** Our own lease. */
export class Lease {
  readonly #client: S3Client;
  readonly #layout: Layout;
  readonly #seconds: number;
  readonly #owner = crypto.randomUUID();
  readonly #ended = new AbortController();
  #renewals = 0;
  #tag: string | null = null;
  #timer?: ReturnType<typeof setTimeout>;
  #deadline?: ReturnType<typeof setTimeout>;
  #renewing?: Promise<void>;
  /** When it ends, by `performance.now()`. */
  #end = 0;
  #lost?: BlockError;

  private constructor(client: S3Client, layout: Layout, seconds: number) {
    this.#client = client;
    this.#layout = layout;
    this.#seconds = layout.isEndless ? Infinity : seconds;
  }

  /**
   * Acquire the lease.
   *
   * @throws {BlockError} EAGAIN if another writer has it; ENOTSUP if the
   * service ignores conditions, so that two writers could have it.
   */
  static async acquire(
    client: S3Client,
    layout: Layout,
    seconds: number,
    signal?: AbortSignal,
  ): Promise<Lease> {
    const lease = new Lease(client, layout, seconds);
    await lease.#acquire(signal);
    return lease;
  }

  /** Aborted when it expires. */
  get signal(): AbortSignal {
    return this.#ended.signal;
  }

  /** @throws {BlockError} EIO if it has expired. */
  check(): void {
    if (performance.now() >= this.#end) this.#lose();
    if (this.#lost) throw this.#lost;
  }

  async #acquire(signal?: AbortSignal): Promise<void> {
    if (!await this.#put({ "if-none-match": "*" }, signal)) {
      const lease = await readLease(this.#client, this.#layout, signal);
      if (lease && lease.rest > 0) throw inUse(this.#layout, lease);
      // It has expired, or was released just now.
      const isOurs = await this.#put(
        lease?.tag ? { "if-match": lease.tag } : { "if-none-match": "*" },
        signal,
      );
      if (!isOurs) throw new ConflictError();
    }
    if (await this.#put({ "if-none-match": "*" }, signal)) {
      await this.release();
      throw new BlockError(
        "ENOTSUP",
        "The service ignores conditions, so that nothing keeps two writers " +
          "apart",
        { hint: "If there is only one, use lease=0." },
      );
    }
    // The answer may have come too late, or only to a later attempt.
    const isShort = this.#end - performance.now() < this.#seconds * 1000 / 2;
    if (isShort && !await this.#put({ "if-match": this.#tag! }, signal)) {
      throw new ConflictError();
    }
    this.check();
    this.#schedule();
  }

  /**
   * Write it; returns false if the condition does not hold. After a retry, the
   * first attempt may be the reason.
   */
  async #put(
    condition: { readonly [name: string]: string },
    signal?: AbortSignal,
  ): Promise<boolean> {
    const { leaseKey: key, isEndless } = this.#layout;
    const text = isEndless ? `bdrv\n${this.#owner}\n` : JSON.stringify({
      owner: this.#owner,
      seconds: this.#seconds,
      renewals: this.#renewals++,
    });
    const body = new TextEncoder().encode(text);
    const token = this.#owner.slice(0, 8);
    const headers = {
      ...condition,
      "content-type": isEndless ? "text/plain" : "application/json",
      ...(isEndless && { "x-amz-meta-s3backer-mount-token": token }),
    };
    const before = performance.now();
    let isRepeated = false;
    try {
      const { headers: answer } = await this.#client.ask(
        { method: "PUT", key, body, headers, signal },
        undefined,
        () => isRepeated = true,
      );
      this.#tag = answer.get("etag");
    } catch (error) {
      if (!(error instanceof ConflictError)) throw error;
      if (!isRepeated || !await this.#holds(text, signal)) return false;
    }
    this.#end = before + this.#seconds * 1000;
    return true;
  }

  /** Whether the object is as we have written it. */
  async #holds(text: string, signal?: AbortSignal): Promise<boolean> {
    const key = this.#layout.leaseKey;
    const { body, headers } = await this.#client.ask(
      { method: "GET", key, signal },
      4096,
    );
    if (new TextDecoder().decode(body) !== text) return false;
    this.#tag = headers.get("etag");
    return true;
  }

  #schedule(): void {
    if (this.#seconds === Infinity) return;
    clearTimeout(this.#timer);
    clearTimeout(this.#deadline);
    const whole = this.#seconds * 1000;
    this.#timer = setTimeout(
      () => this.#renewing = this.#renew(),
      whole / RENEWALS,
    );
    this.#deadline = setTimeout(
      () => this.#lose(),
      Math.max(0, this.#end - performance.now()),
    );
    // Renewals do not keep a program running.
    unrefTimer(this.#timer);
    unrefTimer(this.#deadline);
  }

  async #renew(): Promise<void> {
    try {
      if (await this.#put({ "if-match": this.#tag! }, this.signal)) {
        if (!this.#lost) this.#schedule();
      } else {
        this.#lose();
      }
    } catch {
      // If the service cannot be reached, retry until it expires.
      if (!this.#lost) {
        this.#timer = setTimeout(
          () => this.#renewing = this.#renew(),
          1000,
        );
        unrefTimer(this.#timer);
      }
    }
  }

  #lose(): void {
    this.#stop();
    this.#lost ??= new BlockError(
      "EIO",
      "The lease has ended: another program may be writing to it",
    );
    this.#ended.abort(this.#lost);
  }

  #stop(): void {
    clearTimeout(this.#timer);
    clearTimeout(this.#deadline);
  }

  /** Release it. */
  async release(): Promise<void> {
    this.#stop();
    await this.#renewing;
    this.#stop();
    // An expired lease may be another writer's by now.
    if (this.#lost || performance.now() >= this.#end) return;
    await this.#client.ask({ method: "DELETE", key: this.#layout.leaseKey });
  }
}
