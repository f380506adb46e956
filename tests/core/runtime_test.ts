import { assert, assertEquals, assertRejects } from "@std/assert";
import { allocate } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import {
  deflateRaw,
  inflateRaw,
  isZero,
  setPortable,
  unzstd,
  zstd,
} from "../../core/runtime.ts";

/** Run a test with what the runtime provides, and without it. */
function bothWays(name: string, test: () => Promise<void> | void): void {
  for (const portable of [false, true]) {
    Deno.test(`${name} (${portable ? "portable" : "native"})`, async () => {
      setPortable(portable);
      try {
        await test();
      } finally {
        setPortable(false);
      }
    });
  }
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
const deflated = deflateRaw(plain)!;
const deflatedSmall = deflateRaw(sample(512), 1)!;
const deflatedBomb = deflateRaw(new Uint8Array(1 << 24))!;
const zstandard = zstd(plain)!;

// deno-lint-ignore require-await -- what is thrown must become a rejection
async function inflate(input: Uint8Array, length: number) {
  return inflateRaw(input, length);
}

// deno-lint-ignore require-await
async function decompress(input: Uint8Array, length: number) {
  return unzstd(input, length);
}

bothWays("inflateRaw() restores what was deflated", async () => {
  assertEquals(await inflate(deflated, plain.length), plain);
  assertEquals((await inflate(deflatedSmall, 512)).length, 512);
});

bothWays("inflateRaw() ignores what follows the stream", async () => {
  for (const filling of [0, 0xaa, 0xff]) {
    assertEquals(await inflate(padded(deflated, filling), 65536), plain);
  }
});

bothWays("inflateRaw() stops at the wanted length", async () => {
  assertEquals(await inflate(deflatedBomb, 65536), new Uint8Array(65536));
});

bothWays("inflateRaw() refuses what is corrupt or short", async () => {
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

bothWays("inflateRaw() throws nothing but BlockError", async () => {
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

Deno.test("deflateRaw() keeps to a window of 4096 bytes", async () => {
  // Two equal random halves, 8 KiB apart, shrink only with a larger window.
  const bytes = allocate(16384);
  crypto.getRandomValues(bytes.subarray(0, 8192));
  bytes.copyWithin(8192, 0, 8192);
  const output = deflateRaw(bytes, 9)!;
  assert(output.length > 16384);
  assertEquals(await inflate(output, 16384), bytes);
});

Deno.test("deflateRaw() and zstd() say where the runtime cannot", () => {
  setPortable(true);
  try {
    assertEquals(deflateRaw(plain), undefined);
    assertEquals(zstd(plain), undefined);
  } finally {
    setPortable(false);
  }
});

Deno.test("unzstd() restores what was compressed", async () => {
  assertEquals(await decompress(zstandard, 65536), plain);
  for (const size of [512, 4096, 1 << 21]) {
    const bytes = sample(size);
    for (const level of [undefined, 1, 9]) {
      assertEquals(await decompress(zstd(bytes, level)!, size), bytes);
    }
  }
});

Deno.test("unzstd() ignores what follows the frame", async () => {
  for (const filling of [0, 0xaa]) {
    assertEquals(await decompress(padded(zstandard, filling), 65536), plain);
  }
});

Deno.test("unzstd() refuses what is corrupt, short or long", async () => {
  const inputs = [
    new Uint8Array(0),
    new Uint8Array(100).fill(0xff),
    zstandard.subarray(0, 100),
    zstandard.subarray(0, zstandard.length - 1),
    zstd(sample(1000))!,
    zstd(new Uint8Array(1 << 24))!,
  ];
  for (const input of inputs) {
    const error = await assertRejects(
      () => decompress(input, 65536),
      BlockError,
    );
    assertEquals(error.code, "EIO");
  }
});

Deno.test("unzstd() says where the runtime cannot", async () => {
  setPortable(true);
  try {
    const error = await assertRejects(
      () => decompress(zstandard, 65536),
      BlockError,
    );
    assertEquals(error.code, "ENOTSUP");
  } finally {
    setPortable(false);
  }
});

function checkIsZero(): void {
  const whole = new Uint8Array(5000);
  for (const length of [0, 1, 7, 8, 63, 64, 65, 512, 1023, 1024, 4096]) {
    for (const start of [0, 1, 2, 3, 5, 48]) {
      const bytes = whole.subarray(start, start + length);
      whole.fill(0xff);
      bytes.fill(0);
      assert(isZero(bytes), `${length} zero bytes at ${start}`);
      for (let at = 0; at < length; at += length < 100 ? 1 : 37) {
        bytes[at] = 0x80;
        assert(!isZero(bytes), `${length} bytes at ${start}, one at ${at}`);
        bytes[at] = 0;
      }
    }
  }
}

bothWays("isZero() finds every byte that is not", () => {
  checkIsZero();
  // After this much, a runtime's own comparison is used.
  const zeroes = new Uint8Array(1 << 20);
  for (let i = 0; i < 80; i++) assert(isZero(zeroes));
  checkIsZero();
});

Deno.test("isZero() takes shared memory", () => {
  const bytes = new Uint8Array(new SharedArrayBuffer(8192)).subarray(3);
  assert(isZero(bytes));
  bytes[5000] = 1;
  assert(!isZero(bytes));
});
