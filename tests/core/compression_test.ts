import { assert, assertEquals, assertRejects } from "@std/assert";
import { allocate } from "../../core/bytes.ts";
import {
  compress,
  type CompressionType,
  decompress,
} from "../../core/compression.ts";
import { BlockError } from "../../core/errors.ts";
import { setPortable } from "../platforms.ts";
import { holdWorkers } from "../../core/zlib_workers.ts";

type Test = () => Promise<void> | void;

/**
 * Run a test with the system's libraries, with `node:zlib`, and with neither.
 */
function allWays(name: string, test: Test): void {
  nativeWays(name, test);
  way(name, "portable", true, test);
}

/** Run a test with the system's libraries, and with `node:zlib`. */
function nativeWays(name: string, test: Test): void {
  way(name, "libraries", false, test);
  way(name, "node:zlib", "libraries", test);
}

function way(
  name: string,
  way: string,
  portable: boolean | "libraries",
  test: Test,
): void {
  Deno.test(`${name} (${way})`, async () => {
    setPortable(portable);
    try {
      await test();
    } finally {
      setPortable(false);
    }
  });
}

/** 64 KiB that compress, but not to nothing. */
function sample(length = 65536): Uint8Array {
  const bytes = allocate(length);
  crypto.getRandomValues(bytes.subarray(0, Math.min(65536, length >> 1)));
  bytes.fill(7, (length * 3) >> 2);
  return bytes;
}

function padded(bytes: Uint8Array, filling: number): Uint8Array {
  const whole = new Uint8Array(bytes.length + 700).fill(filling);
  whole.set(bytes);
  return whole;
}

const plain = sample();
const deflated = await deflate(plain);
const deflatedSmall = await deflate(sample(512), 1);
const deflatedBomb = await deflate(new Uint8Array(1 << 24));
const zstandard = await zstd(plain);

async function deflate(input: Uint8Array, level?: number) {
  return (await compress("zlib", input, level))!;
}

async function zstd(input: Uint8Array, level?: number) {
  return (await compress("zstd", input, level))!;
}

async function restore(
  type: CompressionType,
  input: Uint8Array,
  length: number,
) {
  const target = new Uint8Array(length);
  await decompress(type, input, target);
  return target;
}

function inflate(input: Uint8Array, length: number) {
  return restore("zlib", input, length);
}

function unzstd(input: Uint8Array, length: number) {
  return restore("zstd", input, length);
}

allWays("decompress() of zlib restores what was deflated", async () => {
  assertEquals(await inflate(deflated, plain.length), plain);
  assertEquals((await inflate(deflatedSmall, 512)).length, 512);
});

allWays("decompress() of zlib ignores what follows the stream", async () => {
  for (const filling of [0, 0xaa, 0xff]) {
    assertEquals(await inflate(padded(deflated, filling), 65536), plain);
  }
});

allWays("decompress() of zlib stops at the wanted length", async () => {
  assertEquals(await inflate(deflatedBomb, 65536), new Uint8Array(65536));
});

allWays("decompress() of zlib refuses corrupt or truncated input", async () => {
  const inputs = [
    new Uint8Array(0),
    new Uint8Array(100).fill(0xff),
    deflated.subarray(0, 100),
    deflatedSmall,
  ];
  for (const input of inputs) {
    const error = await assertRejects(() => inflate(input, 65536), BlockError);
    assertEquals(error.code, "EIO");
  }
});

allWays("decompress() of zlib throws nothing but BlockError", async () => {
  const bytes = deflated.slice();
  for (let round = 0; round < 200; round++) {
    bytes.set(deflated);
    for (let i = 0; i < 5; i++) {
      bytes[Math.floor(Math.random() * 200)] = Math.random() * 256;
    }
    try {
      assertEquals((await inflate(bytes, 65536)).length, 65536);
    } catch (error) {
      assert(error instanceof BlockError, String(error));
    }
  }
});

allWays("compress() with zlib keeps to a window of 4096 bytes", async () => {
  // Two equal random halves, 8 KiB apart, shrink only with a larger window.
  const bytes = allocate(16384);
  crypto.getRandomValues(bytes.subarray(0, 8192));
  bytes.copyWithin(8192, 0, 8192);
  assertEquals(await compress("zlib", bytes, 9), undefined);
  bytes.copyWithin(4096 - 300, 0, 4096 - 300);
  const output = await deflate(bytes, 9);
  assertEquals(await inflate(output, 16384), bytes);
});

Deno.test("compress() works without any help from the runtime", async () => {
  for (const type of ["zlib", "zstd"] as const) {
    for (const level of [undefined, 1, 9]) {
      setPortable(true);
      let output: Uint8Array;
      try {
        output = (await compress(type, plain, level))!;
        assertEquals(await decompressed(type, output), plain);
      } finally {
        setPortable(false);
      }
      assertEquals(await decompressed(type, output), plain);
    }
  }
});

async function decompressed(type: "zlib" | "zstd", bytes: Uint8Array) {
  return type === "zlib"
    ? await inflate(bytes, plain.length)
    : await unzstd(bytes, plain.length);
}

Deno.test("compress() says what the runtime lacks", async () => {
  const { WebAssembly } = globalThis;
  setPortable(true);
  try {
    // @ts-expect-error There are browsers that forbid it.
    delete globalThis.WebAssembly;
    const { Zstd } = await import("@hpcc-js/wasm-zstd");
    await Zstd.unload();
    const error = await assertRejects(
      () => compress("zstd", plain),
      BlockError,
    );
    assertEquals(error.code, "ENOTSUP");
    assertEquals(error.message, "This runtime cannot compress with zstd");
  } finally {
    globalThis.WebAssembly = WebAssembly;
    setPortable(false);
  }
});

allWays("decompress() of zstd restores what was compressed", async () => {
  assertEquals(await unzstd(zstandard, 65536), plain);
  for (const size of [512, 4096, 1 << 21]) {
    const bytes = sample(size);
    for (const level of [undefined, 1, 9]) {
      assertEquals(await unzstd(await zstd(bytes, level), size), bytes);
    }
  }
});

allWays("decompress() of zstd ignores what follows the frame", async () => {
  for (const filling of [0, 0xaa]) {
    assertEquals(await unzstd(padded(zstandard, filling), 65536), plain);
  }
});

allWays(
  "decompress() of zstd refuses input that is corrupt, truncated or too long",
  async () => {
    const inputs = [
      new Uint8Array(0),
      new Uint8Array(100).fill(0xff),
      zstandard.subarray(0, 100),
      zstandard.subarray(0, zstandard.length - 1),
      await zstd(sample(1000)),
      await zstd(new Uint8Array(1 << 24)),
    ];
    for (const input of inputs) {
      const error = await assertRejects(
        () => unzstd(input, 65536),
        BlockError,
      );
      assertEquals(error.code, "EIO");
    }
  },
);

/** Enough clusters for workers to be started, and more than fit at once. */
async function roundTrip(type: CompressionType, size: number): Promise<void> {
  const clusters = Array.from(
    { length: Math.max(6, (12 << 20) / size) },
    () => sample(size),
  );
  const stored = await Promise.all(
    clusters.map((cluster) => compress(type, cluster)),
  );
  const again = await Promise.all(
    stored.map((bytes) => restore(type, bytes!, size)),
  );
  for (const [i, cluster] of again.entries()) {
    assertEquals(cluster, clusters[i]);
  }
}

nativeWays("compress() and decompress() use workers", async () => {
  using _ = holdWorkers();
  for (const type of ["zlib", "zstd"] as const) {
    for (const size of [1 << 16, 1 << 21, 1 << 12]) {
      await roundTrip(type, size);
    }
  }
});

nativeWays("compress() fails in workers as it does without them", async () => {
  using _ = holdWorkers();
  await roundTrip("zlib", 1 << 16);
  const results = await Promise.allSettled(
    Array.from({ length: 100 }, (_, i) => {
      const bytes = i % 3 === 0 ? deflated.subarray(0, 1000) : deflated;
      return inflate(bytes, 65536);
    }),
  );
  for (const [i, result] of results.entries()) {
    if (i % 3 !== 0) assert(result.status === "fulfilled");
    else {
      assert(result.status === "rejected");
      assert(result.reason instanceof BlockError);
      assertEquals(result.reason.code, "EIO");
    }
  }
});

nativeWays("holdWorkers() restarts workers after a pause", async () => {
  using _ = holdWorkers();
  await roundTrip("zlib", 1 << 16);
  // Longer than idle workers wait for work.
  await new Promise((resolve) => setTimeout(resolve, 1300));
  await roundTrip("zlib", 1 << 16);
});

Deno.test("holdWorkers() loses no calls when released", async () => {
  const hold = holdWorkers();
  const pending = roundTrip("zlib", 1 << 16);
  await null;
  hold[Symbol.dispose]();
  await pending;
});
