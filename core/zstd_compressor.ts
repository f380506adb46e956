/**
 * The compressor of libzstd.
 *
 * @module
 */

import type { NativeFunction } from "./platform/platform.ts";

/** Opens a library and binds functions of it. */
type Opener = (
  functions: { readonly [name: string]: NativeFunction },
) => { symbols: unknown };

/** The functions used of libzstd. Lengths are below 2^31, errors negative. */
interface Zstd {
  ZSTD_createCCtx(): unknown;
  ZSTD_compressCCtx(
    context: unknown,
    output: Uint8Array,
    room: bigint,
    input: Uint8Array,
    length: bigint,
    level: number,
  ): number;
}

/**
 * A function that compresses to one frame, valid until the next call, with the
 * library that `open` opens. Workers get this as text, so it must refer to
 * nothing outside.
 */
export function compressorOf(
  open: Opener,
): (input: Uint8Array, level: number) => Uint8Array {
  const { symbols } = open({
    ZSTD_createCCtx: { parameters: [], result: "pointer" },
    ZSTD_compressCCtx: {
      parameters: ["pointer", "buffer", "usize", "buffer", "usize", "i32"],
      result: "i32",
    },
  });
  const zstd = symbols as Zstd;
  const context = zstd.ZSTD_createCCtx();
  let output = new Uint8Array(0);
  return (input, level) => {
    // More than the library ever needs.
    const room = input.length + (input.length >> 7) + 1024;
    if (output.length < room) output = new Uint8Array(room);
    const length = context === null ? -1 : zstd.ZSTD_compressCCtx(
      context,
      output,
      BigInt(output.length),
      input,
      BigInt(input.length),
      level,
    );
    if (length < 0) throw new Error("zstd failed");
    return output.subarray(0, length);
  };
}
