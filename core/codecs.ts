/**
 * Compression by libraries of the system: libzstd, and libdeflate to inflate.
 * They are faster than `node:zlib`, which takes long to load and needs workers
 * to run in parallel (figures in bench/RESULTS.md).
 *
 * @module
 */
import { platform } from "./platform/mod.ts";
import { nativeLibrary } from "./runtime.ts";
import { zlibCompressorOf } from "./zlib_compressor.ts";
import { compressorOf } from "./zstd_compressor.ts";

/** The same level as QEMU's. */
const DEFAULT_LEVEL = 3;

/** How to have a library compress, as plain data. */
export interface LibraryCompression {
  /** Where the library is. */
  readonly path: string;
  readonly level: number;
}

/** How to compress with libzstd; `undefined` if it cannot be called. */
export function zstdCompression(
  level: number = DEFAULT_LEVEL,
): LibraryCompression | undefined {
  const path = platform().libraries?.find("libzstd.so.1");
  return path ? { path, level } : undefined;
}

/** To compress with libdeflate; `undefined` if it cannot be called. */
export function zlibCompression(level: number): LibraryCompression | undefined {
  const path = platform().libraries?.find("libdeflate.so.0");
  return path ? { path, level } : undefined;
}

let compressor: ReturnType<typeof compressorOf> | undefined;
let zlibCompressor: ReturnType<typeof zlibCompressorOf> | undefined;

/** Compress to a stream of zlib; valid until the next call. */
export function compressWrapped(
  { path, level }: LibraryCompression,
  input: Uint8Array,
): Uint8Array {
  zlibCompressor ??= zlibCompressorOf((functions) =>
    platform().libraries!.open(path, functions)
  );
  return zlibCompressor(input, level);
}

/** Compress to one zstd frame; valid until the next call. */
export function compressZstd(
  { path, level }: LibraryCompression,
  input: Uint8Array,
): Uint8Array {
  compressor ??= compressorOf((functions) =>
    platform().libraries!.open(path, functions)
  );
  return compressor(input, level);
}

/**
 * The other functions used of libzstd. Lengths are below 2^31, errors negative.
 */
interface Zstd {
  ZSTD_createDCtx(): unknown;
  ZSTD_findFrameCompressedSize(input: Uint8Array, length: bigint): number;
  ZSTD_decompressDCtx(
    context: unknown,
    output: Uint8Array,
    room: bigint,
    input: Uint8Array,
    length: bigint,
  ): number;
}

let zstdContext: unknown;

/**
 * Decompress zstd frames until `target` is full, ignoring what follows. False
 * if that fails, or a frame goes beyond; `undefined` without the library.
 */
export function decompressZstd(
  input: Uint8Array,
  target: Uint8Array,
): boolean | undefined {
  const zstd = nativeLibrary<Zstd>("libzstd.so.1", {
    ZSTD_createDCtx: { parameters: [], result: "pointer" },
    ZSTD_findFrameCompressedSize: {
      parameters: ["buffer", "usize"],
      result: "i32",
    },
    ZSTD_decompressDCtx: {
      parameters: ["pointer", "buffer", "usize", "buffer", "usize"],
      result: "i32",
    },
  });
  zstdContext ??= zstd?.ZSTD_createDCtx();
  if (!zstd || !zstdContext) return undefined;
  for (let filled = 0; filled < target.length;) {
    // Pass only the frame: trailing bytes would be taken for another one.
    const frame = zstd.ZSTD_findFrameCompressedSize(
      input,
      BigInt(input.length),
    );
    if (frame <= 0) return false;
    const room = target.length - filled;
    const length = zstd.ZSTD_decompressDCtx(
      zstdContext,
      filled === 0 ? target : target.subarray(filled),
      BigInt(room),
      input,
      BigInt(frame),
    );
    if (length < 0) return false;
    if (length === room) return true;
    filled += length;
    input = input.subarray(frame);
  }
  return target.length === 0;
}

/** The functions used of libdeflate. */
interface Deflate {
  libdeflate_alloc_decompressor(): unknown;
  libdeflate_deflate_decompress(
    context: unknown,
    input: Uint8Array,
    length: bigint,
    output: Uint8Array,
    room: bigint,
    /** Where to put the length of the output: `null` demands exactly `room`. */
    filled: null,
  ): number;
  libdeflate_zlib_decompress: Deflate["libdeflate_deflate_decompress"];
}

let inflateContext: unknown;

function deflateLibrary(): Deflate | null {
  const decompress = {
    parameters: ["pointer", "buffer", "usize", "buffer", "usize", "pointer"],
    result: "i32",
  } as const;
  return nativeLibrary<Deflate>("libdeflate.so.0", {
    libdeflate_alloc_decompressor: { parameters: [], result: "pointer" },
    libdeflate_deflate_decompress: decompress,
    libdeflate_zlib_decompress: decompress,
  });
}

/**
 * Inflate a stream, ignoring what follows it. False if that did not fill
 * `target`, also where the stream is longer or has no end; `undefined` without
 * the library.
 */
export function inflate(
  input: Uint8Array,
  target: Uint8Array,
): boolean | undefined {
  return inflateBy("libdeflate_deflate_decompress", input, target);
}

/** As {@linkcode inflate}, a stream with the header and checksum of zlib. */
export function inflateWrapped(
  input: Uint8Array,
  target: Uint8Array,
): boolean | undefined {
  return inflateBy("libdeflate_zlib_decompress", input, target);
}

function inflateBy(
  verb: "libdeflate_deflate_decompress" | "libdeflate_zlib_decompress",
  input: Uint8Array,
  target: Uint8Array,
): boolean | undefined {
  const deflate = deflateLibrary();
  inflateContext ??= deflate?.libdeflate_alloc_decompressor();
  if (!deflate || !inflateContext) return undefined;
  const [room, length] = [BigInt(target.length), BigInt(input.length)];
  return deflate[verb](inflateContext, input, length, target, room, null) === 0;
}
