import { assert, assertEquals } from "@std/assert";
import { createCipheriv } from "node:crypto";
import { aes } from "../../../core/crypto/ciphers.ts";
import { cbc, plain64 } from "../../../core/crypto/sector_ciphers.ts";
import { setPortable } from "../../platforms.ts";

function fromHex(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(text.match(/../g)!, (byte) => parseInt(byte, 16));
}

function pattern(length: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + (i >> 8)) & 0xff);
}

/** A sector after encryption, by a cipher object made for it alone. */
function expectedSectors(
  key: Uint8Array,
  plain: Uint8Array,
  firstSector: number,
): Uint8Array {
  const result = new Uint8Array(plain.length);
  for (let at = 0; at < plain.length; at += 512) {
    const iv = new Uint8Array(16);
    const sector = BigInt(firstSector + at / 512);
    new DataView(iv.buffer).setBigUint64(0, sector, true);
    const name = `aes-${key.length * 8}-cbc`;
    const cipher = createCipheriv(name, key, iv).setAutoPadding(false);
    result.set(cipher.update(plain.subarray(at, at + 512)), at);
  }
  return result;
}

// FIPS 197, appendix C.
const VECTORS: readonly [key: string, result: string][] = [
  ["000102030405060708090a0b0c0d0e0f", "69c4e0d86a7b0430d8cdb78070b4c55a"],
  [
    "000102030405060708090a0b0c0d0e0f1011121314151617",
    "dda97ca4864cdfe06eaf70a0ec0d7191",
  ],
  [
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    "8ea2b7ca516745bfeafc49904b496089",
  ],
];

const WAYS = ["portable", "native"] as const;

/** Run a test with the runtime's cipher, and without. */
function bothWays(name: string, run: () => Promise<void>): void {
  for (const way of WAYS) {
    Deno.test(`${name}, ${way}`, async () => {
      setPortable(way === "portable");
      try {
        await run();
      } finally {
        setPortable(false);
      }
    });
  }
}

for (const [key, result] of VECTORS) {
  bothWays(
    `aes() gives the standard's example for ${key.length * 4} bits`,
    async () => {
      const cipher = await aes(fromHex(key));
      const plain = fromHex("00112233445566778899aabbccddeeff");
      const encrypted = cipher.encrypt(new Uint32Array(plain.buffer));
      assertEquals(bytesOf(encrypted), fromHex(result));
      assertEquals(bytesOf(cipher.decrypt(encrypted)), plain);
    },
  );
}

function bytesOf({ buffer, byteOffset, byteLength }: Uint32Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength).slice();
}

// Deno has no aes-192-cbc to compare with.
for (const length of [16, 32]) {
  bothWays(
    `cbc() agrees with node:crypto, ${length * 8} bits`,
    async () => {
      const key = pattern(length).map((byte) => byte ^ 0x5a);
      const cipher = cbc(await aes(key), plain64);
      for (const sectors of [1, 2, 3, 127, 129, 513]) {
        for (const first of [0, 1, 2 ** 32 - 2, 2 ** 43 + 5]) {
          const plain = pattern(sectors * 512);
          const bytes = plain.slice();
          cipher.encrypt(bytes, first);
          const expected = expectedSectors(key, plain, first);
          assert(bytes.every((byte, i) => byte === expected[i]));
          cipher.decrypt(bytes, first);
          assert(bytes.every((byte, i) => byte === plain[i]));
        }
      }
    },
  );
}

bothWays("cbc() works at unaligned addresses", async () => {
  const key = pattern(16);
  const cipher = cbc(await aes(key), plain64);
  const plain = pattern(1024);
  const room = new Uint8Array(1030).fill(0xee);
  const bytes = room.subarray(3, 1027);
  bytes.set(plain);
  cipher.encrypt(bytes, 9);
  assertEquals(bytes, expectedSectors(key, plain, 9));
  cipher.decrypt(bytes, 9);
  assertEquals(bytes, plain);
  assertEquals(room[2], 0xee);
  assertEquals(room[1027], 0xee);
});
