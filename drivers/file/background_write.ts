/**
 * Writes that the C library makes in a thread of its own (POSIX `aio_write`),
 * so that this one can read what is to be written next. Those to one file are
 * made one after the other.
 *
 * @module
 */
import { asBlockError, BlockError } from "../../core/errors.ts";
import { errnoError, type PendingWrite } from "../../core/platform/files.ts";
import { type Libc, throwUnlessInterrupted } from "../../core/platform/libc.ts";

const SIGEV_NONE = 1;
const EINTR = 4;
const EINPROGRESS = 115;

/** Bound before a write begins, which has to be waited for then. */
const WAITING = ["aio_error", "aio_return", "aio_suspend"] as const;

let isAvailable = true;

/**
 * Begin to write `part` at `offset` of an open file.
 *
 * @returns `undefined` if that cannot be done in the background.
 */
export function beginWrite(
  library: Libc,
  descriptor: number,
  offset: number,
  part: Uint8Array,
): PendingWrite | undefined {
  if (!isAvailable) return undefined;
  try {
    return new BackgroundWrite(library, descriptor, offset, part);
  } catch (error) {
    // EAGAIN passes. But libraries older than 2.34 have no such functions.
    if (!(error instanceof BlockError)) throw error;
    if (error.code === "ENOTSUP") isAvailable = false;
    return undefined;
  }
}

class BackgroundWrite implements PendingWrite {
  readonly #libc: Libc;
  readonly #descriptor: number;
  readonly #block: ControlBlock;
  readonly #offset: number;
  /** What is written: in use by the other thread, so it is kept alive. */
  readonly #part: Uint8Array;
  #isOver = false;
  #error?: BlockError;

  constructor(
    library: Libc,
    descriptor: number,
    offset: number,
    part: Uint8Array,
  ) {
    this.#libc = library;
    this.#block = spare.pop() ?? new ControlBlock(library);
    this.#descriptor = descriptor;
    this.#offset = offset;
    this.#part = part;
    this.#block.descriptor = descriptor;
    this.#block.setRange(library.addressOf(part), part.length, offset);
    for (const name of WAITING) void library[name];
    const code = library.aio_write(this.#block.bytes);
    if (code < 0) throw errnoError(-code);
  }

  get isDone(): boolean {
    return this.#isOver ||
      this.#libc.aio_error(this.#block.bytes) !== EINPROGRESS;
  }

  wait(): void {
    if (this.#isOver) return;
    try {
      const written = this.#waitForThread();
      // Whatever it stopped at, it is met again here, or it is over.
      const rest = this.#part.subarray(written);
      writeAll(this.#libc, this.#descriptor, this.#offset + written, rest);
    } catch (error) {
      this.#error = asBlockError(error);
    }
    this.#isOver = true;
    spare.push(this.#block);
  }

  finish(): void {
    this.wait();
    if (this.#error) throw this.#error;
  }

  /** Wait for the end of what was begun; answers the bytes written. */
  #waitForThread(): number {
    const { bytes, list } = this.#block;
    let errno: number;
    while ((errno = this.#libc.aio_error(bytes)) === EINPROGRESS) {
      this.#libc.aio_suspend(list, 1, null);
    }
    // Not only for its result: the library lets go of the request.
    const written = this.#libc.aio_return(bytes);
    if (errno !== 0 && errno !== EINTR) throw errnoError(errno);
    return Math.max(0, written);
  }
}

/** A `struct aiocb`, which is alike on all 64-bit systems of Linux. */
class ControlBlock {
  readonly bytes = new Uint8Array(168);
  /** The list that has only this one. */
  readonly list: Uint8Array<ArrayBuffer>;
  readonly #view = new DataView(this.bytes.buffer);

  constructor(library: Libc) {
    this.list = new Uint8Array(
      new BigUint64Array([library.addressOf(this.bytes)]).buffer,
    );
    this.#view.setInt32(44, SIGEV_NONE, true);
  }

  set descriptor(descriptor: number) {
    this.#view.setInt32(0, descriptor, true);
  }

  setRange(address: bigint, length: number, offset: number): void {
    this.#view.setBigUint64(16, address, true);
    this.#view.setBigUint64(24, BigInt(length), true);
    this.#view.setBigInt64(128, BigInt(offset), true);
  }
}

/** Blocks that are not in use: making one takes longer than all else here. */
const spare: ControlBlock[] = [];

/**
 * Write all of `part` at `offset`.
 *
 * @throws {BlockError} as the system does; part of it may be written then.
 */
export function writeAll(
  library: Libc,
  descriptor: number,
  offset: number,
  part: Uint8Array,
): void {
  const { length } = part;
  for (let done = 0; done < length;) {
    const count = library.pwrite(
      descriptor,
      done === 0 ? part : part.subarray(done),
      BigInt(length - done),
      BigInt(offset + done),
    );
    if (count < 0) throwUnlessInterrupted(count);
    else if (count === 0) throw new BlockError("ENOSPC");
    else done += count;
  }
}
