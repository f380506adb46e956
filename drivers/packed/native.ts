/**
 * Unpacking front to back by libraries of the system: zlib, liblzma, libzstd.
 * They process parts of input and output, in little memory.
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { platform } from "../../core/platform/mod.ts";
import type { NativeFunction } from "../../core/platform/platform.ts";

/** Unpacks one file. */
export interface Unpacker extends Disposable {
  /**
   * Unpack more of it. Each part is valid until the next one is requested.
   *
   * @throws {BlockError} EIO if it is damaged.
   */
  push(input: Uint8Array): Generator<Uint8Array>;
  /**
   * Finish: no more input follows.
   *
   * @throws {BlockError} EIO if it is cut off.
   */
  end(): Generator<Uint8Array>;
}

/** Most bytes unpacked at once. */
const OUTPUT = 1024 * 1024;

/** Most memory for the dictionary of an xz file: twice that of `xz -9`. */
const XZ_MEMORY = 160n * 1024n * 1024n;

/** The base-2 logarithm of the largest window of a zstd file: 128 MiB. */
const ZSTD_WINDOW = 27;

type Functions = { readonly [name: string]: NativeFunction };

const bound = new Map<string, unknown>();

/** Functions of a library, or `null` if it is missing or may not be called. */
function bind<T>(file: string, functions: Functions): T | null {
  if (bound.has(file)) return bound.get(file) as T | null;
  const { libraries } = platform();
  const path = libraries?.find(file);
  let symbols: unknown = null;
  try {
    if (path) symbols = libraries!.open(path, functions).symbols;
  } catch {
    // The library is too old.
  }
  bound.set(file, symbols);
  return symbols as T | null;
}

function addressOf(bytes: Uint8Array): bigint {
  return platform().libraries!.addressOf(bytes);
}

/** The error for a damaged compressed file, whatever the library reports. */
export function damaged(what: string): BlockError {
  return new BlockError("EIO", `The ${what} data is damaged`);
}

/** The error for a compressed file that ends too early. */
export function cutOff(what: string): BlockError {
  return new BlockError("EIO", `The ${what} data is cut off`);
}

/**
 * The structure through which zlib and liblzma get their buffers. Both begin
 * with a pointer to the input, its length (`avail_in`), and a total, then the
 * same for the output. Lengths are below 2^32, so that the upper half of
 * liblzma's is zero, like zlib's padding.
 */
class Buffers {
  readonly struct: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  readonly #output = allocate(OUTPUT);
  /** Kept alive while the library knows its address. */
  #input: Uint8Array = allocate(0);

  constructor(length: number) {
    this.struct = allocate(length);
    this.#view = new DataView(this.struct.buffer, this.struct.byteOffset);
    this.#view.setBigUint64(24, addressOf(this.#output), true);
    this.empty();
  }

  give(input: Uint8Array): void {
    this.#input = input;
    const at = input.length === 0 ? 0n : addressOf(input);
    this.#view.setBigUint64(0, at, true);
    this.#view.setUint32(8, input.length, true);
  }

  /** Unused bytes of the input. */
  get rest(): number {
    return this.#view.getUint32(8, true);
  }

  /** The unused input. */
  get left(): Uint8Array {
    return this.#input.subarray(this.#input.length - this.rest);
  }

  get isFull(): boolean {
    return this.#view.getUint32(32, true) === 0;
  }

  /** The output since the last call of {@linkcode empty}. */
  get filled(): Uint8Array {
    const room = this.#view.getUint32(32, true);
    return this.#output.subarray(0, OUTPUT - room);
  }

  empty(): void {
    this.#view.setBigUint64(24, addressOf(this.#output), true);
    this.#view.setUint32(32, OUTPUT, true);
  }
}

interface ZlibLibrary {
  inflateInit2_(
    stream: Uint8Array,
    windowBits: number,
    version: Uint8Array,
    size: number,
  ): number;
  inflate(stream: Uint8Array, flush: number): number;
  inflateReset(stream: Uint8Array): number;
  inflateEnd(stream: Uint8Array): number;
}

const [Z_OK, Z_STREAM_END, Z_BUF_ERROR] = [0, 1, -5];
const Z_STREAM_SIZE = 112;

/**
 * Added to the window size: expect gzip's header and trailer, and check them.
 */
const GZIP_WINDOW = 15 + 16;
/** Negated window size: expect neither header nor trailer. */
const RAW_WINDOW = -15;

/**
 * Unpacks gzip, of which several members may follow each other, or plain
 * `deflate` data; `null` without zlib. What follows the last member of gzip is
 * ignored, as by `gzip` itself: zeroes, with which tapes and disks pad their
 * last block, silently, anything else with a warning. If that looks as if it
 * contained further members, part of the file has been overwritten.
 */
export function inflater(
  format: "gzip" | "deflate",
  warn?: (message: string) => void,
): Unpacker | null {
  const stream = { parameters: ["buffer"], result: "i32" } as const;
  const zlib = bind<ZlibLibrary>("libz.so.1", {
    inflateInit2_: {
      parameters: ["buffer", "i32", "buffer", "i32"],
      result: "i32",
    },
    inflate: { parameters: ["buffer", "i32"], result: "i32" },
    inflateReset: stream,
    inflateEnd: stream,
  });
  if (!zlib) return null;
  const buffers = new Buffers(Z_STREAM_SIZE);
  const { struct } = buffers;
  const isGzip = format === "gzip";
  const window = isGzip ? GZIP_WINDOW : RAW_WINDOW;
  const version = new TextEncoder().encode("1.2.0\0");
  if (zlib.inflateInit2_(struct, window, version, Z_STREAM_SIZE) !== Z_OK) {
    throw new BlockError("ENOMEM", "zlib has no memory");
  }
  let isInside = !isGzip;
  let isOver = false;
  let hasEnded = false;
  /** Whether a member follows in the input, perhaps after zeroes. */
  function findMember(): boolean {
    const { left } = buffers;
    const at = left.findIndex((byte) => byte !== 0);
    buffers.give(at < 0 ? new Uint8Array() : left.subarray(at));
    if (at < 0) return false;
    const [one, two] = buffers.left;
    if (!hasEnded || one === 0x1f && (two === 0x8b || two === undefined)) {
      return true;
    }
    isOver = true;
    warn?.("What follows the end of the gzip data is ignored");
    return false;
  }
  function* push(input: Uint8Array): Generator<Uint8Array> {
    buffers.give(input);
    while (buffers.rest > 0) {
      if (isOver) {
        if (isGzip && hasMember(buffers.left)) throw damaged(format);
        return;
      }
      if (isGzip && !isInside && !findMember()) continue;
      isInside = true;
      const code = zlib!.inflate(struct, 0);
      if (code < 0 && code !== Z_BUF_ERROR || code > Z_STREAM_END) {
        throw damaged(format);
      }
      if (buffers.isFull || code === Z_STREAM_END) {
        const { filled } = buffers;
        if (filled.length > 0) yield filled;
        buffers.empty();
      } else if (code === Z_BUF_ERROR && buffers.rest > 0) {
        throw damaged(format);
      }
      if (code !== Z_STREAM_END) continue;
      isInside = false;
      hasEnded = true;
      if (isGzip) zlib!.inflateReset(struct);
      else isOver = true;
    }
  }
  return {
    push,
    *end() {
      // A full buffer may mean that there is more output.
      while (isInside && !isOver) {
        const code = zlib.inflate(struct, 0);
        const { filled } = buffers;
        if (filled.length > 0) yield filled;
        buffers.empty();
        if (code === Z_STREAM_END) isInside = false;
        else if (code !== Z_OK) throw cutOff(format);
      }
      if (isInside) throw cutOff(format);
    },
    [Symbol.dispose]: () => void zlib.inflateEnd(struct),
  };
}

/** Whether bytes contain what a member of gzip begins with. */
function hasMember(bytes: Uint8Array): boolean {
  for (
    let at = bytes.indexOf(0x1f);
    at >= 0;
    at = bytes.indexOf(0x1f, at + 1)
  ) {
    if (bytes[at + 1] === 0x8b && bytes[at + 2] === 8) return true;
  }
  return false;
}

interface LzmaLibrary {
  lzma_stream_decoder(
    stream: Uint8Array,
    memory: bigint,
    flags: number,
  ): number;
  lzma_code(stream: Uint8Array, action: number): number;
  lzma_end(stream: Uint8Array): void;
  lzma_stream_buffer_decode(
    memory: Uint8Array,
    flags: number,
    allocator: null,
    input: Uint8Array,
    inputAt: Uint8Array,
    inputLength: bigint,
    output: Uint8Array,
    outputAt: Uint8Array,
    outputLength: bigint,
  ): number;
}

const [LZMA_OK, LZMA_STREAM_END] = [0, 1];
const LZMA_MEMLIMIT = 6;
const LZMA_OPTIONS = 8;
const LZMA_STREAM_SIZE = 136;
const LZMA_CONCATENATED = 8;
const [LZMA_RUN, LZMA_FINISH] = [0, 3];

function lzmaLibrary(): LzmaLibrary {
  const lzma = bind<LzmaLibrary>("liblzma.so.5", {
    lzma_stream_decoder: {
      parameters: ["buffer", "u64", "u32"],
      result: "i32",
    },
    lzma_code: { parameters: ["buffer", "i32"], result: "i32" },
    lzma_end: { parameters: ["buffer"], result: "void" },
    lzma_stream_buffer_decode: {
      parameters: ["buffer", "u32", "pointer", "buffer", "buffer", "usize"]
        .concat("buffer", "buffer", "usize"),
      result: "i32",
    },
  });
  if (lzma) return lzma;
  throw withoutLibrary("xz", "liblzma.so.5");
}

/** The error for a missing library. */
export function withoutLibrary(format: string, library: string): BlockError {
  return new BlockError(
    "ENOTSUP",
    `To unpack ${format} data, the library ${library} is needed, which is ` +
      "missing or may not be called",
    { hint: "Unpack it first, or permit the library with --allow-ffi." },
  );
}

function lzmaError(code: number): BlockError {
  if (code === LZMA_MEMLIMIT) {
    return new BlockError(
      "EFBIG",
      `Unpacking the xz data takes more than ${XZ_MEMORY >> 20n} MiB of memory`,
      { hint: "Unpack it first, with xz -d." },
    );
  }
  if (code === LZMA_OPTIONS) {
    return new BlockError("ENOTSUP", "The xz data uses an unknown filter");
  }
  return damaged("xz");
}

/**
 * Unpacks xz.
 *
 * @throws {BlockError} ENOTSUP without liblzma.
 */
export function xzUnpacker(): Unpacker {
  const lzma = lzmaLibrary();
  const buffers = new Buffers(LZMA_STREAM_SIZE);
  const { struct } = buffers;
  const code = lzma.lzma_stream_decoder(struct, XZ_MEMORY, LZMA_CONCATENATED);
  if (code !== LZMA_OK) throw lzmaError(code);
  function* step(action: number): Generator<Uint8Array, boolean> {
    const code = lzma.lzma_code(struct, action);
    const isOver = code === LZMA_STREAM_END;
    if (!isOver && code !== LZMA_OK) {
      throw action === LZMA_FINISH && code === 10
        ? cutOff("xz")
        : lzmaError(code);
    }
    if (buffers.isFull || isOver || action === LZMA_FINISH) {
      const { filled } = buffers;
      if (filled.length > 0) yield filled;
      buffers.empty();
    }
    return isOver;
  }
  return {
    *push(input) {
      buffers.give(input);
      while (buffers.rest > 0) yield* step(LZMA_RUN);
    },
    *end() {
      buffers.give(new Uint8Array());
      while (!(yield* step(LZMA_FINISH)));
    },
    [Symbol.dispose]: () => lzma.lzma_end(struct),
  };
}

/**
 * Unpack a whole xz stream to exactly the size of `target`.
 *
 * @throws {BlockError} EIO if that does not succeed.
 */
export function unpackXz(stream: Uint8Array, target: Uint8Array): void {
  const memory = new BigUint64Array([XZ_MEMORY, 0n, 0n]);
  const numbers = new Uint8Array(memory.buffer);
  const [limit, inputAt, outputAt] = [0, 8, 16]
    .map((at) => numbers.subarray(at, at + 8));
  const code = lzmaLibrary().lzma_stream_buffer_decode(
    limit,
    0,
    null,
    stream,
    inputAt,
    BigInt(stream.length),
    target,
    outputAt,
    BigInt(target.length),
  );
  if (code !== LZMA_OK) throw lzmaError(code);
  if (memory[2] !== BigInt(target.length)) throw damaged("xz");
}

interface ZstdLibrary {
  ZSTD_createDStream(): unknown;
  ZSTD_freeDStream(context: unknown): number;
  ZSTD_DCtx_setParameter(context: unknown, name: number, value: number): number;
  ZSTD_decompressStream(
    context: unknown,
    output: Uint8Array,
    input: Uint8Array,
  ): bigint;
  ZSTD_isError(code: bigint): number;
  ZSTD_getErrorCode(code: bigint): number;
}

const ZSTD_d_windowLogMax = 100;
const ZSTD_ERROR_WINDOW = 16;

/**
 * Unpacks zstd.
 *
 * @throws {BlockError} ENOTSUP without libzstd.
 */
export function zstdUnpacker(): Unpacker {
  const code = { parameters: ["usize"], result: "i32" } as const;
  const zstd = bind<ZstdLibrary>("libzstd.so.1", {
    ZSTD_createDStream: { parameters: [], result: "pointer" },
    ZSTD_freeDStream: { parameters: ["pointer"], result: "usize" },
    ZSTD_DCtx_setParameter: {
      parameters: ["pointer", "i32", "i32"],
      result: "usize",
    },
    ZSTD_decompressStream: {
      parameters: ["pointer", "buffer", "buffer"],
      result: "usize",
    },
    ZSTD_isError: code,
    ZSTD_getErrorCode: code,
  });
  if (!zstd) throw withoutLibrary("zstd", "libzstd.so.1");
  const context = zstd.ZSTD_createDStream();
  if (!context) throw new BlockError("ENOMEM", "libzstd has no memory");
  zstd.ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, ZSTD_WINDOW);
  const output = allocate(OUTPUT);
  // A buffer's address, its length, and the number of bytes used.
  const out = new BigUint64Array([addressOf(output), BigInt(OUTPUT), 0n]);
  const taken = new BigUint64Array(3);
  const [outStruct, inStruct] = [out, taken]
    .map(({ buffer }) => new Uint8Array(buffer));
  let isInside = false;
  function* push(input: Uint8Array): Generator<Uint8Array> {
    taken[0] = input.length === 0 ? 0n : addressOf(input);
    taken[1] = BigInt(input.length);
    taken[2] = 0n;
    for (;;) {
      out[2] = 0n;
      const code = BigInt(
        zstd!.ZSTD_decompressStream(context, outStruct, inStruct),
      );
      if (zstd!.ZSTD_isError(code)) throw zstdError(zstd!, code);
      isInside = code !== 0n;
      const filled = Number(out[2]);
      if (filled > 0) yield output.subarray(0, filled);
      // A full buffer may mean that there is more output, unless the frame has
      // ended.
      if (taken[2] === taken[1] && (filled < OUTPUT || !isInside)) return;
    }
  }
  return {
    push,
    // All output has been handed out.
    // deno-lint-ignore require-yield -- others have a rest
    *end() {
      if (isInside) throw cutOff("zstd");
    },
    [Symbol.dispose]: () => void zstd.ZSTD_freeDStream(context),
  };
}

function zstdError(zstd: ZstdLibrary, code: bigint): BlockError {
  if (zstd.ZSTD_getErrorCode(code) !== ZSTD_ERROR_WINDOW) {
    return damaged("zstd");
  }
  return new BlockError(
    "EFBIG",
    `The zstd data has a window of more than ${2 ** (ZSTD_WINDOW - 20)} MiB`,
    { hint: "Unpack it first, with zstd -d --long=31." },
  );
}
