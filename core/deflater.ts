/**
 * Deflating small inputs with the system's zlib: merely starting a call of
 * `node:zlib` takes longer than deflating 512 bytes, and leaves kilobytes of
 * garbage.
 *
 * @module
 */
import { platform } from "./platform/mod.ts";
import { nativeLibrary } from "./runtime.ts";

/** The functions used of zlib. Errors are negative. */
interface ZlibLibrary {
  deflateInit2_(
    stream: Uint8Array,
    level: number,
    method: number,
    windowBits: number,
    memLevel: number,
    strategy: number,
    version: Uint8Array,
    size: number,
  ): number;
  deflateReset(stream: Uint8Array): number;
  deflate(stream: Uint8Array, flush: number): number;
  deflateEnd(stream: Uint8Array): number;
}

/** Bytes of the structure `z_stream`, and where its fields lie (64 bits). */
const STREAM_SIZE = 112;
const [NEXT_IN, AVAILABLE_IN, NEXT_OUT, AVAILABLE_OUT] = [0, 8, 24, 32];

const Z_OK = 0;
const Z_STREAM_END = 1;
const Z_FINISH = 4;
const Z_DEFLATED = 8;
const Z_DEFAULT_STRATEGY = 0;

/** A window of 4096 bytes, without a header. */
const WINDOW_BITS = -12;
const MEM_LEVEL = 8;

/** The same level as QEMU's. */
const DEFAULT_LEVEL = 6;

/** Longest input, in bytes. */
export const MOST_DEFLATED = 16 * 1024;

function addressOf(bytes: Uint8Array): bigint {
  return platform().libraries!.addressOf(bytes);
}

/** A zlib stream, reused for one input after the other. */
class Deflater {
  readonly level: number;
  readonly #zlib: ZlibLibrary;
  readonly #stream = new Uint8Array(STREAM_SIZE);
  readonly #view = new DataView(this.#stream.buffer);
  readonly #input = new Uint8Array(MOST_DEFLATED);
  readonly #output = new Uint8Array(MOST_DEFLATED);
  readonly #inputAddress = addressOf(this.#input);
  readonly #outputAddress = addressOf(this.#output);

  constructor(zlib: ZlibLibrary, level: number) {
    this.#zlib = zlib;
    this.level = level;
    const version = new TextEncoder().encode("1.2.11\0");
    const result = zlib.deflateInit2_(
      this.#stream,
      level,
      Z_DEFLATED,
      WINDOW_BITS,
      MEM_LEVEL,
      Z_DEFAULT_STRATEGY,
      version,
      STREAM_SIZE,
    );
    if (result !== Z_OK) throw new Error(`zlib failed: ${result}`);
  }

  deflate(input: Uint8Array): Uint8Array | undefined {
    this.#zlib.deflateReset(this.#stream);
    this.#input.set(input);
    this.#view.setBigUint64(NEXT_IN, this.#inputAddress, true);
    this.#view.setUint32(AVAILABLE_IN, input.length, true);
    this.#view.setBigUint64(NEXT_OUT, this.#outputAddress, true);
    // Output that is not shorter is of no use.
    this.#view.setUint32(AVAILABLE_OUT, input.length - 1, true);
    const result = this.#zlib.deflate(this.#stream, Z_FINISH);
    if (result !== Z_STREAM_END) return undefined;
    const left = this.#view.getUint32(AVAILABLE_OUT, true);
    return this.#output.subarray(0, input.length - 1 - left);
  }

  end(): void {
    this.#zlib.deflateEnd(this.#stream);
  }
}

let deflater: Deflater | undefined;

/**
 * Deflate at most {@linkcode MOST_DEFLATED} bytes; valid until the next call.
 *
 * @returns the output; `undefined` if it would not be shorter, `null` without
 * the library.
 */
export function deflate(
  input: Uint8Array,
  level: number = DEFAULT_LEVEL,
): Uint8Array | undefined | null {
  const zlib = nativeLibrary<ZlibLibrary>("libz.so.1", {
    deflateInit2_: {
      parameters: [
        ...["buffer", "i32", "i32", "i32", "i32", "i32"],
        ...["buffer", "i32"],
      ],
      result: "i32",
    },
    deflateReset: { parameters: ["buffer"], result: "i32" },
    deflate: { parameters: ["buffer", "i32"], result: "i32" },
    deflateEnd: { parameters: ["buffer"], result: "i32" },
  });
  if (!zlib) return null;
  if (deflater && deflater.level !== level) {
    deflater.end();
    deflater = undefined;
  }
  deflater ??= new Deflater(zlib, level);
  return deflater.deflate(input);
}
