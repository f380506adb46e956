/**
 * Standard output as the C library would write it.
 *
 * @module
 */
import { writeAllSync } from "@std/io/write-all";
import { codeOfErrno, strerror } from "../core/errors.ts";
import { surviveSignal } from "../core/runtime.ts";
import { CommandError } from "./command_error.ts";

/** The reader of our output has gone; nobody is left to tell anything. */
export class ReaderGone extends Error {
  /** The class name. */
  override name = "ReaderGone";
}

const BLOCK = 4096;

/** Milliseconds after which it is tried again to write to a full pipe. */
export const PAUSE = 5;

/** Linux's number for a pipe whose reader has gone. */
const EPIPE = 32;

/**
 * Text on its way to standard output: held back in blocks where it goes to a
 * pipe or file, in lines where it goes to a terminal. Tests of QEMU's tools
 * depend on which of two outputs comes first.
 */
export class Output {
  readonly #held = new Uint8Array(BLOCK);
  #length = 0;
  #interactive?: boolean;
  readonly #encoder = new TextEncoder();
  #failure?: CommandError;

  /**
   * Why not everything could be written, if so. Nobody is told before the end:
   * whoever is changing an image must not be stopped by that.
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
    this.#interactive ??= Deno.stdout.isTerminal();
    if (this.#interactive && text.includes("\n")) this.flush();
  }

  /** Write what was held back. */
  flush(): void {
    const held = this.#held.subarray(0, this.#length);
    this.#length = 0;
    this.#writeOut(held);
  }

  #hold(bytes: Uint8Array): void {
    this.#held.set(bytes, this.#length);
    this.#length += bytes.length;
  }

  /** Write all whole blocks, and hold the rest back. */
  #writeBlocks(bytes: Uint8Array): void {
    const whole = new Uint8Array(this.#length + bytes.length);
    whole.set(this.#held.subarray(0, this.#length));
    whole.set(bytes, this.#length);
    const rest = whole.length % BLOCK;
    this.#length = 0;
    this.#hold(whole.subarray(whole.length - rest));
    this.#writeOut(whole.subarray(0, whole.length - rest));
  }

  /** After something is missing, nothing follows. */
  #writeOut(bytes: Uint8Array): void {
    if (this.#failure || bytes.length === 0) return;
    // A file may become too large for the user's limit.
    if (!this.#interactive) surviveSignal("SIGXFSZ");
    try {
      writeFully(Deno.stdout, bytes);
    } catch (error) {
      if (error instanceof Deno.errors.BrokenPipe) throw new ReaderGone();
      this.#failure = streamError("write to standard output", error);
    }
  }
}

/** What a stream needs in order to be written to. */
interface Stream {
  writeSync(bytes: Uint8Array): number;
}

/** Write everything, whatever interrupts that, and however full a pipe is. */
export function writeFully(stream: Stream, bytes: Uint8Array): void {
  writeAllSync({ writeSync: (rest) => writePatiently(stream, rest) }, bytes);
}

function writePatiently(stream: Stream, bytes: Uint8Array): number {
  for (;;) {
    try {
      return stream.writeSync(bytes);
    } catch (error) {
      if (error instanceof Deno.errors.Interrupted) continue;
      if (!(error instanceof Deno.errors.WouldBlock)) throw error;
      // Who shares the pipe with us has set it up not to wait.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, PAUSE);
    }
  }
}

/** The error of a standard stream; `what` could not be done. */
export function streamError(what: string, error: unknown): CommandError {
  const { message } = error as Error;
  const errno = Number(/\(os error (\d+)\)/.exec(message)?.[1]);
  const why = errno === EPIPE ? "Broken pipe" : strerror(codeOfErrno(errno));
  return new CommandError(`Cannot ${what}: ${why}`);
}
