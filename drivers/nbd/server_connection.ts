/**
 * The transmission phase of the server: takes the requests of one client, many
 * at once, and answers each on completion.
 *
 * @module
 */
import { asBlockError, BlockError, invalid } from "../../core/errors.ts";
import type { Image } from "../../core/image.ts";
import type { Budget, BudgetUser } from "./budget.ts";
import type { Buffers } from "./buffers.ts";
import {
  ConnectionLost,
  endStream,
  type MessageReader,
  type MessageWriter,
} from "./bytes.ts";
import { type Export, type Run, runsOf } from "./export.ts";
import { Replies, type Request } from "./server_replies.ts";
import type { Agreement } from "./server_handshake.ts";
import {
  COMMAND,
  COMMAND_FLAG,
  commandName,
  EXTENDED_REQUEST_MAGIC,
  EXTENDED_REQUEST_SIZE,
  MAX_PAYLOAD,
  REQUEST_MAGIC,
  REQUEST_SIZE,
} from "./wire.ts";

const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN } = COMMAND_FLAG;

/** Permitted flags of each command; FUA is permitted with all. */
const FLAGS: { readonly [command: number]: number } = {
  [COMMAND.READ]: FUA | DF,
  [COMMAND.WRITE]: FUA,
  [COMMAND.DISCONNECT]: FUA,
  [COMMAND.FLUSH]: FUA,
  [COMMAND.TRIM]: FUA,
  [COMMAND.CACHE]: FUA,
  [COMMAND.WRITE_ZEROES]: FUA | NO_HOLE | FAST_ZERO,
  [COMMAND.BLOCK_STATUS]: FUA | REQ_ONE,
};

/** Bytes of queued replies from which on further ones wait. */
const MAX_QUEUED = 1024 * 1024;
/** Most requests of a client in flight. */
const MAX_IN_FLIGHT = 64;
/**
 * Memory of a client's requests, in bytes, from which on further ones wait: so
 * what was read is still in the processor's cache when it is sent.
 */
const MAX_CACHED = 1024 * 1024;
/** Large requests that may be in flight regardless of that. */
const LEAST_IN_FLIGHT = 4;
/**
 * A large request that takes longer, in ms, has waited for a disk or a network:
 * there, many requests in flight gain more than the cache does.
 */
const SLOW_REQUEST = 5;
/** Flags of reads that may be made by another thread. */
const BACKGROUND = { background: true };
/** Making a shorter read of cached bytes takes less than handing it over. */
const WORTH_A_THREAD = 512 * 1024;
/** A shorter read that takes longer, in ms, has waited for a disk. */
const UNCACHED = 0.5;
/** Reads that other threads make after such a one: the next are like it. */
const UNCACHED_READS = 64;
/** Shorter reads are not searched for holes. */
const WORTH_A_LOOK = 64 * 1024;
/** Most extents of a read that are looked for; the rest is taken for data. */
const MAX_EXTENTS = 64;
/**
 * Data is answered in parts of this many bytes: one is sent while the next is
 * read.
 */
const PART_SIZE = 1024 * 1024;
/** Most runs in one reply. Clients request the rest. */
const MAX_RUNS = 32 * 1024;
/** Most bytes of a run on the wire. */
const RUN_SIZE = 16;
/** Memory of each request, in addition to its data. */
const OVERHEAD = 512;
/** Bytes read at once for a cache request, whose data nobody needs. */
const CACHE_STEP = 1024 * 1024;
/** How long a client may stall while others wait for memory, in ms. */
const STALL = 3000;

/** Memory of a request, less what its reply has taken over. */
interface Memory {
  left: number;
}

/** The client has violated the protocol: the connection is ended. */
export class ProtocolError extends Error {}

/** Serves one client. */
export class Connection implements BudgetUser {
  /** Bytes of memory that its requests hold; see `Budget`. */
  held = 0;
  readonly #agreement: Agreement;
  readonly #reader: MessageReader;
  readonly #writer: MessageWriter;
  readonly #replies: Replies;
  readonly #image: Image;
  readonly #export: Export;
  readonly #budget: Budget;
  readonly #buffers: Buffers;
  #inFlight = 0;
  /** Whether the last large request measured was slow. */
  #isSlow = false;
  /** How many reads are still to be made by other threads. */
  #uncached = 0;
  #lastStatus: Promise<void> = Promise.resolve();
  #settled = () => {};
  /** Whether the data of a request is being received. */
  #isReadingData = false;
  #isClosing = false;
  #patience?: ReturnType<typeof setInterval>;

  /** Serve `image`, described by `offered`. */
  constructor(
    agreement: Agreement,
    image: Image,
    offered: Export,
    budget: Budget,
    buffers: Buffers,
  ) {
    this.#agreement = agreement;
    this.#reader = agreement.reader;
    this.#writer = agreement.writer;
    this.#replies = new Replies(agreement.writer, agreement);
    this.#image = image;
    this.#export = offered;
    this.#budget = budget;
    this.#buffers = buffers;
  }

  /** Accept no more requests; those in flight are completed and answered. */
  close(): void {
    this.#isClosing = true;
    this.#budget.forget(this);
    // Nobody waits for a reply any more.
    if (this.#inFlight === 0 && !this.#writer.isBusy) {
      endStream(this.#agreement.stream);
      return;
    }
    // A client that does not receive its replies must not keep the server from
    // ending.
    this.#patience ??= setInterval(() => this.onPressure(), STALL / 3);
  }

  /** Others wait for memory: disconnect the client if it makes no progress. */
  onPressure(): void {
    const stalled = (last: number) => performance.now() - last > STALL;
    const isSlow = this.#isReadingData && stalled(this.#reader.lastProgress) ||
      this.#writer.isBusy && stalled(this.#writer.lastProgress);
    if (isSlow) endStream(this.#agreement.stream);
  }

  /**
   * Serve until the client disconnects or is gone. `onEnd` is called when it
   * is, with a promise that resolves when none of its requests is under way.
   *
   * @throws {ConnectionLost} if it breaks off.
   * @throws {ProtocolError} if it violates the protocol.
   */
  async run(onEnd: (settled: Promise<void>) => void): Promise<void> {
    try {
      await this.#takeAll();
    } finally {
      this.#isClosing = true;
      const settled = this.#allSettled();
      onEnd(settled);
      await settled;
      await this.#writer.drained().catch(() => {});
      clearInterval(this.#patience);
      endStream(this.#agreement.stream);
    }
  }

  async #allSettled(): Promise<void> {
    while (this.#inFlight > 0) await this.#oneSettled();
  }

  #oneSettled(): Promise<void> {
    return new Promise((resolve) => this.#settled = resolve);
  }

  /** Receive and begin one request after the other. */
  async #takeAll(): Promise<void> {
    const reader = this.#reader;
    const writer = this.#writer;
    const size = this.#agreement.extended
      ? EXTENDED_REQUEST_SIZE
      : REQUEST_SIZE;
    while (!this.#isClosing) {
      if (!reader.has(size)) await reader.need(size);
      const request = this.#nextRequest(size);
      if (request.type === COMMAND.DISCONNECT) return;
      while (this.#isFull(request)) await this.#oneSettled();
      // If the client is slow, replies should not pile up in memory.
      if (writer.queued >= MAX_QUEUED) await writer.room(MAX_QUEUED);
      await this.#begin(request);
    }
  }

  /** Whether a request has to wait for others to finish. */
  #isFull({ length }: Request): boolean {
    if (this.#inFlight >= MAX_IN_FLIGHT) return true;
    const most = Math.max(MAX_CACHED, LEAST_IN_FLIGHT * length);
    return !this.#isSlow && this.held >= most;
  }

  #nextRequest(size: number): Request {
    const at = this.#reader.take(size);
    const { fields } = this.#reader;
    const { extended } = this.#agreement;
    const magic = extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC;
    if (fields.u32(at) !== magic) {
      throw new ProtocolError(
        `invalid magic (got 0x${fields.u32(at).toString(16)})`,
      );
    }
    return {
      flags: fields.u16(at + 4),
      type: fields.u16(at + 6),
      cookie: [fields.u32(at + 8), fields.u32(at + 12)],
      offset: fields.u64(at + 16),
      length: extended ? fields.u64(at + 24) : fields.u32(at + 24),
    };
  }

  /** Begin a request, or refuse it; returns a promise if that has to wait. */
  #begin(request: Request): void | Promise<void> {
    const payload = this.#payloadOf(request);
    if (payload > MAX_PAYLOAD) {
      this.#replies.failure(request, tooLong(payload));
      throw new ProtocolError(tooLong(payload).message);
    }
    const refusal = this.#refusalOf(request);
    if (refusal) return this.#refuse(request, payload, refusal);
    const reads = request.type === COMMAND.READ;
    const bytes = OVERHEAD + (reads ? request.length : payload);
    const granted = this.#budget.acquire(this, bytes);
    if (granted || payload > 0) {
      return this.#beginLater(request, payload, bytes, granted);
    }
    this.#inFlight++;
    this.#run(request, undefined, bytes);
  }

  async #refuse(
    request: Request,
    payload: number,
    refusal: BlockError,
  ): Promise<void> {
    await this.#reader.skip(payload);
    this.#replies.failure(request, refusal);
    // Endless invalid requests must not queue endless replies.
    if (this.#writer.isBusy) await this.#writer.drained();
  }

  /** Bytes of payload after the header of a request. */
  #payloadOf({ type, flags, length }: Request): number {
    if (this.#agreement.extended && flags & PAYLOAD_LEN) return length;
    return type === COMMAND.WRITE ? length : 0;
  }

  /** Why a request is refused outright. */
  #refusalOf(request: Request): BlockError | undefined {
    const { type, flags, offset, length } = request;
    const { extended, contexts } = this.#agreement;
    const { writable, size } = this.#export;
    let valid = FLAGS[type];
    if (valid === undefined) {
      return invalid(`invalid request type (${type}) received`);
    }
    const mayHavePayload = type === COMMAND.WRITE ||
      type === COMMAND.BLOCK_STATUS;
    if (extended && mayHavePayload) valid |= PAYLOAD_LEN;
    if (flags & ~valid || flags & DF && !this.#agreement.structured) {
      return invalid(
        `unsupported flags for command ${commandName(type)} ` +
          `(got 0x${flags.toString(16)})`,
      );
    }
    const changes = type === COMMAND.WRITE || type === COMMAND.TRIM ||
      type === COMMAND.WRITE_ZEROES;
    if (changes && !writable) {
      return new BlockError("EPERM", "Export is read-only");
    }
    if (type === COMMAND.BLOCK_STATUS) {
      if (contexts.length === 0) {
        return invalid("CMD_BLOCK_STATUS not negotiated");
      }
      // The payload's length is checked later.
      if (flags & PAYLOAD_LEN) {
        return length === 0 ? badEffects() : undefined;
      }
      if (length === 0) return invalid("need non-zero length");
    }
    if (type === COMMAND.READ && length > MAX_PAYLOAD) return tooLong(length);
    if (offset + length <= size) return undefined;
    return new BlockError(
      type === COMMAND.WRITE || type === COMMAND.WRITE_ZEROES
        ? "ENOSPC"
        : "EINVAL",
      `operation past EOF; From: ${offset}, Len: ${length}, Size: ${size}`,
    );
  }

  /** Run a request once it has its memory and its data. */
  async #beginLater(
    request: Request,
    payload: number,
    bytes: number,
    granted: void | Promise<boolean>,
  ): Promise<void> {
    if (granted && !await granted) throw new ConnectionLost(true);
    let data: Uint8Array | undefined;
    if (payload > 0) {
      this.#isReadingData = true;
      try {
        data = this.#buffers.take(payload);
        await this.#reader.readInto(data);
      } catch (error) {
        this.#budget.release(this, bytes);
        throw error;
      } finally {
        this.#isReadingData = false;
      }
    }
    this.#inFlight++;
    this.#run(request, data, bytes);
  }

  async #run(
    request: Request,
    data: Uint8Array | undefined,
    bytes: number,
  ): Promise<void> {
    const memory = { left: bytes };
    // With many in flight, each waits for the others as well.
    const isTelling = bytes >= WORTH_A_LOOK &&
      this.#inFlight <= LEAST_IN_FLIGHT;
    const since = isTelling ? performance.now() : 0;
    try {
      if (request.type === COMMAND.READ) await this.#read(request, memory);
      else await this.#perform(request, data);
    } catch (error) {
      this.#replies.failure(request, asBlockError(error));
    }
    if (data) this.#buffers.give(data);
    if (isTelling) this.#isSlow = performance.now() - since > SLOW_REQUEST;
    this.#inFlight--;
    this.#release(memory.left);
    if (this.#isClosing) this.#closeWhenIdle();
  }

  /** Give memory back, so that the next request can have it. */
  #release(bytes: number): void {
    this.#budget.release(this, bytes);
    this.#settled();
  }

  async #closeWhenIdle(): Promise<void> {
    if (this.#inFlight > 0) return;
    await this.#writer.drained().catch(() => {});
    endStream(this.#agreement.stream);
  }

  async #perform(request: Request, data?: Uint8Array): Promise<void> {
    const image = this.#image;
    const { type, flags, offset, length } = request;
    const fua = (flags & FUA) !== 0;
    switch (type) {
      case COMMAND.WRITE:
        if (data) {
          await image.write(offset, data, { fua, background: true });
        } else if (fua) await image.flush();
        break;
      case COMMAND.WRITE_ZEROES:
        await image.writeZeroes(offset, length, {
          fua,
          unmap: (flags & NO_HOLE) === 0,
          noFallback: (flags & FAST_ZERO) !== 0,
        });
        break;
      case COMMAND.TRIM:
        await image.discard(offset, length);
        if (fua) await image.flush();
        break;
      case COMMAND.FLUSH:
        await image.flush();
        break;
      case COMMAND.CACHE:
        await this.#cache(offset, length);
        break;
      case COMMAND.BLOCK_STATUS:
        return await this.#status(request, data);
    }
    this.#replies.success(request);
  }

  /**
   * Read a range for the side effects of reading, such as copying it nearer.
   */
  async #cache(offset: number, length: number): Promise<void> {
    const scratch = new Uint8Array(Math.min(length, CACHE_STEP));
    for (let done = 0; done < length; done += scratch.length) {
      const take = Math.min(scratch.length, length - done);
      await this.#image.read(offset + done, scratch.subarray(0, take));
    }
  }

  #read(request: Request, memory: Memory): Promise<void> {
    const { flags, offset, length } = request;
    const isWhole = !this.#agreement.structured || (flags & DF) !== 0;
    if (isWhole || length < WORTH_A_LOOK) {
      return this.#readPart(request, memory, offset, length, true);
    }
    return this.#readParts(request, memory);
  }

  /** Read a range, reporting its holes as such. */
  async #readParts(request: Request, memory: Memory): Promise<void> {
    const { offset, length } = request;
    const end = offset + length;
    for (let at = offset, extents = 1; at < end; extents++) {
      const extent = extents < MAX_EXTENTS
        ? await this.#extentOf(at, end)
        : { length: end - at, zero: false };
      const stop = at + extent.length;
      if (extent.zero) {
        this.#replies.hole(request, at, extent.length, stop === end);
        at = stop;
      }
      while (at < stop) {
        const part = Math.min(PART_SIZE, stop - at);
        await this.#readPart(request, memory, at, part, at + part === end);
        at += part;
      }
    }
  }

  /** The first extent of a range, in whole blocks. */
  async #extentOf(
    at: number,
    end: number,
  ): Promise<{ length: number; zero: boolean }> {
    const { blockSizes: { minimum } } = this.#export;
    const { length, zero } = await this.#image.status(at, end - at);
    const rest = length % minimum;
    if (rest === 0 || at + length === end) return { length, zero };
    if (length > rest) return { length: length - rest, zero };
    return { length: Math.min(minimum, end - at), zero: false };
  }

  async #readPart(
    request: Request,
    memory: Memory,
    offset: number,
    length: number,
    isLast: boolean,
  ): Promise<void> {
    if (length === 0 && this.#agreement.structured) {
      return this.#replies.nothing(request);
    }
    const header = this.#replies.dataHeader;
    const buffer = this.#buffers.take(header + length);
    if (length > 0) await this.#fill(offset, buffer.subarray(header));
    // The memory is released when the client has received the reply.
    memory.left -= length;
    const written = () => {
      this.#buffers.give(buffer);
      this.#release(length);
    };
    this.#replies.data(request, offset, buffer, isLast, written);
  }

  async #fill(offset: number, bytes: Uint8Array): Promise<void> {
    const { length } = bytes;
    if (length < WORTH_A_LOOK || this.#inFlight === 1) {
      return await this.#image.readv(offset, [bytes]);
    }
    if (length >= WORTH_A_THREAD || this.#uncached > 0) {
      if (this.#uncached > 0) this.#uncached--;
      return await this.#image.readv(offset, [bytes], BACKGROUND);
    }
    const start = performance.now();
    await this.#image.readv(offset, [bytes]);
    if (performance.now() - start > UNCACHED) this.#uncached = UNCACHED_READS;
  }

  /** Only one at a time: there may be many runs in many contexts. */
  #status(request: Request, effects?: Uint8Array): Promise<void> {
    const answered = this.#lastStatus.then(() =>
      this.#answerStatus(request, effects)
    );
    this.#lastStatus = answered.catch(() => {});
    return answered;
  }

  async #answerStatus(request: Request, effects?: Uint8Array): Promise<void> {
    const { flags, offset } = request;
    const [length, ids] = effects
      ? this.#effectsOf(offset, effects)
      : [request.length, this.#agreement.contexts];
    const most = flags & REQ_ONE ? 1 : MAX_RUNS;
    const { contexts, blockSizes: { minimum } } = this.#export;
    const answers: [id: number, runs: readonly Run[]][] = [];
    let bytes = 0;
    for (const id of ids) {
      const runs = await runsOf(contexts[id], offset, length, most, minimum);
      answers.push([id, runs]);
      bytes += runs.length * RUN_SIZE;
    }
    // Unread replies take memory, too. No single reply may need more than a
    // connection is ever granted.
    bytes = Math.min(bytes, MAX_PAYLOAD);
    const granted = this.#budget.acquire(this, bytes);
    if (granted && !await granted) throw new ConnectionLost(true);
    const written = () => this.#release(bytes);
    for (const [index, [id, runs]] of answers.entries()) {
      const isLast = index === answers.length - 1;
      this.#replies.status(request, id, runs, isLast ? written : undefined);
    }
  }

  /** The contexts that the payload of a block status request selects. */
  #effectsOf(
    offset: number,
    payload: Uint8Array,
  ): [length: number, ids: readonly number[]] {
    const view = new DataView(payload.buffer, payload.byteOffset);
    const count = (payload.length - 8) / 4;
    const { contexts } = this.#agreement;
    if (!(count >= 1 && count <= contexts.length) || count % 1) {
      throw badEffects();
    }
    const length = view.getUint32(0) * 2 ** 32 + view.getUint32(4);
    const ids = new Set<number>();
    for (let i = 0; i < count; i++) ids.add(view.getUint32(8 + i * 4));
    const isKnown = [...ids].every((id) => contexts.includes(id));
    if (ids.size !== count || !isKnown) throw badEffects();
    if (length === 0 || offset + length > this.#export.size) throw badEffects();
    return [length, contexts.filter((id) => ids.has(id))];
  }
}

function badEffects(): BlockError {
  return invalid("CMD_BLOCK_STATUS payload not valid");
}

function tooLong(length: number): BlockError {
  return invalid(
    `len (${length} ) is larger than max len (${MAX_PAYLOAD})`,
  );
}
