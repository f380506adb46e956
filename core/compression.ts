/**
 * Compression by libraries of the system or the runtime's `node:zlib`, on all
 * processors. Without either, libraries in JavaScript and WebAssembly do it.
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
 * Compress with a window of 4096 bytes (`zlib`), the largest that qcow2
 * permits, or to one frame (`zstd`).
 *
 * @param level 0 to 9 for `zlib`, 1 to 22 for `zstd`. Default: about as small
 * as QEMU's output.
 * @returns newly allocated memory; `undefined` if the result would not be
 * shorter.
 * @throws {BlockError} ENOTSUP where the runtime cannot.
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
    const { compressPortably } = await import("./portable_codecs.ts");
    const output = await compressPortably(call, input);
    return output.length < input.length ? output : undefined;
  }
  if (looksRandom(input) && await isIncompressible(input)) return undefined;
  const output = await callZlib(call, input, input.length);
  if (output.length < input.length) return owned(output, call);
  dispose(output, call);
  return undefined;
}

/**
 * As {@linkcode compress}, synchronously, for at most 16 KiB.
 *
 * @returns a buffer valid until the next call; `undefined` if the result would
 * not be shorter, `null` if no library of the system can do it.
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
 * Whether compressing is pointless. zstd finds that out at a fraction of what
 * deflating costs, missing gains below 2 %.
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

/** Bytes sampled to see whether all byte values are equally frequent. */
const SAMPLE = 1024;
const frequencies = new Uint16Array(256);

function looksRandom(bytes: Uint8Array): boolean {
  const step = Math.floor(bytes.length / SAMPLE);
  if (step < 4) return false;
  frequencies.fill(0);
  for (let i = 0; i < SAMPLE; i++) frequencies[bytes[i * step]]++;
  let squares = 0;
  for (const count of frequencies) squares += count * count;
  // Chi-squared; for random bytes it is 255 ± 23.
  return squares * 256 / SAMPLE - SAMPLE < 400;
}

function deflateCall(length: number, level: number | undefined): ZlibCall {
  return {
    method: "deflateRawSync",
    options: {
      windowBits: 12,
      memLevel: 8,
      // Deno's zlib is Chromium's: fast, but at most levels its output is 4 %
      // larger than zlib's own level 6, which QEMU uses; at 9 it is not.
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
      // With less room, an empty second frame may follow.
      chunkSize: length + (length >> 7) + 1024,
      ...(level !== undefined && {
        ...(name ? { params: { [name]: level } } : { level }),
      }),
    },
  };
}

/**
 * Decompress synchronously, where a library of the system can. True if that
 * filled `target`; if not, {@linkcode decompress} may still, or says why not.
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
 * Decompress into `target`, filling it exactly. The input may be longer than
 * the data, or cut off after what `target` takes: qcow2 counts it in sectors.
 *
 * A deflate stream may go on, or have no end; zstd frames must be whole and end
 * where `target` does.
 *
 * @throws {BlockError} EIO if the data is corrupt, too short or (zstd) too
 * long; ENOTSUP where the runtime cannot.
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
  // A stream that the libraries reject may be valid as far as it is needed.
  const { inflateExactly } = await import("./inflate.ts");
  if (!inflateExactly(input, target)) throw corrupt();
}

/**
 * Largest chunk of output, in bytes. `node:zlib` of Deno 2.9 leaks the chunk in
 * which a stream turns out to be corrupt.
 */
const MAX_CHUNK = 256 * 1024;

/** Inflate with `node:zlib`; whether that filled `target`. */
async function inflateNatively(
  input: Uint8Array,
  target: Uint8Array,
): Promise<boolean> {
  const native = nativeZlib();
  if (!native) return false;
  const { length } = target;
  const options = {
    // One byte more than needed keeps the output in one chunk.
    chunkSize: Math.min(Math.max(64, length + 1), MAX_CHUNK),
    maxOutputLength: length,
    // Accept a stream without an end if all of the output is there.
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

/** Decompress zstd frames without libzstd; whether that filled `target`. */
async function unzstd(
  input: Uint8Array,
  target: Uint8Array,
): Promise<boolean> {
  let filled = 0;
  while (filled < target.length) {
    const length = zstdFrameLength(input);
    if (length === undefined) return false;
    const frame = input.subarray(0, length);
    input = input.subarray(length);
    if (isSkippable(frame)) continue;
    const rest = target.subarray(filled);
    let count = await unzstdNatively(frame, rest);
    if (count === undefined) {
      // Some runtimes reject valid frames: Bun has done so.
      const { unzstdPortably } = await import("./portable_codecs.ts");
      count = await unzstdPortably(frame, rest);
    }
    if (count === undefined) return false;
    filled += count;
  }
  return true;
}

/**
 * Decompress one frame with `node:zlib`; returns how many bytes of `target` that
 * filled, `undefined` if it failed.
 */
async function unzstdNatively(
  frame: Uint8Array,
  target: Uint8Array,
): Promise<number | undefined> {
  if (!nativeZlib()?.zstdDecompressSync) return undefined;
  const { length } = target;
  // With less room, the output would take more than one chunk.
  const options = { chunkSize: length + 1024, maxOutputLength: length };
  try {
    const call = { method: "zstdDecompressSync", options } as const;
    const output = await callZlib(call, frame, length, target);
    const count = output.length;
    if (output !== target) {
      target.set(output);
      dispose(output, call);
    }
    return count;
  } catch {
    return undefined;
  }
}

/** A plain array instead of a `Buffer`, whose `slice` differs. */
function owned(output: Uint8Array, call: ZlibCall): Uint8Array {
  const { buffer, byteOffset, length } = output;
  const isTight = 2 * length > buffer.byteLength;
  if (isTight && isOwn(output, call)) {
    return new Uint8Array(buffer, byteOffset, length);
  }
  // The result may be kept for long: do not hold on to the unused rest.
  const copy = new Uint8Array(output);
  dispose(output, call);
  return copy;
}

function dispose(output: Uint8Array, call: ZlibCall): void {
  if (isOwn(output, call)) release(output);
}

/** Whether an output has its own memory: small ones of zlib share a pool. */
function isOwn({ buffer, length }: Uint8Array, { options }: ZlibCall): boolean {
  const { byteLength } = buffer;
  return byteLength === length || byteLength === options.chunkSize;
}

function corrupt(): BlockError {
  return new BlockError("EIO", "Compressed data is corrupt");
}
