/**
 * The connections of a node to its server, which are made anew when they break.
 *
 * They live and die together: what one server has acknowledged on one of them
 * is written again, in its order, before anything else is sent to the next. So
 * no change that a flush will vouch for is lost or overtaken.
 *
 * @module
 */
import { checkSignal, unlessAborted } from "../../core/abort.ts";
import { BlockError } from "../../core/errors.ts";
import type { IoVector } from "../../core/bytes.ts";
import { LostConnection, type NbdClient } from "./client.ts";
import { Journal } from "./journal.ts";
import { COMMAND, FLAG } from "./wire.ts";

/** How to reach the server, and for how long to try. */
export interface LinkOptions {
  /** Make one connection, and enter the export on it, unless aborted. */
  connect(signal: AbortSignal): Promise<NbdClient>;
  /** Milliseconds to go on trying when the node is opened. */
  readonly openTimeout: number;
  /** Ends the opening with ECANCELED. */
  readonly signal?: AbortSignal;
  /** Milliseconds that requests wait for a lost server. */
  readonly reconnectDelay: number;
  /** Most connections at once. */
  readonly connections: number;
}

/** Milliseconds before the first retry; each next one waits twice as long. */
const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 16_000;
/** Requests under way on each connection before another one is worth it. */
const WORTH_ANOTHER = 8;
/** Bytes of changes after which the server is asked to flush them. */
const JOURNAL_LIMIT = 64 * 1024 * 1024;

/** The connections to one server. */
export class Link {
  readonly #options: LinkOptions;
  /** Those that are there; none while the server is gone. */
  #clients: NbdClient[] = [];
  /** Resolves when an attempt to get the server back has ended. */
  #recovery?: Promise<void>;
  /** When waiting for a lost server ends, by `performance.now()`. */
  #deadline = 0;
  #first!: NbdClient;
  #journal?: Journal;
  #flushing?: Promise<void>;
  /** How many changes were acknowledged, and how many of them are durable. */
  #changes = 0;
  #durable = 0;
  /** Whether others may have been lost: the next flush fails for it. */
  #mayHaveLost = false;
  #isGrowing = false;
  #isClosed = false;

  private constructor(options: LinkOptions) {
    this.#options = options;
  }

  /** Connect to the server. */
  static async open(options: LinkOptions): Promise<Link> {
    const link = new Link(options);
    const end = performance.now() + options.openTimeout;
    const { connect, signal } = options;
    link.#first = await retried(connect, end, () => false, signal);
    const { flags } = link.#first.info;
    // Without a flush there is nothing that it could vouch for.
    if (options.reconnectDelay > 0 && flags & FLAG.SEND_FLUSH) {
      link.#journal = new Journal();
    }
    link.#adopt(link.#first);
    return link;
  }

  /** What the server said when the node was opened. */
  get first(): NbdClient {
    return this.#first;
  }

  /** Ask something that changes nothing. */
  ask<T>(question: (client: NbdClient) => Promise<T>): Promise<T> {
    return this.#perform(question);
  }

  /** Write. */
  async write(offset: number, iov: IoVector, fua: boolean): Promise<void> {
    await this.#perform((client) => client.write(offset, iov, fua));
    this.#changes++;
    if (!this.#journal) return;
    // What is durable already must not be overwritten by what came before it.
    this.#journal.addWrite(COMMAND.WRITE, offset, iov);
    await this.#limitJournal();
  }

  /** Zero or discard a range. */
  async change(
    type: number,
    offset: number,
    length: number,
    flags: number,
  ): Promise<void> {
    await this.#perform((client) =>
      client.command(type, offset, length, flags)
    );
    this.#changes++;
    if (!this.#journal) return;
    this.#journal.add({ type, offset, length, flags });
    await this.#limitJournal();
  }

  /**
   * Make all that was acknowledged durable.
   *
   * @throws {BlockError} EIO if part of it may have been lost.
   */
  async flush(): Promise<void> {
    const mark = this.#journal?.mark ?? 0;
    const changes = this.#changes;
    await this.#perform((client) => client.command(COMMAND.FLUSH, 0, 0, 0));
    if (this.#mayHaveLost) {
      this.#mayHaveLost = false;
      throw new BlockError("EIO");
    }
    this.#durable = Math.max(this.#durable, changes);
    this.#journal?.forget(mark);
  }

  /** End all connections. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await Promise.all(this.#clients.map((client) => client.close()));
  }

  async #limitJournal(): Promise<void> {
    if (this.#journal!.bytes <= JOURNAL_LIMIT) return;
    this.#flushing ??= this.flush().finally(() => this.#flushing = undefined);
    await this.#flushing;
  }

  /** Do something on a connection, on another one if that is lost meanwhile. */
  async #perform<T>(act: (client: NbdClient) => Promise<T>): Promise<T> {
    for (;;) {
      const client = this.#pick() ?? await this.#recovered();
      try {
        return await act(client);
      } catch (error) {
        if (!(error instanceof LostConnection)) throw error;
        this.#lose();
        if (!this.#isWaiting) throw error;
      }
    }
  }

  /** Whether requests still wait for a server that was lost. */
  get #isWaiting(): boolean {
    return !this.#isClosed && performance.now() < this.#deadline;
  }

  /** The connection with the least to do. */
  #pick(): NbdClient | undefined {
    if (this.#recovery) return undefined;
    let best: NbdClient | undefined;
    for (const client of this.#clients) {
      if (client.lost) {
        this.#lose();
        return undefined;
      }
      if (!best || client.inFlight < best.inFlight) best = client;
    }
    if (best && best.inFlight >= WORTH_ANOTHER) this.#grow();
    return best;
  }

  /** Have one more connection, if the server and the user permit it. */
  #grow(): void {
    const { connections, connect } = this.#options;
    const canShare = this.#first.info.flags & FLAG.CAN_MULTI_CONN;
    if (this.#isGrowing || !canShare || this.#clients.length >= connections) {
      return;
    }
    this.#isGrowing = true;
    const [companion] = this.#clients;
    connect(new AbortController().signal).then((client) => {
      // What it was to go with may be gone by now.
      if (this.#isClosed || this.#clients[0] !== companion) client.abandon();
      else this.#adopt(client);
      this.#isGrowing = false;
    }, () => {
      // The server takes no more: no reason to ask again.
    });
  }

  #adopt(client: NbdClient): void {
    this.#clients.push(client);
    client.ended.then(() => this.#lose(client));
  }

  /** All connections are lost, if one is; `lost` only if it is one of them. */
  #lose(lost?: NbdClient): void {
    if (lost && !this.#clients.includes(lost)) return;
    if (this.#clients.length === 0) return;
    for (const client of this.#clients) client.abandon();
    this.#clients = [];
    this.#isGrowing = false;
    this.#deadline = performance.now() + this.#options.reconnectDelay;
    if (!this.#journal && this.#changes > this.#durable) {
      this.#durable = this.#changes;
      this.#mayHaveLost = true;
    }
  }

  /**
   * Get the server back. Requests share the attempts.
   *
   * @throws {LostConnection} if it does not come back in time.
   */
  async #recovered(): Promise<NbdClient> {
    if (this.#isClosed) throw new LostConnection(undefined);
    this.#recovery ??= this.#recover().finally(() => {
      this.#recovery = undefined;
    });
    await this.#recovery;
    const [client] = this.#clients;
    if (!client) throw new LostConnection(undefined);
    return client;
  }

  async #recover(): Promise<void> {
    try {
      const client = await retried(
        (signal) => this.#reconnect(signal),
        this.#deadline,
        () => this.#isClosed,
      );
      if (this.#isClosed) client.abandon();
      else this.#adopt(client);
    } catch (error) {
      throw new LostConnection(error);
    }
  }

  /** A connection on which the server has all that it had acknowledged. */
  async #reconnect(signal: AbortSignal): Promise<NbdClient> {
    const client = await this.#options.connect(signal);
    try {
      const { size, flags } = this.#first.info;
      const now = client.info;
      const isSame = now.size === size &&
        (now.flags & FLAG.READ_ONLY) === (flags & FLAG.READ_ONLY);
      if (!isSame) throw new BlockError("EIO", "The export has changed");
      for (const change of this.#journal?.changes ?? []) {
        const { type, offset, length, data } = change;
        if (data) await client.write(offset, [data], false);
        else await client.command(type, offset, length, change.flags);
      }
      return client;
    } catch (error) {
      client.abandon();
      throw error;
    }
  }
}

/** Try, and go on trying until it works or the time is over. */
async function retried<T>(
  attempt: (signal: AbortSignal) => Promise<T>,
  end: number,
  isOver: () => boolean = () => false,
  signal?: AbortSignal,
): Promise<T> {
  for (let pause = FIRST_PAUSE;; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
    const left = end - performance.now();
    checkSignal(signal);
    const controller = new AbortController();
    const abort = () => controller.abort();
    signal?.addEventListener("abort", abort);
    // Without a limit, a server may take as long as it likes to answer.
    const timer = left > 0 ? setTimeout(abort, left) : undefined;
    try {
      return await attempt(controller.signal);
    } catch (error) {
      checkSignal(signal);
      if (controller.signal.aborted) {
        throw new BlockError(
          "ETIMEDOUT",
          "Connection attempt cancelled by timeout",
          { cause: error },
        );
      }
      const left = end - performance.now();
      if (left <= 0 || isOver()) throw error;
      await paused(Math.min(pause, left), signal);
    } finally {
      signal?.removeEventListener("abort", abort);
      clearTimeout(timer);
    }
  }
}

/** Wait, unless the signal says that it is over. */
async function paused(
  milliseconds: number,
  signal?: AbortSignal,
): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const waiting = new Promise<void>((done) => {
    timer = setTimeout(done, milliseconds);
  });
  try {
    await unlessAborted(waiting, signal);
  } finally {
    clearTimeout(timer);
  }
}
