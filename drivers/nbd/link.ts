/**
 * A node's connections to its server, which are replaced when they break.
 *
 * They are all replaced together: the others have their requests answered, so
 * that no server carries one out late. Then changes that were acknowledged on
 * any of them, and are not durable, are repeated, in order, before anything else
 * is sent on a new one. Thus no change that a flush promises is lost or
 * reordered.
 *
 * @module
 */
import {
  checkSignal,
  delay,
  LONGEST_DELAY,
  unlessAborted,
} from "../../core/abort.ts";
import { BlockError } from "../../core/errors.ts";
import { type IoVector, vectorLength } from "../../core/bytes.ts";
import { LostConnection, type NbdClient } from "./client.ts";
import { Journal } from "./journal.ts";
import { COMMAND, COMMAND_FLAG, FLAG } from "./wire.ts";

/** How to reach the server, and for how long to try. */
export interface LinkOptions {
  /** Make one connection, and enter the export on it, unless aborted. */
  connect(signal: AbortSignal): Promise<NbdClient>;
  /** Milliseconds to keep trying when the node is opened. */
  readonly openTimeout: number;
  /** Cancels the opening with ECANCELED. */
  readonly signal?: AbortSignal;
  /** Milliseconds that requests wait for a lost server. */
  readonly reconnectDelay: number;
  /** Most connections at once. */
  readonly connections: number;
}

/** Milliseconds before the first retry; the pause doubles each time. */
const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 16_000;
/**
 * Requests in flight on each connection from which another one is worthwhile.
 */
const WORTH_ANOTHER = 8;
/** Bytes of recorded changes that trigger a flush. */
const JOURNAL_LIMIT = 64 * 1024 * 1024;
/** Milliseconds that the other connections have to answer what is in flight. */
const PATIENCE = 5000;
/** Abilities of an export that must not vanish. */
const RELIED_ON = FLAG.READ_ONLY | FLAG.SEND_FLUSH | FLAG.SEND_FUA |
  FLAG.SEND_TRIM | FLAG.SEND_WRITE_ZEROES | FLAG.SEND_FAST_ZERO;

/** The connections to one server. */
export class Link {
  readonly #options: LinkOptions;
  /** The present connections; none while the server is gone. */
  #clients: NbdClient[] = [];
  /** Those that were given up, until they have ended. */
  readonly #retired = new Set<NbdClient>();
  /** Resolves when the attempt to reconnect has ended. */
  #recovery?: Promise<void>;
  /** When waiting for a lost server ends, by `performance.now()`. */
  #deadline = 0;
  #first!: NbdClient;
  #journal?: Journal;
  #flushing?: Promise<void>;
  /** How many changes were acknowledged, and how many of them are durable. */
  #changes = 0;
  #durable = 0;
  /** Whether changes may have been lost: the next flush then fails. */
  #mayHaveLost = false;
  #isGrowing = false;
  /** Ends the attempt to add a connection. */
  #growth = new AbortController();
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
    // Without flushes, nothing would ever leave the journal.
    if (options.reconnectDelay > 0 && flags & FLAG.SEND_FLUSH) {
      link.#journal = new Journal();
    }
    link.#adopt(link.#first);
    return link;
  }

  /**
   * The first connection, with the export as it was when the node was opened.
   */
  get first(): NbdClient {
    return this.#first;
  }

  /** Make a request that changes nothing. */
  ask<T>(
    question: (client: NbdClient) => Promise<T>,
    signal?: AbortSignal,
  ): Promise<T> {
    return this.#perform(question, signal);
  }

  /** Write. */
  async write(
    offset: number,
    iov: IoVector,
    fua: boolean,
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#perform((client) => client.write(offset, iov, fua), signal);
    this.#changes++;
    if (!this.#journal) return;
    if (fua) return this.#journal.replace(offset, vectorLength(iov));
    this.#journal.addWrite(COMMAND.WRITE, offset, iov);
    await this.#limitJournal();
  }

  /** Zero or discard a range. */
  async change(
    type: number,
    offset: number,
    length: number,
    flags: number,
    signal?: AbortSignal,
  ): Promise<void> {
    await this.#perform(
      (client) => client.command(type, offset, length, flags),
      signal,
    );
    this.#changes++;
    if (!this.#journal) return;
    if (flags & COMMAND_FLAG.FUA) return this.#journal.replace(offset, length);
    this.#journal.add({ type, offset, length, flags });
    await this.#limitJournal();
  }

  /**
   * Make all acknowledged changes durable.
   *
   * @throws {BlockError} EIO if part of it may have been lost.
   */
  async flush(signal?: AbortSignal): Promise<void> {
    const mark = this.#journal?.mark ?? 0;
    const changes = this.#changes;
    await this.#perform(
      (client) => client.command(COMMAND.FLUSH, 0, 0, 0),
      signal,
    );
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
    this.#growth.abort();
    await Promise.all(this.#clients.map((client) => client.close()));
  }

  async #limitJournal(): Promise<void> {
    if (this.#journal!.bytes <= JOURNAL_LIMIT) return;
    this.#flushing ??= this.flush().finally(() => this.#flushing = undefined);
    await this.#flushing;
  }

  /**
   * Make a request on a connection, and repeat it on another one if that is
   * lost. An abort ends the wait for a server; one that has the request is waited
   * for, unless `act` knows better.
   */
  async #perform<T>(
    act: (client: NbdClient) => Promise<T>,
    signal?: AbortSignal,
  ): Promise<T> {
    let end: number | undefined;
    for (;;) {
      checkSignal(signal);
      const client = this.#pick() ??
        await unlessAborted(this.#recovered(), signal);
      try {
        return await act(client);
      } catch (error) {
        if (!(error instanceof LostConnection)) throw error;
        this.#lose(client);
        // A request that breaks every connection must not do so for ever.
        end ??= performance.now() + this.#options.reconnectDelay;
        const isOver = error.isViolation || performance.now() >= end;
        if (isOver || !this.#isWaiting) throw error;
      }
    }
  }

  /** Whether requests still wait for a lost server. */
  get #isWaiting(): boolean {
    return !this.#isClosed && performance.now() < this.#deadline;
  }

  /** The connection with the fewest requests. */
  #pick(): NbdClient | undefined {
    if (this.#recovery) return undefined;
    let best: NbdClient | undefined;
    for (const client of this.#clients) {
      if (client.lost) {
        this.#lose(client);
        return undefined;
      }
      if (!best || client.inFlight < best.inFlight) best = client;
    }
    if (best && best.inFlight >= WORTH_ANOTHER) this.#grow();
    return best;
  }

  /** Add a connection, if the server and the user permit it. */
  #grow(): void {
    const { connections } = this.#options;
    const canShare = this.#first.info.flags & FLAG.CAN_MULTI_CONN;
    if (this.#isGrowing || !canShare || this.#clients.length >= connections) {
      return;
    }
    this.#isGrowing = true;
    const [companion] = this.#clients;
    this.#growth = new AbortController();
    this.#connect(this.#growth.signal).then((client) => {
      // The connections it was to join may be gone by now.
      if (this.#isClosed || this.#clients[0] !== companion) client.abandon();
      else this.#adopt(client);
      this.#isGrowing = false;
      this.#growth = new AbortController();
    }, () => {
      // The server accepts no more connections: do not try again.
    });
  }

  #adopt(client: NbdClient): void {
    this.#clients.push(client);
    client.ended.then(() => this.#lose(client));
  }

  /**
   * All connections are lost if one is; ignores a `lost` one that has been
   * replaced.
   */
  #lose(lost: NbdClient): void {
    if (!this.#clients.includes(lost)) return;
    for (const client of this.#clients) {
      client.retire();
      this.#retired.add(client);
      client.ended.then(() => this.#retired.delete(client));
    }
    this.#clients = [];
    this.#isGrowing = false;
    this.#deadline = performance.now() + this.#options.reconnectDelay;
    if (!this.#journal && this.#changes > this.#durable) {
      this.#durable = this.#changes;
      this.#mayHaveLost = true;
    }
  }

  /**
   * Reconnect. Requests share the attempts.
   *
   * @throws {LostConnection} if the server does not come back in time.
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
    await this.#allRetired();
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

  /**
   * Wait until no request is in flight on the connections that were given up:
   * the server might carry it out after others that follow it.
   */
  async #allRetired(): Promise<void> {
    const timer = setTimeout(() => {
      for (const client of this.#retired) client.abandon();
    }, PATIENCE);
    await Promise.all([...this.#retired].map(({ ended }) => ended));
    clearTimeout(timer);
  }

  /** Connect to the export as it was when the node was opened. */
  async #connect(signal: AbortSignal): Promise<NbdClient> {
    const client = await this.#options.connect(signal);
    if (offersAllOf(client, this.#first)) return client;
    client.abandon();
    throw new BlockError("EIO", "The export has changed");
  }

  /** Connect, and repeat all acknowledged changes. */
  async #reconnect(signal: AbortSignal): Promise<NbdClient> {
    const client = await this.#connect(signal);
    try {
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

/**
 * Whether a connection is to the same export as the first one, and offers all
 * that the node relies on since then.
 */
function offersAllOf(now: NbdClient, first: NbdClient): boolean {
  const { size, flags, blockSizes } = first.info;
  const added = now.info.flags & ~flags;
  const removed = flags & ~now.info.flags;
  const found = now.info.blockSizes;
  return now.info.size === size && !(added & FLAG.READ_ONLY) &&
    !(removed & RELIED_ON) && now.extended >= first.extended &&
    now.hasContext === first.hasContext &&
    found?.minimum === blockSizes?.minimum &&
    found?.maximum === blockSizes?.maximum;
}

/** Retry until it succeeds or the time has run out. */
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
    // Without a limit, a server may take any time to answer.
    const timer = left > 0
      ? setTimeout(abort, Math.min(left, LONGEST_DELAY))
      : undefined;
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
      await delay(Math.min(pause, left), signal);
    } finally {
      signal?.removeEventListener("abort", abort);
      clearTimeout(timer);
    }
  }
}
