/**
 * What a runtime provides that JavaScript itself does not: compression and
 * fast comparison. Native means are looked for when first needed, and portable
 * ones take their place where there are none, as in a browser.
 *
 * @module
 */
import { BlockError } from "./errors.ts";

/** The part of `node:zlib` in use; not every runtime has it. */
interface NativeZlib {
  inflateRawSync(input: Uint8Array, options: object): Uint8Array;
  deflateRawSync(input: Uint8Array, options: object): Uint8Array;
  zstdDecompressSync?(input: Uint8Array, options: object): Uint8Array;
  zstdCompressSync?(input: Uint8Array, options: object): Uint8Array;
  constants: { readonly [name: string]: number };
}

interface NativeBuffer {
  compare(a: Uint8Array, b: Uint8Array): number;
}

/** The globals of Node.js, which other runtimes have as well. */
interface NativeGlobals {
  process?: { getBuiltinModule?(name: string): unknown };
  Buffer?: NativeBuffer;
}

let portable = false;
let zlib: NativeZlib | null | undefined;
let buffer: NativeBuffer | null | undefined;

/**
 * Pretend that the runtime provides nothing, so that tests see the portable
 * ways.
 */
export function setPortable(value: boolean): void {
  portable = value;
}

function globals(): NativeGlobals {
  return globalThis as NativeGlobals;
}

/**
 * A module of Node.js that the runtime has as well, or `null`. Loading one
 * takes 30 ms and more: ask when it is needed, not before.
 */
export function nativeModule<T>(name: `node:${string}`): T | null {
  if (portable) return null;
  const module = globals().process?.getBuiltinModule?.(name);
  return module as T | undefined ?? null;
}

function nativeZlib(): NativeZlib | null {
  if (portable) return null;
  return zlib ??= nativeModule<NativeZlib>("node:zlib");
}

/**
 * Inflate a raw deflate stream to exactly `outputLength` bytes. What follows
 * the stream's end is ignored, as is what it holds beyond that length:
 * qcow2 counts compressed data in sectors and pads the last one.
 *
 * @throws {BlockError} EIO if the data is corrupt or too short.
 */
export function inflateRaw(
  input: Uint8Array,
  outputLength: number,
): Uint8Array | Promise<Uint8Array> {
  const native = nativeZlib();
  if (!native) return inflatePortably(input, outputLength);
  let output: Uint8Array;
  try {
    output = native.inflateRawSync(input, {
      // One byte more than needed, so that the whole output is one chunk.
      chunkSize: Math.max(64, outputLength + 1),
      maxOutputLength: outputLength,
      // A missing end is no harm where all of the output is there.
      finishFlush: native.constants.Z_SYNC_FLUSH,
    });
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === "ERR_BUFFER_TOO_LARGE") {
      return inflatePortably(input, outputLength);
    }
    throw corrupt(error);
  }
  return checkLength(output, outputLength);
}

async function inflatePortably(
  input: Uint8Array,
  outputLength: number,
): Promise<Uint8Array> {
  if (input.length === 0) throw corrupt();
  const { inflateSync } = await import("fflate");
  // Given a buffer to fill, it neither grows it nor writes beyond it.
  const out = new Uint8Array(outputLength);
  let output: Uint8Array;
  try {
    output = inflateSync(input, { out });
  } catch (error) {
    throw corrupt(error);
  }
  return checkLength(output, outputLength);
}

/**
 * Deflate to a raw stream with a window of 4096 bytes, all that readers of
 * qcow2 allow for.
 *
 * @param level 0 to 9; the runtime's default if absent.
 * @returns `undefined` where the runtime cannot: portable deflaters do not
 * limit their window.
 */
export function deflateRaw(
  input: Uint8Array,
  level?: number,
): Uint8Array | undefined {
  return withoutBuffer(
    nativeZlib()?.deflateRawSync(input, {
      windowBits: 12,
      memLevel: 9,
      chunkSize: input.length + 1024,
      ...(level !== undefined && { level }),
    }),
  );
}

/**
 * Decompress a zstd frame to exactly `outputLength` bytes; what follows the
 * frame is ignored.
 *
 * @throws {BlockError} EIO if the data is corrupt, too short or too long,
 * ENOTSUP where the runtime has no zstd.
 */
export function unzstd(input: Uint8Array, outputLength: number): Uint8Array {
  const native = nativeZlib();
  if (!native?.zstdDecompressSync) {
    throw new BlockError("ENOTSUP", "This runtime cannot decompress zstd");
  }
  let output: Uint8Array;
  try {
    output = native.zstdDecompressSync(input, {
      // With room left after the frame, padding is not taken for a second one.
      chunkSize: outputLength + 1024,
      maxOutputLength: outputLength,
    });
  } catch (error) {
    throw corrupt(error);
  }
  // Truncated input is reported by nothing but its length.
  return checkLength(output, outputLength);
}

/**
 * Compress to one zstd frame.
 *
 * @param level 1 to 22; the runtime's default if absent.
 * @returns `undefined` where the runtime has no zstd.
 */
export function zstd(
  input: Uint8Array,
  level?: number,
): Uint8Array | undefined {
  const native = nativeZlib();
  const name = native?.constants.ZSTD_c_compressionLevel;
  return withoutBuffer(
    native?.zstdCompressSync?.(input, {
      // With less room than the output needs, an empty second frame may follow.
      chunkSize: input.length + (input.length >> 7) + 1024,
      ...(level !== undefined && { params: { [name!]: level } }),
    }),
  );
}

/** A plain array instead of a `Buffer`, whose `slice` differs. */
function withoutBuffer<T extends Uint8Array | undefined>(bytes: T): T {
  return bytes &&
    new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length) as T;
}

function checkLength(output: Uint8Array, length: number): Uint8Array {
  if (output.length !== length) throw corrupt();
  return withoutBuffer(output);
}

function corrupt(cause?: unknown): BlockError {
  return new BlockError("EIO", "Compressed data is corrupt", { cause });
}

/**
 * Zero bytes to look at before the runtime's `Buffer` is loaded: that takes some 6 ms,
 * in which the portable way looks at more than this.
 */
const PATIENCE = 64 * 1024 * 1024;

let zeroBytesSeen = 0;

/** Whether all bytes are zero. */
export function isZero(bytes: Uint8Array): boolean {
  const { length } = bytes;
  if (length < 64) return isZeroSlowly(bytes, 0, length);
  // Most data shows at its edges.
  if (bytes[0] !== 0 || bytes[length >> 1] !== 0 || bytes[length - 1] !== 0) {
    return false;
  }
  if (length >= 1024 && zeroBytesSeen >= PATIENCE) {
    const native = nativeBuffer();
    if (native) {
      // All bytes are like the first eight if each is like its eighth next.
      return isZeroSlowly(bytes, 0, 8) && native.compare(
            bytes.subarray(8),
            bytes.subarray(0, length - 8),
          ) === 0;
    }
  }
  const zero = isZeroByWords(bytes);
  if (zero) zeroBytesSeen += length;
  return zero;
}

function nativeBuffer(): NativeBuffer | null {
  if (portable) return null;
  buffer ??= globals().Buffer ?? null;
  return buffer;
}

/** Eight words at a time, from the first aligned one on. */
function isZeroByWords(bytes: Uint8Array): boolean {
  const { length } = bytes;
  const start = (4 - (bytes.byteOffset & 3)) & 3;
  const count = (length - start) >> 2;
  const words = new Int32Array(
    bytes.buffer,
    bytes.byteOffset + start,
    count,
  );
  const blocks = count & ~7;
  for (let i = 0; i < blocks; i += 8) {
    const any = words[i] | words[i + 1] | words[i + 2] | words[i + 3] |
      words[i + 4] | words[i + 5] | words[i + 6] | words[i + 7];
    if (any !== 0) return false;
  }
  return isZeroSlowly(bytes, 0, start) &&
    isZeroSlowly(bytes, start + blocks * 4, length);
}

function isZeroSlowly(bytes: Uint8Array, from: number, to: number): boolean {
  for (let i = from; i < to; i++) if (bytes[i] !== 0) return false;
  return true;
}

/** Bytes compared the portable way before the runtime's `Buffer` is loaded. */
let equalBytesSeen = 0;

/** Whether two buffers of one length hold the same bytes. */
export function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  if (equalBytesSeen >= PATIENCE) {
    const native = nativeBuffer();
    if (native) return native.compare(a, b) === 0;
  }
  equalBytesSeen += a.length;
  const { length } = a;
  const aligned = ((a.byteOffset | b.byteOffset) & 3) === 0;
  const count = aligned ? length >> 2 : 0;
  const wordsA = new Int32Array(a.buffer, aligned ? a.byteOffset : 0, count);
  const wordsB = new Int32Array(b.buffer, aligned ? b.byteOffset : 0, count);
  for (let i = 0; i < count; i++) if (wordsA[i] !== wordsB[i]) return false;
  for (let i = count * 4; i < length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Have a timer not keep the program running, where that can be said. */
export function unrefTimer(timer: unknown): void {
  const { Deno } = globalThis as {
    Deno?: { unrefTimer?(timer: unknown): void };
  };
  Deno?.unrefTimer?.(timer);
}
