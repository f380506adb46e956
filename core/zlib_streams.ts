/**
 * zlib streams, with header and checksum (RFC 1950), as used by most formats
 * other than qcow2.
 *
 * @module
 */
import { inflateWrapped, zlibCompression } from "./codecs.ts";
import { asBlockError } from "./errors.ts";

/** The default level of zlib, which QEMU uses. */
const DEFAULT_LEVEL = 6;

/** Bytes before and after the deflated data. */
const [HEADER, CHECKSUM] = [2, 4];

let workers: Promise<typeof import("./zlib_workers.ts")> | undefined;

/** Loaded on use: where a library inflates, reading does without them. */
function loadWorkers() {
  return workers ??= import("./zlib_workers.ts");
}

/**
 * Compress to a zlib stream, on all processors.
 *
 * @param level 0 to 9.
 * @throws {BlockError} ENOTSUP where the runtime cannot compress.
 */
export async function compressZlib(
  input: Uint8Array,
  level: number = DEFAULT_LEVEL,
): Promise<Uint8Array> {
  const { callZlib, nativeZlib } = await loadWorkers();
  const deflate = zlibCompression(level);
  const { length } = input;
  if (deflate) {
    const call = { method: "deflateSync", options: {}, deflate } as const;
    return await callZlib(call, input, length);
  }
  const options = { level, chunkSize: length + (length >> 8) + 1024 };
  const call = { method: "deflateSync", options } as const;
  if (nativeZlib()) return await callZlib(call, input, length);
  const { compressPortably } = await import("./portable_codecs.ts");
  return await compressPortably(call, input);
}

/**
 * Decompress a zlib stream to exactly the size of `target`. Bytes after the
 * stream are ignored if the library reports its end, and refused otherwise.
 *
 * @returns whether that succeeded, with a correct checksum.
 */
export async function decompressZlib(
  input: Uint8Array,
  target: Uint8Array,
): Promise<boolean> {
  const done = inflateWrapped(input, target);
  if (done !== undefined) return done;
  const [method, flags] = input;
  const isZlib = input.length > HEADER + CHECKSUM && (method & 15) === 8 &&
    (method * 256 + flags) % 31 === 0 && (flags & 32) === 0;
  if (!isZlib) return false;
  const end = input.length - CHECKSUM;
  const { decompress } = await import("./compression.ts");
  try {
    await decompress("zlib", input.subarray(HEADER, end), target);
  } catch (error) {
    if (asBlockError(error).code === "EIO") return false;
    throw error;
  }
  const { buffer, byteOffset } = input;
  return new DataView(buffer, byteOffset).getUint32(end) === adler32(target);
}

/** Bytes summed before the sums could overflow 32 bits. */
const ADLER_RUN = 3800;

function adler32(bytes: Uint8Array): number {
  let [a, b] = [1, 0];
  for (let at = 0; at < bytes.length;) {
    const end = Math.min(at + ADLER_RUN, bytes.length);
    for (; at < end; at++) {
      a += bytes[at];
      b += a;
    }
    a %= 65521;
    b %= 65521;
  }
  return b * 65536 + a;
}
