import { assertEquals } from "@std/assert";
import { decompress } from "../../core/compression.ts";
import type { BlockError } from "../../core/errors.ts";
import { setPortable } from "../platforms.ts";
import { nativeZlib } from "../../core/zlib_workers.ts";
import { zstdFrameLength } from "../../core/zstd_frame.ts";

const SKIPPED = [0x52, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];

function joined(...parts: (Uint8Array | number[])[]): Uint8Array {
  return new Uint8Array(parts.flatMap((part) => [...part]));
}

function frame(plain: Uint8Array, params?: object): Uint8Array {
  // With less room than the output needs, an empty second frame may follow.
  const chunkSize = plain.length + 4096;
  return nativeZlib()!.zstdCompressSync!(plain, { params, chunkSize });
}

/** The decompressed input, or the error's code. */
async function outcome(input: Uint8Array, length: number) {
  const target = new Uint8Array(length);
  try {
    await decompress("zstd", input, target);
    return target;
  } catch (error) {
    return (error as BlockError).code;
  }
}

Deno.test("zstdFrameLength() finds the end of a frame", () => {
  for (const size of [0, 1, 300, 70_000, 300_000]) {
    for (const values of [1, 7, 256]) {
      const plain = new Uint8Array(size).map(() => Math.random() * values);
      for (const checksum of [0, 1]) {
        const { ZSTD_c_checksumFlag } = nativeZlib()!.constants;
        const bytes = frame(plain, { [ZSTD_c_checksumFlag]: checksum });
        const { length } = bytes;
        assertEquals(zstdFrameLength(joined(bytes, SKIPPED)), length);
        assertEquals(zstdFrameLength(bytes.subarray(0, -1)), undefined);
      }
    }
  }
  assertEquals(zstdFrameLength(joined(SKIPPED, [1, 2])), SKIPPED.length);
  assertEquals(zstdFrameLength(new Uint8Array(100)), undefined);
});

for (
  const [way, portable] of [["libraries", false], [
    "node:zlib",
    "libraries",
  ]] as const
) {
  Deno.test(`decompress() of zstd reads as many frames as fill the target (${way})`, async () => {
    setPortable(portable);
    try {
      const plain = new Uint8Array(1000).map((_, i) => i % 251);
      const parts = [frame(plain.subarray(0, 600)), frame(plain.subarray(600))];
      const [first, second] = parts;
      const none = frame(new Uint8Array(0));
      assertEquals(await outcome(joined(first, second), 1000), plain);
      const mixed = joined(SKIPPED, first, none, SKIPPED, second, [1, 2, 3]);
      assertEquals(await outcome(mixed, 1000), plain);
      assertEquals(await outcome(first, 1000), "EIO");
      assertEquals(await outcome(joined(first, [1, 2, 3]), 1000), "EIO");
      assertEquals(await outcome(joined(first, second), 999), "EIO");
      assertEquals(await outcome(joined(none, none), 1000), "EIO");
    } finally {
      setPortable(false);
    }
  });
}
