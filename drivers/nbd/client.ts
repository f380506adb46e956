/**
 * The transmission phase of the client: many requests at once, each answered
 * when the server has completed it.
 *
 * @module
 */
import { aborted, unlessAborted } from "../../core/abort.ts";
import {
  fillVector,
  type IoVector,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { endStream } from "./bytes.ts";
import type { ClientAgreement, ExportInfo } from "./client_handshake.ts";
import {
  CHUNK,
  CHUNK_DONE,
  CHUNK_IS_ERROR,
  COMMAND,
  COMMAND_FLAG,
  decodeText,
  errorOfWire,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REPLY_SIZE,
  EXTENDED_REQUEST_MAGIC,
  EXTENDED_REQUEST_SIZE,
  type Fields,
  message,
  REQUEST_MAGIC,
  REQUEST_SIZE,
  SIMPLE_REPLY_MAGIC,
  SIMPLE_REPLY_SIZE,
  STRUCTURED_REPLY_MAGIC,
  STRUCTURED_REPLY_SIZE,
} from "./wire.ts";

/** A run of the negotiated metadata context. */
export interface StatusRun {
  /** Bytes. */
  readonly length: number;
  readonly flags: number;
}

/** A request waiting for its reply. */
interface Pending {
  readonly type: number;
  readonly offset: number;
  readonly length: number;
  /** Target of a read, unless that was aborted. */
  iov?: IoVector;
  /** Whether the target is being filled: an abort comes too late. */
  isFilling?: boolean;
  /** Received parts of a read, as pairs of start and end. */
  parts: [start: number, end: number][];
  /** Received runs of a block status. */
  runs?: StatusRun[];
  error?: BlockError;
  resolve(): void;
  reject(error: BlockError): void;
}

/** Most requests in flight; others wait here. */
const MAX_IN_FLIGHT = 64;
/** Most parts in which a server may answer one read. */
const MAX_PARTS = 65536;
/** Most bytes of a chunk without data: 2^20 extents of 16 bytes. */
const MAX_CHUNK = 16 * 1024 * 1024 + 16;

/** Runs of one reply that are kept; the others can be requested again. */
const MAX_RUNS = 4096;

/** The server has violated the protocol. */
class Violation extends BlockError {
  constructor(message: string) {
    super("EINVAL", undefined, { cause: new Error(message) });
  }
}

/** The connection has ended. */
export class LostConnection extends BlockError {
  /** Whether the server violated the protocol, as it may again. */
  readonly isViolation: boolean;

  /** The error for the reason it ended. */
  constructor(cause: unknown) {
    const isViolation = cause instanceof Violation;
    super(isViolation ? "EINVAL" : "EIO", undefined, { cause });
    this.isViolation = isViolation;
  }
}

/** A connection to an export. */
export class NbdClient {
  readonly info: ExportInfo;
  /** Whether extended headers, with 64-bit lengths, were negotiated. */
  readonly extended: boolean;
  /** Whether the requested metadata context was negotiated. */
  readonly hasContext: boolean;
  /**
   * Resolves when the connection has ended and no buffers are in use any more.
   */
  readonly ended: Promise<void>;
  readonly #agreement: ClientAgreement;
  readonly #pending = new Map<number, Pending>();
  readonly #waiting: (() => void)[] = [];
  #cookie = 0;
  #lost?: LostConnection;
  #isRetiring = false;

  /** Uses a connection after negotiation. */
  constructor(agreement: ClientAgreement) {
    this.#agreement = agreement;
    this.info = agreement.info;
    this.extended = agreement.extended;
    this.hasContext = agreement.contextId !== undefined;
    // Nobody would answer what is not sent.
    agreement.writer.onFailure = () => endStream(agreement.stream);
    this.ended = this.#receiveAll();
  }

  /** Number of requests in flight. */
  get inFlight(): number {
    return this.#pending.size + this.#waiting.length;
  }

  /** Why the connection has ended; `undefined` while it is usable. */
  get lost(): LostConnection | undefined {
    return this.#lost;
  }

  /**
   * Fill a vector; its length must be within the server's limits. The reply to
   * an aborted read is dropped when it comes.
   */
  async read(
    offset: number,
    iov: IoVector,
    signal?: AbortSignal,
  ): Promise<void> {
    const length = vectorLength(iov);
    await this.#request(COMMAND.READ, 0, offset, length, { iov, signal });
  }

  /** Write a vector. */
  async write(offset: number, iov: IoVector, fua: boolean): Promise<void> {
    const flags = fua ? COMMAND_FLAG.FUA : 0;
    const length = vectorLength(iov);
    await this.#request(COMMAND.WRITE, flags, offset, length, { data: iov });
  }

  /** A request without data, by its `COMMAND` and flags. */
  async command(
    type: number,
    offset: number,
    length: number,
    flags: number,
  ): Promise<void> {
    await this.#request(type, flags, offset, length);
  }

  /**
   * The runs of a range in the metadata context, from its first byte on: all
   * that the server reports, or only the first.
   */
  async status(
    offset: number,
    length: number,
    onlyFirst: boolean,
  ): Promise<StatusRun[]> {
    const { runs } = await this.#request(
      COMMAND.BLOCK_STATUS,
      onlyFirst ? COMMAND_FLAG.REQ_ONE : 0,
      offset,
      length,
    );
    // The reply was checked when it arrived.
    return runs!;
  }

  /** Disconnect; the server completes requests in flight, or they fail. */
  async close(): Promise<void> {
    if (!this.#lost) {
      const { writer } = this.#agreement;
      writer.push(this.#header(COMMAND.DISCONNECT, 0, 0, 0, 0));
      await writer.drained().catch(() => {});
    }
    this.abandon();
    await this.ended;
  }

  /**
   * End the connection once the requests in flight are answered. New ones fail
   * as if it were lost.
   */
  retire(): void {
    this.#lost ??= new LostConnection(undefined);
    this.#isRetiring = true;
    for (const resolve of this.#waiting.splice(0)) resolve();
    if (this.#pending.size === 0) endStream(this.#agreement.stream);
  }

  /** End the connection at once. */
  abandon(): void {
    this.#lost ??= new LostConnection(undefined);
    endStream(this.#agreement.stream);
  }

  #header(
    type: number,
    flags: number,
    cookie: number,
    offset: number,
    length: number,
  ): Uint8Array {
    const { extended } = this;
    const header = message(extended ? EXTENDED_REQUEST_SIZE : REQUEST_SIZE);
    header.setU32(0, extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC);
    header.setU16(4, flags);
    header.setU16(6, type);
    header.setU32(12, cookie);
    header.setU64(16, offset);
    if (extended) header.setU64(24, length);
    else header.setU32(24, length);
    return header.bytes;
  }

  async #request(
    type: number,
    flags: number,
    offset: number,
    length: number,
    { iov, data, signal }: {
      iov?: IoVector;
      data?: IoVector;
      signal?: AbortSignal;
    } = {},
  ): Promise<Pending> {
    if (this.#pending.size >= MAX_IN_FLIGHT || this.#waiting.length > 0) {
      await this.#turn(signal);
    }
    if (this.#lost) throw this.#lost;
    const { writer } = this.#agreement;
    const cookie = this.#cookie = (this.#cookie + 1) >>> 0;
    if (data && this.extended) flags |= COMMAND_FLAG.PAYLOAD_LEN;
    let pending: Pending;
    const answered = new Promise<void>((resolve, reject) => {
      const parts: Pending["parts"] = [];
      pending = { type, offset, length, iov, parts, resolve, reject };
      this.#pending.set(cookie, pending);
    });
    writer.push(this.#header(type, flags, cookie, offset, length));
    if (data) {
      for (const part of data) if (part.length > 0) writer.push(part);
    }
    const abort = () => {
      if (pending.isFilling) return;
      pending.iov = undefined;
      pending.reject(aborted(signal!));
    };
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort);
    try {
      await answered;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
    return pending!;
  }

  /** Wait until fewer requests are in flight. */
  async #turn(signal: AbortSignal | undefined): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting.push(resolve);
    try {
      await unlessAborted(promise, signal);
    } catch (error) {
      const place = this.#waiting.indexOf(resolve);
      if (place >= 0) this.#waiting.splice(place, 1);
      // Its turn has come already: it is another's.
      else this.#waiting.shift()?.();
      throw error;
    }
  }

  /** Receive replies until the connection ends. */
  async #receiveAll(): Promise<void> {
    const { stream, reader, writer, structured, extended } = this.#agreement;
    const size = extended ? EXTENDED_REPLY_SIZE : SIMPLE_REPLY_SIZE;
    try {
      for (;;) {
        if (!reader.has(size)) await reader.need(size);
        const at = reader.take(size);
        const magic = reader.fields.u32(at);
        if (magic === SIMPLE_REPLY_MAGIC && !extended) {
          const done = this.#takeSimple(reader.fields, at);
          if (done) await done;
        } else if (
          magic === STRUCTURED_REPLY_MAGIC && structured && !extended
        ) {
          await this.#takeChunk(await this.#wholeHeader(reader.fields, at));
        } else if (magic === EXTENDED_REPLY_MAGIC && extended) {
          const { fields } = reader;
          await this.#takeChunk({
            flags: fields.u16(at + 4),
            type: fields.u16(at + 6),
            cookie: cookieOf(fields, at),
            length: fields.u64(at + 24),
          });
        } else {
          throw new BlockError(
            "EIO",
            `invalid magic (got 0x${magic.toString(16)})`,
          );
        }
      }
    } catch (error) {
      this.#lost ??= new LostConnection(error);
    }
    endStream(stream);
    // Buffers belong to the callers again only when nothing is written from
    // them.
    await writer.drained().catch(() => {});
    const lost = this.#lost!;
    for (const { reject } of this.#pending.values()) reject(lost);
    this.#pending.clear();
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** The header of a chunk, which is longer than that of a simple reply. */
  async #wholeHeader(fields: Fields, at: number): Promise<Chunk> {
    const { reader } = this.#agreement;
    const chunk = {
      flags: fields.u16(at + 4),
      type: fields.u16(at + 6),
      cookie: cookieOf(fields, at),
    };
    const rest = await reader.next(STRUCTURED_REPLY_SIZE - SIMPLE_REPLY_SIZE);
    return { ...chunk, length: reader.fields.u32(rest) };
  }

  #find(cookie: number): Pending {
    const pending = this.#pending.get(cookie);
    if (!pending) throw new BlockError("EIO", "Unexpected reply");
    return pending;
  }

  /** Handle a simple reply; returns a promise if it has data. */
  #takeSimple(fields: Fields, at: number): Promise<void> | undefined {
    const error = fields.u32(at + 4);
    const cookie = cookieOf(fields, at);
    const pending = this.#find(cookie);
    const { type, iov, length } = pending;
    if (error !== 0) pending.error = errorOfWire(error);
    else if (type === COMMAND.READ) {
      if (this.#agreement.structured) {
        throw new Violation("Protocol error: simple reply to a read");
      }
      if (length > 0) {
        return this.#fill(pending, iov, length).then(() => {
          pending.parts.push([0, length]);
          this.#finish(cookie, pending);
        });
      }
    } else if (type === COMMAND.BLOCK_STATUS) {
      throw new Violation("Protocol error: simple reply to block status");
    }
    this.#finish(cookie, pending);
    return undefined;
  }

  async #takeChunk(chunk: Chunk): Promise<void> {
    const pending = this.#find(chunk.cookie);
    await this.#takePayload(chunk, pending);
    if (chunk.flags & CHUNK_DONE) this.#finish(chunk.cookie, pending);
  }

  async #takePayload(chunk: Chunk, pending: Pending): Promise<void> {
    const { reader } = this.#agreement;
    const { type, length } = chunk;
    if (type & CHUNK_IS_ERROR) return await this.#takeError(chunk, pending);
    switch (type) {
      case CHUNK.NONE:
        if (length !== 0) throw new Violation("payload of an empty chunk");
        if (!(chunk.flags & CHUNK_DONE)) {
          throw new Violation("empty chunk that is not the last");
        }
        return;
      case CHUNK.OFFSET_DATA: {
        if (length <= 8) throw new Violation("no data in a chunk of data");
        const at = await reader.next(8);
        const start = reader.fields.u64(at) - pending.offset;
        this.#addPart(pending, start, length - 8);
        const { iov } = pending;
        const target = iov && sliceVector(iov, start, length - 8);
        return await this.#fill(pending, target, length - 8);
      }
      case CHUNK.OFFSET_HOLE: {
        if (length !== 12) throw new Violation("length of a hole's chunk");
        const at = await reader.next(12);
        const start = reader.fields.u64(at) - pending.offset;
        const size = reader.fields.u32(at + 8);
        this.#addPart(pending, start, size);
        const { iov } = pending;
        if (iov) fillVector(iov, start, size);
        return;
      }
      case CHUNK.BLOCK_STATUS:
      case CHUNK.BLOCK_STATUS_EXT:
        return await this.#takeStatus(chunk, pending);
      default:
        throw new Violation(`unexpected chunk type ${type}`);
    }
  }

  /** Receive the next bytes into a read's target, if it still has one. */
  async #fill(
    pending: Pending,
    target: IoVector | undefined,
    length: number,
  ): Promise<void> {
    const { reader } = this.#agreement;
    if (!target) return await reader.skip(length);
    pending.isFilling = true;
    await reader.readIntoVector(target);
    pending.isFilling = false;
  }

  #addPart(pending: Pending, start: number, length: number): void {
    const { type, parts } = pending;
    if (type !== COMMAND.READ) {
      throw new Violation("data that was not requested");
    }
    const isWithin = start >= 0 && start + length <= pending.length;
    if (!isWithin || length === 0 || parts.length === MAX_PARTS) {
      throw new Violation("data outside of what was asked for");
    }
    parts.push([start, start + length]);
  }

  async #takeError({ type, length }: Chunk, pending: Pending): Promise<void> {
    const { reader } = this.#agreement;
    if (length > MAX_CHUNK) throw new Violation("length of an error's chunk");
    let number = 5;
    let text = "";
    if (type === CHUNK.ERROR || type === CHUNK.ERROR_OFFSET) {
      if (length < 6) throw new Violation("length of an error's chunk");
      const at = await reader.next(6);
      number = reader.fields.u32(at);
      const textLength = reader.fields.u16(at + 4);
      const rest = type === CHUNK.ERROR_OFFSET ? 8 : 0;
      if (number === 0 || 6 + textLength + rest !== length) {
        throw new Violation("text of an error");
      }
      text = decodeText(await reader.bytes(textLength));
      await reader.skip(rest);
    } else await reader.skip(length);
    pending.error ??= errorOfWire(number, text);
  }

  async #takeStatus({ type, length }: Chunk, pending: Pending): Promise<void> {
    const { reader, extended, contextId } = this.#agreement;
    const [fixed, size] = type === CHUNK.BLOCK_STATUS_EXT ? [8, 16] : [4, 8];
    const isFit = length >= fixed + size && (length - fixed) % size === 0 &&
      length <= MAX_CHUNK && (type === CHUNK.BLOCK_STATUS_EXT) === extended;
    if (!isFit || pending.type !== COMMAND.BLOCK_STATUS || pending.runs) {
      throw new Violation("invalid block status");
    }
    const count = Math.min(MAX_RUNS, (length - fixed) / size);
    const kept = fixed + count * size;
    let at = await reader.next(kept);
    const { fields } = reader;
    if (fields.u32(at) !== contextId) {
      throw new Violation("block status of another context");
    }
    at += fixed;
    pending.runs = [];
    // The last run may extend past the request.
    let rest = pending.length;
    for (const end = at + count * size; at < end && rest > 0; at += size) {
      const told = extended ? fields.u64(at) : fields.u32(at);
      if (told === 0) throw new Violation("empty block status");
      const flags = fields.u32(extended ? at + 12 : at + 4);
      pending.runs.push({ length: Math.min(told, rest), flags });
      rest -= told;
    }
    await reader.skip(length - kept);
  }

  #finish(cookie: number, pending: Pending): void {
    this.#pending.delete(cookie);
    this.#waiting.shift()?.();
    const error = pending.error ?? this.#missing(pending);
    if (error) pending.reject(error);
    else pending.resolve();
    if (this.#isRetiring && this.#pending.size === 0) {
      endStream(this.#agreement.stream);
    }
  }

  /** What is missing from a reply that claims success. */
  #missing({ type, length, parts, runs }: Pending): BlockError | undefined {
    if (type === COMMAND.BLOCK_STATUS) {
      return runs ? undefined : new BlockError("EIO");
    }
    if (type !== COMMAND.READ) return undefined;
    if (parts.length > 1) parts.sort(([a], [b]) => a - b);
    let end = 0;
    for (const [start, stop] of parts) {
      if (start !== end) return new BlockError("EIO");
      end = stop;
    }
    return end === length ? undefined : new BlockError("EIO");
  }
}

interface Chunk {
  readonly flags: number;
  readonly type: number;
  readonly cookie: number;
  /** Bytes of its payload. */
  readonly length: number;
}

/** The cookie of a request, in the second half of the field. */
function cookieOf(fields: Fields, at: number): number {
  // The first half of our cookies is zero: other replies are not for us.
  return fields.u32(at + 8) === 0 ? fields.u32(at + 12) : -1;
}
