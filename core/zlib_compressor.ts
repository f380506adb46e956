/**
 * The compressor of libdeflate, for zlib streams.
 *
 * @module
 */
import type { NativeFunction } from "./platform/platform.ts";

/** Opens the library, and binds functions of it. */
type Opener = (
  functions: { readonly [name: string]: NativeFunction },
) => { symbols: unknown };

/** The functions used of libdeflate. */
interface Deflate {
  libdeflate_alloc_compressor(level: number): unknown;
  libdeflate_free_compressor(context: unknown): void;
  libdeflate_zlib_compress(
    context: unknown,
    input: Uint8Array,
    length: bigint,
    output: Uint8Array,
    room: bigint,
  ): bigint | number;
}

/**
 * A function that compresses to a zlib stream, valid until the next call, with
 * the library that `open` opens. Workers get this as text, so it must refer to
 * nothing outside.
 */
export function zlibCompressorOf(
  open: Opener,
): (input: Uint8Array, level: number) => Uint8Array {
  const { symbols } = open({
    libdeflate_alloc_compressor: { parameters: ["i32"], result: "pointer" },
    libdeflate_free_compressor: { parameters: ["pointer"], result: "void" },
    libdeflate_zlib_compress: {
      parameters: ["pointer", "buffer", "usize", "buffer", "usize"],
      result: "usize",
    },
  });
  const deflate = symbols as Deflate;
  let context:
    | { readonly level: number; readonly pointer: unknown }
    | undefined;
  let output = new Uint8Array(0);
  return (input, level) => {
    if (context?.level !== level) {
      if (context) deflate.libdeflate_free_compressor(context.pointer);
      context = undefined;
      const pointer = deflate.libdeflate_alloc_compressor(level);
      if (pointer === null) throw new Error("libdeflate failed");
      context = { level, pointer };
    }
    // More than the library ever needs.
    const room = input.length + (input.length >> 7) + 1024;
    if (output.length < room) output = new Uint8Array(room);
    const length = Number(deflate.libdeflate_zlib_compress(
      context.pointer,
      input,
      BigInt(input.length),
      output,
      BigInt(output.length),
    ));
    if (length === 0) throw new Error("libdeflate failed");
    return output.subarray(0, length);
  };
}
