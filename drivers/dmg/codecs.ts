/**
 * Codecs of DMG chunks, apart from zlib: ADC is decoded here, bzip2 and xz by
 * libraries of the system.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { nativeLibrary } from "../../core/runtime.ts";

/** Decodes a chunk; returns whether that filled `target` exactly. */
export type Decoder = (stored: Uint8Array, target: Uint8Array) => boolean;

/**
 * Decode Apple Data Compression: literal bytes, and matches up to 64 KiB back,
 * encoded in two or three bytes each.
 */
export function decodeAdc(stored: Uint8Array, target: Uint8Array): boolean {
  let [from, to] = [0, 0];
  while (from < stored.length && to < target.length) {
    const code = stored[from++];
    if (code & 0x80) {
      const length = (code & 0x7f) + 1;
      if (from + length > stored.length || to + length > target.length) {
        return false;
      }
      target.set(stored.subarray(from, from + length), to);
      from += length;
      to += length;
      continue;
    }
    const isLong = (code & 0x40) !== 0;
    if (from + (isLong ? 2 : 1) > stored.length) return false;
    const length = isLong ? (code & 0x3f) + 4 : (code >> 2) + 3;
    const high = isLong ? stored[from++] : code & 3;
    const distance = high * 256 + stored[from++] + 1;
    if (distance > to || to + length > target.length) return false;
    // The match may overlap its own output.
    for (const end = to + length; to < end; to++) {
      target[to] = target[to - distance];
    }
  }
  return to === target.length;
}

interface Bzip2 {
  BZ2_bzBuffToBuffDecompress(
    target: Uint8Array,
    /** Room in `target`; becomes the length of the output. */
    length: Uint32Array,
    stored: Uint8Array,
    storedLength: number,
    small: 0,
    verbosity: 0,
  ): number;
}

/**
 * Decode bzip2.
 *
 * @throws {BlockError} ENOTSUP without libbz2.
 */
export function decodeBzip2(stored: Uint8Array, target: Uint8Array): boolean {
  const functions = {
    BZ2_bzBuffToBuffDecompress: {
      parameters: ["buffer", "buffer", "buffer", "u32", "i32", "i32"],
      result: "i32",
    },
  };
  const library = nativeLibrary<Bzip2>("libbz2.so.1.0", functions) ??
    nativeLibrary<Bzip2>("libbz2.so.1", functions);
  if (!library) throw missing("bzip2", "libbz2");
  const length = new Uint32Array([target.length]);
  const code = library.BZ2_bzBuffToBuffDecompress(
    target,
    length,
    stored,
    stored.length,
    0,
    0,
  );
  return code === 0 && length[0] === target.length;
}

interface Lzma {
  lzma_stream_buffer_decode(
    memoryLimit: BigUint64Array,
    flags: 0,
    allocator: null,
    stored: Uint8Array,
    /**
     * Where decoding begins; updated to where it ended. Likewise for the
     * output.
     */
    storedPosition: BigUint64Array,
    storedLength: bigint,
    target: Uint8Array,
    position: BigUint64Array,
    length: bigint,
  ): number;
}

/** Most memory for the dictionary of an xz stream. */
const MAX_DICTIONARY = 128n * 1024n * 1024n;

/**
 * Decode xz, which Apple's tools call LZMA.
 *
 * @throws {BlockError} ENOTSUP without liblzma.
 */
export function decodeXz(stored: Uint8Array, target: Uint8Array): boolean {
  const library = nativeLibrary<Lzma>("liblzma.so.5", {
    lzma_stream_buffer_decode: {
      parameters: ["buffer", "u32", "pointer"]
        .concat("buffer", "buffer", "usize")
        .concat("buffer", "buffer", "usize"),
      result: "i32",
    },
  });
  if (!library) throw missing("LZMA", "liblzma");
  const position = new BigUint64Array(1);
  const code = library.lzma_stream_buffer_decode(
    new BigUint64Array([MAX_DICTIONARY]),
    0,
    null,
    stored,
    new BigUint64Array(1),
    BigInt(stored.length),
    target,
    position,
    BigInt(target.length),
  );
  return code === 0 && position[0] === BigInt(target.length);
}

function missing(method: string, library: string): BlockError {
  return new BlockError(
    "ENOTSUP",
    `A part of the disk is compressed with ${method}, ` +
      `which needs ${library}, which is not available`,
    {
      hint: "On a Mac, make an image that can be read: " +
        "hdiutil convert old.dmg -format UDZO -o new.dmg",
    },
  );
}
