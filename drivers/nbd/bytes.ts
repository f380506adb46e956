/**
 * Reading and writing messages on a byte stream.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import type { ByteStream } from "../../core/platform/sockets.ts";
import type { IoVector } from "../../core/bytes.ts";
import { Fields } from "./wire.ts";

/** The other end is gone, or has broken off in the middle of a message. */
export class ConnectionLost extends BlockError {
  /** Whether the stream ended between two messages, as is permitted. */
  readonly isEnd: boolean;

  /** An error for a stream that has ended or failed. */
  constructor(isEnd: boolean, cause?: unknown) {
    super("EIO", "Unexpected end-of-file before all data were read", { cause });
    this.isEnd = isEnd;
  }
}

/** Bytes read at once: enough for many small messages. */
const READ_AHEAD = 128 * 1024;

/** Reads messages from a stream. */
export class MessageReader {
  /** When bytes last arrived, by `performance.now()`. */
  lastProgress = performance.now();
  readonly #stream: ByteStream;
  readonly #buffer = new Uint8Array(READ_AHEAD);
  readonly #fields = new Fields(this.#buffer);
  #start = 0;
  #end = 0;

  /** Reads from `stream`, which must have no other reader. */
  constructor(stream: ByteStream) {
    this.#stream = stream;
  }

  /** Whether this many bytes are buffered. */
  has(length: number): boolean {
    return this.#end - this.#start >= length;
  }

  /** Consume `length` buffered bytes; returns their offset in `fields`. */
  take(length: number): number {
    const at = this.#start;
    this.#start += length;
    return at;
  }

  /** The buffered bytes; valid until more are read. */
  get fields(): Fields {
    return this.#fields;
  }

  /**
   * Wait until `length` bytes, at most a few KiB, are buffered.
   *
   * @throws {ConnectionLost} if they do not arrive.
   */
  async need(length: number): Promise<void> {
    if (this.#start === this.#end) this.#start = this.#end = 0;
    if (this.#start + length > READ_AHEAD) {
      this.#buffer.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    while (!this.has(length)) {
      const isEnd = this.#start === this.#end;
      this.#end += await this.#read(this.#buffer.subarray(this.#end), isEnd);
    }
  }

  /** Wait for a small message; returns its offset in `fields`. */
  async next(length: number): Promise<number> {
    if (!this.has(length)) await this.need(length);
    return this.take(length);
  }

  /** Fill a buffer. */
  async readInto(target: Uint8Array): Promise<void> {
    let done = Math.min(target.length, this.#end - this.#start);
    target.set(this.#buffer.subarray(this.#start, this.#start + done));
    this.#start += done;
    while (done < target.length) {
      // A short rest is read together with what follows it.
      if (target.length - done < 4096) {
        await this.need(target.length - done);
        const at = this.take(target.length - done);
        target.set(
          this.#buffer.subarray(at, at + target.length - done),
          done,
        );
        return;
      }
      done += await this.#read(target.subarray(done), false);
    }
  }

  /** Fill the parts of a vector. */
  async readIntoVector(iov: IoVector): Promise<void> {
    for (const part of iov) await this.readInto(part);
  }

  /** A copy of the next `length` bytes; the caller has checked the number. */
  async bytes(length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    await this.readInto(bytes);
    return bytes;
  }

  /** The next `length` bytes as a message. */
  async message(length: number): Promise<Fields> {
    return new Fields(await this.bytes(length));
  }

  /** Skip `length` bytes. */
  async skip(length: number): Promise<void> {
    while (length > 0) {
      const part = Math.min(length, READ_AHEAD / 2);
      await this.next(part);
      length -= part;
    }
  }

  async #read(into: Uint8Array, isEnd: boolean): Promise<number> {
    let count: number | null;
    try {
      count = await this.#stream.read(into);
    } catch (error) {
      throw new ConnectionLost(false, error);
    }
    if (!count) throw new ConnectionLost(isEnd);
    this.lastProgress = performance.now();
    return count;
  }
}

/** Shorter pieces are combined by copying, since each write costs more. */
const WORTH_A_WRITE = 32 * 1024;
const WRITE_BEHIND = 256 * 1024;
/** This many bytes are written without waiting for more. */
const BATCH = 64 * 1024;
/** Idle microtask turns after which no further piece is expected. */
const QUIET = 8;

/** A queued piece, and who waits for it. */
interface Piece {
  readonly bytes: Uint8Array;
  readonly written?: () => void;
}

/**
 * Writes messages to a stream, in order, combining small ones.
 *
 * Only short pieces are copied. Others must not change until `written` is
 * called, which always happens.
 */
export class MessageWriter {
  /** When the other end last accepted bytes, by `performance.now()`. */
  lastProgress = performance.now();
  /** Called when the other end accepts no more bytes. */
  onFailure?: () => void;
  readonly #stream: ByteStream;
  #queue: Piece[] = [];
  #isWriting = false;
  #failure?: ConnectionLost;
  #idle: (() => void)[] = [];
  #queued = 0;
  #roomy?: () => void;
  #buffer?: Uint8Array;

  /** Writes to `stream`, which must have no other writer. */
  constructor(stream: ByteStream) {
    this.#stream = stream;
  }

  /** Whether any bytes are still queued. */
  get isBusy(): boolean {
    return this.#isWriting;
  }

  /** Number of queued bytes. */
  get queued(): number {
    return this.#queued;
  }

  /**
   * Wait until fewer than `most` bytes are queued. Only one caller may wait at
   * a time.
   */
  async room(most: number): Promise<void> {
    while (this.#queued >= most) {
      await new Promise<void>((resolve) => this.#roomy = resolve);
    }
  }

  /** Why nothing can be written any more. */
  get failure(): ConnectionLost | undefined {
    return this.#failure;
  }

  /** Queue a piece. `written` is called when it belongs to the caller again. */
  push(bytes: Uint8Array, written?: () => void): void {
    if (this.#failure) {
      written?.();
      return;
    }
    this.#queue.push({ bytes, written });
    this.#queued += bytes.length;
    if (this.#isWriting) return;
    this.#isWriting = true;
    this.lastProgress = performance.now();
    // Others may be queued in the same turn.
    queueMicrotask(() => this.#writeAll());
  }

  /**
   * Wait until everything has been written.
   *
   * @throws {ConnectionLost} if that fails.
   */
  async drained(): Promise<void> {
    if (this.#isWriting) {
      await new Promise<void>((resolve) => this.#idle.push(resolve));
    }
    if (this.#failure) throw this.#failure;
  }

  async #writeAll(): Promise<void> {
    while (this.#queue.length > 0) {
      if (this.#queued < BATCH) await this.#others();
      const [bytes, count] = this.#nextWrite();
      const pieces = this.#queue.splice(0, count);
      if (!this.#failure) await this.#write(bytes);
      for (const { bytes, written } of pieces) {
        this.#queued -= bytes.length;
        written?.();
      }
      this.#roomy?.();
    }
    this.#isWriting = false;
    for (const resolve of this.#idle.splice(0)) resolve();
  }

  /**
   * Let further pieces join the queue, as long as they arrive in the same turn
   * of the event loop: each write costs a system call, and wakes the other end.
   */
  async #others(): Promise<void> {
    let { length } = this.#queue;
    for (let turn = 0; turn < QUIET && this.#queued < BATCH; turn++) {
      await undefined;
      if (this.#queue.length === length) continue;
      length = this.#queue.length;
      turn = 0;
    }
  }

  /** The bytes to write next, and the number of pieces in them. */
  #nextWrite(): [bytes: Uint8Array, count: number] {
    const queue = this.#queue;
    const [{ bytes: first }] = queue;
    if (queue.length === 1 || first.length >= WORTH_A_WRITE) return [first, 1];
    this.#buffer ??= new Uint8Array(WRITE_BEHIND);
    let length = 0;
    let count = 0;
    while (count < queue.length) {
      const { bytes } = queue[count];
      if (
        bytes.length >= WORTH_A_WRITE || length + bytes.length > WRITE_BEHIND
      ) break;
      this.#buffer.set(bytes, length);
      length += bytes.length;
      count++;
    }
    return [this.#buffer.subarray(0, length), count];
  }

  async #write(bytes: Uint8Array): Promise<void> {
    try {
      for (let done = 0; done < bytes.length;) {
        done += await this.#stream.write(
          done === 0 ? bytes : bytes.subarray(done),
        );
        this.lastProgress = performance.now();
      }
    } catch (error) {
      this.#failure = new ConnectionLost(false, error);
      this.onFailure?.();
    }
  }
}

/** End a connection, which may have ended already. */
export function endStream(stream: ByteStream): void {
  try {
    stream.close();
  } catch {
    // Some runtimes throw when it is closed twice.
  }
}

/**
 * A connection as a pair of web streams.
 *
 * @category Network
 */
export interface WebStreams {
  /** Bytes received. */
  readonly readable: ReadableStream<Uint8Array>;
  /** Bytes to send. */
  readonly writable: WritableStream<Uint8Array>;
}

/**
 * A connection as a byte stream. Deno's connections have web streams as well,
 * which are slower.
 */
export function byteStream(stream: ByteStream | WebStreams): ByteStream {
  return "read" in stream ? stream : webStream(stream);
}

/** A pair of web streams as a byte stream. */
function webStream({ readable, writable }: WebStreams): ByteStream {
  const reader = readable.getReader();
  const writer = writable.getWriter();
  // Reads and writes report the failure; nobody awaits this.
  reader.closed.catch(() => {});
  writer.closed.catch(() => {});
  let rest: Uint8Array = new Uint8Array(0);
  return {
    async read(into) {
      while (rest.length === 0) {
        const { value, done } = await reader.read();
        if (done) return null;
        rest = value;
      }
      const count = Math.min(rest.length, into.length);
      into.set(rest.subarray(0, count));
      rest = rest.subarray(count);
      return count;
    },
    async write(bytes) {
      await writer.ready;
      // The other end may keep the chunk for longer than it is lent.
      await writer.write(bytes.slice());
      return bytes.length;
    },
    close() {
      reader.cancel().catch(() => {});
      writer.close().catch(() => {});
    },
  };
}
