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
import { isSkippable, zstdFrameLength } from "./zstd_frame.ts";

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
 * Decompress to exactly as many bytes as `target` has, into it. The input need
 * only reach so far: qcow2 counts it in sectors, which may be more or fewer
 * than the data takes.
 *
 * What follows is ignored. A deflate stream may go on, or have no end; of zstd
 * the frames that fill `target` must be whole, and none may go beyond it.
 *
 * @throws {BlockError} EIO if the data is corrupt, too short or (zstd) too
 * long; ENOTSUP where the runtime has no zstd.
 */
export async function decompress(
  type: CompressionType,
  input: Uint8Array,
  target: Uint8Array,
): Promise<void> {
  if (type === "zstd") {
    if (!(decompressZstd(input, target) ?? await unzstd(input, target))) {
      throw corrupt();
    }
    return;
  }
  const isDone = inflate(input, target);
  if (isDone ?? await inflateNatively(input, target)) return;
  // What a library refuses may be right as far as it is wanted.
  const { inflateExactly } = await import("./inflate.ts");
  if (!inflateExactly(input, target)) throw corrupt();
}

/**
 * Bytes of output in one chunk at most. `node:zlib` of Deno 2.9 never frees the
 * chunk in which a stream turned out to be corrupt, so it must not be large.
 */
const MAX_CHUNK = 256 * 1024;

/** Inflate by `node:zlib`; whether that could be done and filled `target`. */
async function inflateNatively(
  input: Uint8Array,
  target: Uint8Array,
): Promise<boolean> {
  const native = nativeZlib();
  if (!native) return false;
  const { length } = target;
  const options = {
    // One byte more than needed, so that the whole output is one chunk.
    chunkSize: Math.min(Math.max(64, length + 1), MAX_CHUNK),
    maxOutputLength: length,
    // A missing end is no harm where all of the output is there.
    finishFlush: native.constants.Z_SYNC_FLUSH,
  };
  try {
    const call = { method: "inflateRawSync", options } as const;
    const output = await callZlib(call, input, length, target);
    if (output.length !== length) return false;
    if (output !== target) {
      target.set(output);
      dispose(output, call);
    }
    return true;
  } catch {
    return false;
  }
}

/** Decompress zstd by `node:zlib`, frame by frame. Whether `target` is full. */
async function unzstd(
  input: Uint8Array,
  target: Uint8Array,
): Promise<boolean> {
  if (!nativeZlib()?.zstdDecompressSync) {
    throw new BlockError("ENOTSUP", "This runtime cannot decompress zstd");
  }
  let filled = 0;
  while (filled < target.length) {
    const length = zstdFrameLength(input);
    if (length === undefined) return false;
    const frame = input.subarray(0, length);
    input = input.subarray(length);
    if (isSkippable(frame)) continue;
    const rest = target.subarray(filled);
    const options = {
      // With less room than the output needs, it takes more than one chunk.
      chunkSize: rest.length + 1024,
      maxOutputLength: rest.length,
    };
    try {
      const call = { method: "zstdDecompressSync", options } as const;
      const output = await callZlib(call, frame, rest.length, rest);
      filled += output.length;
      if (output === rest) continue;
      rest.set(output);
      dispose(output, call);
    } catch {
      return false;
    }
  }
  return true;
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

function corrupt(): BlockError {
  return new BlockError("EIO", "Compressed data is corrupt");
}
