/**
 * Ciphers for the sectors of disks. The block cipher underneath is the
 * runtime's own where there is one, and a library in plain JavaScript
 * elsewhere; the modes work on batches of blocks, because a call is expensive
 * compared with a block.
 *
 * @module
 */
import { SECTOR_SIZE } from "./bytes.ts";
import { platform } from "./platform/mod.ts";
import type { Cipher } from "./platform/platform.ts";

/** A cipher that works on single blocks of 16 bytes. */
export interface BlockCipher {
  /** The blocks of `input`, encrypted. */
  encrypt(input: Uint32Array): Uint32Array;
  /** The blocks of `input`, decrypted. */
  decrypt(input: Uint32Array): Uint32Array;
}

/** A cipher for whole sectors of 512 bytes, which depends on their number. */
export interface SectorCipher {
  /** Encrypt sectors in place; `firstSector` is the number of the first one. */
  encrypt(sectors: Uint8Array, firstSector: number): void;
  /** Decrypt sectors in place; `firstSector` is the number of the first one. */
  decrypt(sectors: Uint8Array, firstSector: number): void;
}

/** AES with a key of 16, 24 or 32 bytes. */
export async function aes(key: Uint8Array): Promise<BlockCipher> {
  const own = key.slice();
  return nativeAes(own) ?? await portableAes(own);
}

/** AES by the runtime, if it can. */
export function nativeAes(key: Uint8Array): BlockCipher | undefined {
  const crypto = platform().crypto();
  if (!crypto) return undefined;
  const name = `aes-${key.length * 8}-ecb`;
  let encryptor: Cipher;
  let decryptor: Cipher;
  try {
    encryptor = crypto.createCipheriv(name, key, null);
    decryptor = crypto.createDecipheriv(name, key, null);
  } catch {
    return undefined; // Not every runtime supports every key length.
  }
  // Without padding, each call returns all the blocks it was given.
  encryptor.setAutoPadding(false);
  decryptor.setAutoPadding(false);
  return blockCipher(
    (bytes) => encryptor.update(bytes),
    (bytes) => decryptor.update(bytes),
  );
}

async function portableAes(key: Uint8Array): Promise<BlockCipher> {
  const { ecb } = await import("@noble/ciphers/aes.js");
  const options = { disablePadding: true };
  return blockCipher(
    (bytes) => ecb(key, options).encrypt(bytes),
    (bytes) => ecb(key, options).decrypt(bytes),
  );
}

type Change = (blocks: Uint8Array) => Uint8Array;

function blockCipher(encrypt: Change, decrypt: Change): BlockCipher {
  return {
    encrypt: (input) => wordsOf(encrypt(bytesOf(input))),
    decrypt: (input) => wordsOf(decrypt(bytesOf(input))),
  };
}

function bytesOf(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

/** Bytes as words; a copy if they are not aligned. */
function wordsOf(bytes: Uint8Array): Uint32Array {
  const { buffer, byteOffset, length } = bytes;
  return byteOffset % 4 === 0
    ? new Uint32Array(buffer, byteOffset, length / 4)
    : new Uint32Array(bytes.slice().buffer);
}

const SECTOR_WORDS = SECTOR_SIZE / 4;
const BLOCK_WORDS = 4;

/**
 * A block cipher in CBC mode, whose initialization vector is the sector number,
 * 64 bits little-endian ("plain64").
 */
export function cbcPlain64(cipher: BlockCipher): SectorCipher {
  return {
    encrypt: (sectors, first) =>
      inWords(sectors, (words) => encryptCbc(cipher, words, first)),
    decrypt: (sectors, first) =>
      inWords(sectors, (words) => decryptCbc(cipher, words, first)),
  };
}

/** Run `change` on bytes as words. */
function inWords(bytes: Uint8Array, change: (words: Uint32Array) => void) {
  const words = wordsOf(bytes);
  change(words);
  if (words.buffer !== bytes.buffer) bytes.set(bytesOf(words));
}

/**
 * A block depends on the one before it in its sector, but sectors are
 * independent: the first blocks of all are encrypted together, then the second
 * ones.
 */
function encryptCbc(
  cipher: BlockCipher,
  words: Uint32Array,
  firstSector: number,
): void {
  const count = words.length / SECTOR_WORDS;
  let previous = new Uint32Array(count * BLOCK_WORDS);
  for (let i = 0; i < count; i++) {
    previous[i * BLOCK_WORDS] = firstSector + i;
    previous[i * BLOCK_WORDS + 1] = (firstSector + i) / 2 ** 32;
  }
  const column = new Uint32Array(previous.length);
  for (let block = 0; block < SECTOR_WORDS; block += BLOCK_WORDS) {
    for (let i = 0, at = block; i < column.length; at += SECTOR_WORDS) {
      column[i] = words[at] ^ previous[i++];
      column[i] = words[at + 1] ^ previous[i++];
      column[i] = words[at + 2] ^ previous[i++];
      column[i] = words[at + 3] ^ previous[i++];
    }
    previous = cipher.encrypt(column) as Uint32Array<ArrayBuffer>;
    for (let i = 0, at = block; i < column.length; at += SECTOR_WORDS) {
      words[at] = previous[i++];
      words[at + 1] = previous[i++];
      words[at + 2] = previous[i++];
      words[at + 3] = previous[i++];
    }
  }
}

/** Bytes decrypted at a time, few enough to stay in the processor's cache. */
const DECRYPT_BATCH = 64 * 1024;

/**
 * All blocks are decrypted together, and then XORed with their predecessors.
 */
function decryptCbc(
  cipher: BlockCipher,
  words: Uint32Array,
  firstSector: number,
): void {
  const step = DECRYPT_BATCH / 4;
  for (let start = 0; start < words.length; start += step) {
    const batch = words.subarray(start, start + step);
    const mixed = cipher.decrypt(batch);
    const first = firstSector + start / SECTOR_WORDS;
    for (let at = 0; at < batch.length; at += SECTOR_WORDS) {
      // From the end: each block's encrypted predecessor is still there.
      for (let i = at + SECTOR_WORDS - 1; i >= at + BLOCK_WORDS; i--) {
        batch[i] = mixed[i] ^ batch[i - BLOCK_WORDS];
      }
      const sector = first + at / SECTOR_WORDS;
      batch[at] = mixed[at] ^ sector;
      batch[at + 1] = mixed[at + 1] ^ (sector / 2 ** 32);
      batch[at + 2] = mixed[at + 2];
      batch[at + 3] = mixed[at + 3];
    }
  }
}
