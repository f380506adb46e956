/**
 * Writes that the C library makes in a thread of its own (POSIX `aio_write`),
 * so that this one can read what is to be written next. Those to one file are
 * made one after the other.
 *
 * @module
 */
import { asBlockError, BlockError } from "../../core/errors.ts";
import { errnoError, type PendingWrite } from "./host.ts";
import { lastErrno, type Libc } from "./libc.ts";

/** Places in `struct aiocb`, which is alike on all 64-bit systems of Linux. */
const CONTROL_BLOCK = {
  size: 168,
  descriptor: 0,
  buffer: 16,
  length: 24,
  notification: 44,
  offset: 128,
};

const SIGEV_NONE = 1;
const EINPROGRESS = 115;

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
    // EAGAIN passes. But in libraries older than 2.34 there are none.
    isAvailable = error instanceof BlockError;
    return undefined;
  }
}

class BackgroundWrite implements PendingWrite {
  readonly #libc: Libc;
  readonly #block = new Uint8Array(CONTROL_BLOCK.size);
  readonly #view = new DataView(this.#block.buffer);
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
    this.#offset = offset;
    this.#part = part;
    this.#view.setInt32(CONTROL_BLOCK.descriptor, descriptor, true);
    this.#view.setInt32(CONTROL_BLOCK.notification, SIGEV_NONE, true);
    this.#begin(0);
  }

  /** Begin to write all but the first `done` bytes. */
  #begin(done: number): void {
    const view = this.#view;
    const left = this.#part.length - done;
    const address = addressOf(this.#part) + BigInt(done);
    view.setBigUint64(CONTROL_BLOCK.buffer, address, true);
    view.setBigUint64(CONTROL_BLOCK.length, BigInt(left), true);
    view.setBigInt64(CONTROL_BLOCK.offset, BigInt(this.#offset + done), true);
    if (this.#libc.aio_write(this.#block) < 0) throw errnoError(lastErrno());
  }

  get isDone(): boolean {
    return this.#isOver || this.#libc.aio_error(this.#block) !== EINPROGRESS;
  }

  finish(): void {
    if (!this.#isOver) {
      try {
        this.#writeAll();
      } catch (error) {
        this.#error = asBlockError(error);
      }
      this.#isOver = true;
    }
    if (this.#error) throw this.#error;
  }

  #writeAll(): void {
    for (let done = 0;;) {
      done += this.#wait();
      if (done === this.#part.length) return;
      this.#begin(done);
    }
  }

  /** Wait for the end of what was begun; answers the bytes written. */
  #wait(): number {
    const list = new BigUint64Array([addressOf(this.#block)]);
    const blocks = new Uint8Array(list.buffer);
    while (!this.isDone) this.#libc.aio_suspend(blocks, 1, null);
    const errno = this.#libc.aio_error(this.#block);
    // Not only for its result: the library lets go of the request.
    const written = this.#libc.aio_return(this.#block);
    if (errno !== 0) throw errnoError(errno);
    if (written === 0) throw new BlockError("ENOSPC");
    return written;
  }
}

function addressOf(bytes: Uint8Array): bigint {
  const pointer = Deno.UnsafePointer.of(bytes as Uint8Array<ArrayBuffer>);
  return BigInt(Deno.UnsafePointer.value(pointer));
}
