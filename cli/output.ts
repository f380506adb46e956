/**
 * Standard output, buffered as the C library does.
 *
 * @module
 */
import { writeAllSync } from "@std/io/write-all";
import { asBlockError, BlockError, strerror } from "../core/errors.ts";
import type { OutputStream } from "../core/platform/process.ts";
import { process } from "../core/platform/this_process.ts";
import { CommandError } from "./command_error.ts";

/** The reader of the output has gone, so messages cannot reach it. */
export class ReaderGone extends Error {
  /** The class name. */
  override name = "ReaderGone";
}

const BLOCK = 4096;

/** Milliseconds before retrying to write to a full pipe. */
export const PAUSE = 5;

/**
 * Text for standard output: buffered in blocks for a pipe or file, in lines for
 * a terminal. Tests of QEMU's tools depend on the order of two outputs.
 */
export class Output {
  readonly #held = new Uint8Array(BLOCK);
  #length = 0;
  #interactive?: boolean;
  readonly #encoder = new TextEncoder();
  #failure?: CommandError;

  /**
   * Why output was lost, if any was. It is reported only at the end, since it
   * must not stop a command that is changing an image.
   */
  get failure(): CommandError | undefined {
    return this.#failure;
  }

  /** Add text. */
  write(text: string): void {
    const bytes = this.#encoder.encode(text);
    if (this.#length + bytes.length < BLOCK) {
      this.#hold(bytes);
    } else {
      this.#writeBlocks(bytes);
    }
    this.#interactive ??= process.output.isTerminal();
    if (this.#interactive && text.includes("\n")) this.flush();
  }

  /** Write buffered text. */
  flush(): void {
    const held = this.#held.subarray(0, this.#length);
    this.#length = 0;
    this.#writeOut(held);
  }

  #hold(bytes: Uint8Array): void {
    this.#held.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  /** Write all whole blocks, and keep the rest. */
  #writeBlocks(bytes: Uint8Array): void {
    const whole = new Uint8Array(this.#length + bytes.length);
    whole.set(this.#held.subarray(0, this.#length));
    whole.set(bytes, this.#length);
    const rest = whole.length % BLOCK;
    this.#length = 0;
    this.#hold(whole.subarray(whole.length - rest));
    this.#writeOut(whole.subarray(0, whole.length - rest));
  }

  /** Write; once something has been lost, write nothing more. */
  #writeOut(bytes: Uint8Array): void {
    if (this.#failure || bytes.length === 0) return;
    try {
      writeFully(process.output, bytes);
    } catch (error) {
      if (asBlockError(error).code === "EPIPE") throw new ReaderGone();
      this.#failure = streamError("write to standard output", error);
    }
  }
}

/** Write everything, despite interruptions and full pipes. */
export function writeFully(stream: OutputStream, bytes: Uint8Array): void {
  writeAllSync({ writeSync: (rest) => writePatiently(stream, rest) }, bytes);
}

function writePatiently(stream: OutputStream, bytes: Uint8Array): number {
  for (;;) {
    try {
      return stream.write(bytes);
    } catch (error) {
      if (!canRetry(error)) throw error;
      // Another user of the pipe has made it nonblocking.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, PAUSE);
    }
  }
}

/** Whether to write again later: the pipe is full, or a signal came. */
export function canRetry(error: unknown): boolean {
  return error instanceof BlockError &&
    ["EAGAIN", "EINTR"].includes(error.code);
}

/** The error of a standard stream; `what` could not be done. */
export function streamError(what: string, error: unknown): CommandError {
  return new CommandError(
    `Cannot ${what}: ${strerror(asBlockError(error).code)}`,
  );
}
