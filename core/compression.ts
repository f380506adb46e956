/**
 * Compression, by libraries of the system or the runtime's `node:zlib`, on all
 * processors; without both, only deflated data can be read.
 *
 * @module
 */
import {
  compressZstd,
  decompressZstd,
  inflate,
  zstdCompression,
} from "./codecs.ts";
import { release } from "./bytes.ts";
import { deflate } from "./deflater.ts";
import { BlockError } from "./errors.ts";
import { callZlib, nativeZlib, type ZlibCall } from "./zlib_workers.ts";

export { holdWorkers } from "./zlib_workers.ts";

/** How data is compressed: `zlib` stands for a raw deflate stream. */
export type CompressionType = "zlib" | "zstd";

/**
 * Compress with a window of 4096 bytes (`zlib`), all that readers of qcow2
 * allow for, or to one frame (`zstd`).
 *
 * @param level 0 to 9 or 1 to 22. Default: as small as QEMU makes it.
 * @returns memory of its own; `undefined` if the result would not be shorter.
 * @throws {BlockError} ENOTSUP where the runtime cannot: portable deflaters do
 * not limit their window.
 */
export async function compress(
  type: CompressionType,
  input: Uint8Array,
  level?: number,
): Promise<Uint8Array | undefined> {
  const call = type === "zstd"
    ? zstdCall(input.length, level)
    : deflateCall(input.length, level);
  if (!call.zstd && !nativeZlib()?.[call.method]) {
    throw new BlockError(
      "ENOTSUP",
      `Cannot compress: this runtime has no ${type} that qcow2 could use`,
    );
  }
  if (looksRandom(input) && await isIncompressible(input)) return undefined;
  const output = await callZlib(call, input, input.length);
  if (output.length < input.length) return owned(output, call);
  dispose(output, call);
  return undefined;
}

/**
 * As {@linkcode compress}, at once, for at most 16 KiB.
 *
 * @returns valid until the next call; `undefined` if it would not be shorter,
 * `null` where no library of the system can do it.
 */
export function compressNow(
  type: CompressionType,
  input: Uint8Array,
  level?: number,
): Uint8Array | undefined | null {
  if (type === "zlib") return deflate(input, level);
  const zstd = zstdCompression(level);
  if (!zstd) return null;
  const output = compressZstd(zstd, input);
  return output.length < input.length ? output : undefined;
}

/**
 * Whether there is nothing to be gained, found out at a fraction of what
 * deflating costs: zstd is done with 64 KiB of random bytes in 10 µs (by
 * `node:zlib` 80), deflate takes 800. It misses gains below 2 %.
 */
async function isIncompressible(input: Uint8Array): Promise<boolean> {
  const call = zstdCall(input.length, 1);
  if (call.zstd) return compressZstd(call.zstd, input).length >= input.length;
  if (!nativeZlib()?.zstdCompressSync) return false;
  const output = await callZlib(call, input, input.length);
  const isAsLong = output.length >= input.length;
  dispose(output, call);
  return isAsLong;
}

/** Bytes that are looked at to see whether all values are as frequent. */
const SAMPLE = 1024;
const frequencies = new Uint16Array(256);

function looksRandom(bytes: Uint8Array): boolean {
  const step = Math.floor(bytes.length / SAMPLE);
  if (step < 4) return false;
  frequencies.fill(0);
  for (let i = 0; i < SAMPLE; i++) frequencies[bytes[i * step]]++;
  let squares = 0;
  for (const count of frequencies) squares += count * count;
  // Chi-squared; of random bytes it is 255 ± 23.
  return squares * 256 / SAMPLE - SAMPLE < 400;
}

function deflateCall(length: number, level: number | undefined): ZlibCall {
  return {
    method: "deflateRawSync",
    options: {
      windowBits: 12,
      memLevel: 8,
      // Deno's zlib is Chromium's: twice as fast as others at most levels, but
      // 4 % larger there than zlib's own level 6, which QEMU uses; 9 is not.
      level: level ?? 9,
      chunkSize: length + 1024,
    },
  };
}

function zstdCall(length: number, level: number | undefined): ZlibCall {
  const zstd = zstdCompression(level);
  if (zstd) return { method: "zstdCompressSync", options: {}, zstd };
  const name = nativeZlib()?.constants.ZSTD_c_compressionLevel;
  return {
    method: "zstdCompressSync",
    options: {
      // With less room than the output needs, an empty second frame may follow.
      chunkSize: length + (length >> 7) + 1024,
      ...(level !== undefined && { params: { [name!]: level } }),
    },
  };
}

/**
 * Decompress at once, where a library of the system can do it. Whether that
 * filled `target`; if not, {@linkcode decompress} may still, or knows why not.
 */
export function decompressNow(
  type: CompressionType,
  input: Uint8Array,
  target: Uint8Array,
): boolean | undefined {
  return type === "zstd"
    ? decompressZstd(input, target)
    : inflate(input, target);
}

/**
 * Decompress to exactly as many bytes as `target` has, into it. What follows the compressed data is
 * ignored: qcow2 counts it in sectors and pads the last one. A deflate stream
 * may go on beyond that length.
 *
 * @throws {BlockError} EIO if the data is corrupt, too short or (zstd) too
 * long; ENOTSUP where the runtime has no zstd.
 */
export async function decompress(
  type: CompressionType,
  input: Uint8Array,
  target: Uint8Array,
): Promise<void> {
  const isDone = decompressNow(type, input, target);
  if (isDone) return;
  // Of deflate, what the library refuses may be right all the same.
  if (isDone === false && type === "zstd") throw corrupt();
  const native = nativeZlib();
  if (type === "zlib" && !native) return await inflatePortably(input, target);
  const { length } = target;
  const isDoubtful = isDone === false;
  const call = type === "zstd"
    ? unzstdCall(length)
    : inflateCall(length, isDoubtful ? DOUBTFUL_CHUNK : MAX_CHUNK);
  if (!native?.[call.method]) {
    throw new BlockError("ENOTSUP", "This runtime cannot decompress zstd");
  }
  let output: Uint8Array;
  try {
    output = await callZlib(call, input, length, target);
  } catch (error) {
    const { code } = error as { code?: string };
    if (type === "zlib" && code === "ERR_BUFFER_TOO_LARGE") {
      return await inflatePortably(input, target);
    }
    throw corrupt(error);
  }
  // Truncated input of zstd is reported by nothing but its length.
  if (output.length !== length) throw corrupt();
  if (output === target) return;
  target.set(output);
  dispose(output, call);
}

/**
 * Bytes of output in one chunk. `node:zlib` of Deno 2.9 never frees the chunk
 * in which a stream turned out to be corrupt, so that it must not be large;
 * smaller still where that is to be expected.
 */
const [MAX_CHUNK, DOUBTFUL_CHUNK] = [256 * 1024, 4096];

function inflateCall(length: number, most: number): ZlibCall {
  return {
    method: "inflateRawSync",
    options: {
      // One byte more than needed, so that the whole output is one chunk.
      chunkSize: Math.min(Math.max(64, length + 1), most),
      maxOutputLength: length,
      // A missing end is no harm where all of the output is there.
      finishFlush: nativeZlib()?.constants.Z_SYNC_FLUSH,
    },
  };
}

function unzstdCall(length: number): ZlibCall {
  return {
    method: "zstdDecompressSync",
    options: {
      // With room left after the frame, padding is not taken for a second one.
      chunkSize: length + 1024,
      maxOutputLength: length,
    },
  };
}

async function inflatePortably(
  input: Uint8Array,
  target: Uint8Array,
): Promise<void> {
  if (input.length === 0) throw corrupt();
  const { inflateSync } = await import("fflate");
  // Given a buffer to fill, it neither grows it nor writes beyond it.
  const out = new Uint8Array(target.length);
  let output: Uint8Array;
  try {
    output = inflateSync(input, { out });
  } catch (error) {
    throw corrupt(error);
  }
  if (output.length !== target.length) throw corrupt();
  target.set(output);
}

/** A plain array instead of a `Buffer`, whose `slice` differs. */
function owned(output: Uint8Array, call: ZlibCall): Uint8Array {
  const { buffer, byteOffset, length } = output;
  const isTight = 2 * length > buffer.byteLength;
  if (isTight && isOwn(output, call)) {
    return new Uint8Array(buffer, byteOffset, length);
  }
  // It may wait for long, and need not keep the room that it did not take.
  const copy = new Uint8Array(output);
  dispose(output, call);
  return copy;
}

function dispose(output: Uint8Array, call: ZlibCall): void {
  if (isOwn(output, call)) release(output);
}

/** Whether an output has memory of its own: small ones of zlib share theirs. */
function isOwn({ buffer, length }: Uint8Array, { options }: ZlibCall): boolean {
  const { byteLength } = buffer;
  return byteLength === length || byteLength === options.chunkSize;
}

function corrupt(cause?: unknown): BlockError {
  return new BlockError("EIO", "Compressed data is corrupt", { cause });
}
