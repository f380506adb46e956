/**
 * Standard output as the C library would write it.
 *
 * @module
 */
import { writeAllSync } from "@std/io/write-all";

/** The reader of our output has gone; nobody is left to tell anything. */
export class ReaderGone extends Error {
  /** The class name. */
  override name = "ReaderGone";
}

const BLOCK = 4096;

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
    writeOut(held);
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
    writeOut(whole.subarray(0, whole.length - rest));
  }
}

function writeOut(bytes: Uint8Array): void {
  try {
    writeAllSync(Deno.stdout, bytes);
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) throw new ReaderGone();
    throw error;
  }
}
