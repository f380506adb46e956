import { assertEquals } from "@std/assert";
import { createCipheriv, createHash } from "node:crypto";
import { aes } from "../../../core/crypto/ciphers.ts";
import {
  cbc,
  ctr,
  ecb,
  essiv,
  plain,
  plain64,
  xts,
} from "../../../core/crypto/sector_ciphers.ts";
import { setPortable } from "../../platforms.ts";

function fromHex(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(text.match(/../g)!, (byte) => parseInt(byte, 16));
}

function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0"))
    .join("");
}

function pattern(length: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + (i >> 8)) & 0xff);
}

/** IEEE 1619-2007, annex B: the first and last blocks of vectors 4 and 10. */
const XTS_VECTORS = [
  {
    key: "27182818284590452353602874713526",
    tweak: "31415926535897932384626433832795",
    sector: 0,
    first: "27a7479befa1d476489f308cd4cfa6e2",
  },
  {
    key: "2718281828459045235360287471352662497757247093699959574966967627",
    tweak: "3141592653589793238462643383279502884197169399375105820974944592",
    sector: 0xff,
    first: "1c3b3a102f770386e4836c99e370cf9b",
  },
];

for (const { key, tweak, sector, first } of XTS_VECTORS) {
  Deno.test(`xts() gives the standard's example of ${key.length * 4} bits`, async () => {
    const cipher = xts(
      await aes(fromHex(key)),
      await aes(fromHex(tweak)),
      plain64,
    );
    const bytes = Uint8Array.from({ length: 512 }, (_, i) => i & 0xff);
    cipher.encrypt(bytes, sector);
    assertEquals(toHex(bytes.subarray(0, 16)), first);
    cipher.decrypt(bytes, sector);
    assertEquals(bytes, Uint8Array.from({ length: 512 }, (_, i) => i & 0xff));
  });
}

const KEY = pattern(32).map((byte) => byte ^ 0x5a);

const CIPHERS = {
  ecb: async () => ecb(await aes(KEY)),
  "cbc, plain": async () => cbc(await aes(KEY), plain),
  "cbc, essiv": async () => cbc(await aes(KEY), essiv(await aes(pattern(32)))),
  "xts, plain64": async () =>
    xts(await aes(KEY), await aes(pattern(32)), plain64),
  "ctr, plain64": async () => ctr(await aes(KEY), plain64),
};

for (const [name, make] of Object.entries(CIPHERS)) {
  for (const way of ["portable", "native"] as const) {
    Deno.test(`${name}: each sector is encrypted on its own, at any address, ${way}`, async () => {
      setPortable(way === "portable");
      try {
        const cipher = await make();
        const plainText = pattern(512 * 300);
        const room = new Uint8Array(plainText.length + 1);
        const together = room.subarray(1);
        together.set(plainText);
        cipher.encrypt(together, 2 ** 32 - 100);
        for (const at of [0, 99, 100, 127, 128, 299]) {
          const one = plainText.slice(at * 512, (at + 1) * 512);
          cipher.encrypt(one, 2 ** 32 - 100 + at);
          assertEquals(one, together.slice(at * 512, (at + 1) * 512));
        }
        cipher.decrypt(together, 2 ** 32 - 100);
        assertEquals(together, plainText);
      } finally {
        setPortable(false);
      }
    });
  }
}

Deno.test("ctr() counts through all 128 bits", async () => {
  const vector = new Uint8Array(16).fill(0xff);
  vector[0] = 0x12;
  const cipher = ctr(
    await aes(KEY),
    () => new Uint32Array(vector.buffer.slice(0)),
  );
  const bytes = pattern(512);
  const native = createCipheriv("aes-256-ctr", KEY, vector);
  const expected = new Uint8Array(native.update(bytes));
  cipher.encrypt(bytes, 0);
  assertEquals(bytes, expected);
});

Deno.test("essiv() encrypts the sector number with the key's digest", async () => {
  const digest = createHash("sha256").update(KEY).digest();
  const vectors = essiv(await aes(digest))(5, 2);
  const numbers = new Uint8Array(32);
  numbers[0] = 5;
  numbers[16] = 6;
  const native = createCipheriv("aes-256-ecb", digest, null);
  assertEquals(
    new Uint8Array(vectors.buffer, vectors.byteOffset, 32),
    new Uint8Array(native.update(numbers)),
  );
});

Deno.test("plain sector numbers wrap around, plain64 ones do not", () => {
  assertEquals([...plain(2 ** 32 + 1, 1)], [1, 0, 0, 0]);
  assertEquals([...plain64(2 ** 32 + 1, 1)], [1, 1, 0, 0]);
});
