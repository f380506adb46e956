/**
 * Compression by libraries in JavaScript and WebAssembly, for runtimes that
 * have none, such as browsers. Each library is loaded when it is first used:
 * `pako` deflates (it can limit its window, unlike `CompressionStream` and
 * `fflate`), `@hpcc-js/wasm-zstd` compresses with zstd, and `fzstd`, a
 * twentieth of its size, decompresses.
 *
 * @module
 */
import { BlockError } from "./errors.ts";
import { zstdContent } from "./zstd_frame.ts";
import type { ZlibCall } from "./zlib_worker.ts";

/** Options of `node:zlib` for deflating; zstd has only a level. */
interface DeflateOptions {
  readonly level?: number;
  readonly windowBits?: number;
  readonly memLevel?: number;
}

/**
 * Make a call of `node:zlib` that compresses.
 *
 * @returns newly allocated memory.
 * @throws {BlockError} ENOTSUP where the library does not run.
 */
export async function compressPortably(
  { method, options }: ZlibCall,
  input: Uint8Array,
): Promise<Uint8Array> {
  const { level, windowBits = 15, memLevel = 8 } = options as DeflateOptions;
  try {
    if (method === "zstdCompressSync") {
      // The library would log its failure to the console.
      if (!("WebAssembly" in globalThis)) throw new Error("no WebAssembly");
      const { Zstd } = await import("@hpcc-js/wasm-zstd");
      return new Uint8Array((await Zstd.load()).compress(input, level));
    }
    const { deflate, deflateRaw } = await import("pako");
    return method === "deflateSync"
      ? deflate(input, { level })
      : deflateRaw(input, { level, windowBits, memLevel });
  } catch (error) {
    const type = method === "zstdCompressSync" ? "zstd" : "zlib";
    throw lacking(`compress with ${type}`, error);
  }
}

/** Largest window of a frame, as libzstd has it by default. */
const MAX_WINDOW = 2 ** 27;

/**
 * Decompress one zstd frame.
 *
 * @returns how many bytes of `target` it filled; `undefined` if the frame is
 * corrupt or larger.
 * @throws {BlockError} ENOTSUP where the library does not run.
 */
export async function unzstdPortably(
  frame: Uint8Array,
  target: Uint8Array,
): Promise<number | undefined> {
  const { content, window } = zstdContent(frame);
  if (content !== undefined && content > target.length) return undefined;
  if (window > MAX_WINDOW) return undefined;
  const { Decompress } = await import("fzstd").catch((error) => {
    throw lacking("decompress zstd", error);
  });
  let filled = 0;
  try {
    const stream = new Decompress((chunk) => {
      // Throws if the frame is larger.
      target.set(chunk, filled);
      filled += chunk.length;
    });
    stream.push(frame, true);
  } catch {
    return undefined;
  }
  return filled;
}

function lacking(what: string, cause: unknown): BlockError {
  return new BlockError("ENOTSUP", `This runtime cannot ${what}`, { cause });
}
