/**
 * Sector ciphers: block cipher modes on sectors of 512 bytes, and the
 * initialization vectors that distinguish sectors. They work on batches of
 * blocks, because a call of the cipher costs as much as many blocks.
 *
 * @module
 */
import { SECTOR_SIZE } from "../bytes.ts";
import { type BlockCipher, bytesOf, wordsOf } from "./ciphers.ts";

/**
 * A cipher for whole sectors of 512 bytes, whose result depends on the sector's
 * number.
 */
export interface SectorCipher {
  /** Encrypt sectors in place; the first one has this number. */
  encrypt(sectors: Uint8Array, firstSector: number): void;
  /** Decrypt sectors in place; the first one has this number. */
  decrypt(sectors: Uint8Array, firstSector: number): void;
}

/**
 * The initialization vectors of `count` sectors, from a number on: four words
 * each.
 */
export type Vectors = (
  firstSector: number,
  count: number,
) => Uint32Array<ArrayBuffer>;

const SECTOR_WORDS = SECTOR_SIZE / 4;
const BLOCK_WORDS = 4;

/** A sector's number as 64 bits, little-endian. */
export const plain64: Vectors = (firstSector, count) => {
  const vectors = new Uint32Array(count * BLOCK_WORDS);
  for (let i = 0; i < count; i++) {
    vectors[i * BLOCK_WORDS] = firstSector + i;
    vectors[i * BLOCK_WORDS + 1] = (firstSector + i) / 2 ** 32;
  }
  return vectors;
};

/** A sector's number as 32 bits, which repeat on large disks. */
export const plain: Vectors = (firstSector, count) => {
  const vectors = new Uint32Array(count * BLOCK_WORDS);
  for (let i = 0; i < count; i++) vectors[i * BLOCK_WORDS] = firstSector + i;
  return vectors;
};

/**
 * A sector's number, encrypted, so that it is unpredictable without the key.
 */
export function essiv(cipher: BlockCipher): Vectors {
  return (firstSector, count) =>
    cipher.encrypt(plain64(firstSector, count)) as Uint32Array<ArrayBuffer>;
}

/** Changes sectors in place. */
type Change = (words: Uint32Array, firstSector: number) => void;

/** Bytes worked on at a time, few enough to stay in the processor's cache. */
const BATCH = 64 * 1024;

/** A cipher that works on words, a batch at a time. */
function inBatches(encrypt: Change, decrypt: Change): SectorCipher {
  const step = BATCH / 4;
  const by = (change: Change) => (bytes: Uint8Array, firstSector: number) => {
    const words = wordsOf(bytes);
    for (let at = 0; at < words.length; at += step) {
      const sector = firstSector + at / SECTOR_WORDS;
      change(words.subarray(at, at + step), sector);
    }
    if (words.buffer !== bytes.buffer) bytes.set(bytesOf(words));
  };
  return { encrypt: by(encrypt), decrypt: by(decrypt) };
}

/** Each block by itself (ECB): equal blocks remain visible. */
export function ecb(cipher: BlockCipher): SectorCipher {
  return inBatches(
    (words) => words.set(cipher.encrypt(words)),
    (words) => words.set(cipher.decrypt(words)),
  );
}

/** Each block mixed with the previous one (CBC). */
export function cbc(cipher: BlockCipher, vectors: Vectors): SectorCipher {
  return inBatches(
    (words, first) => encryptCbc(cipher, vectors, words, first),
    (words, first) => decryptCbc(cipher, vectors, words, first),
  );
}

/**
 * Within a sector each block depends on the previous one, but sectors do not
 * depend on each other: the first blocks of all are encrypted together, then
 * the second ones.
 */
function encryptCbc(
  cipher: BlockCipher,
  vectors: Vectors,
  words: Uint32Array,
  firstSector: number,
): void {
  let previous = vectors(firstSector, words.length / SECTOR_WORDS);
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

/** All blocks are decrypted together, then each predecessor is removed. */
function decryptCbc(
  cipher: BlockCipher,
  vectors: Vectors,
  words: Uint32Array,
  firstSector: number,
): void {
  const mixed = cipher.decrypt(words);
  const first = vectors(firstSector, words.length / SECTOR_WORDS);
  for (let at = 0, i = 0; at < words.length; at += SECTOR_WORDS) {
    // From the end: each block's encrypted predecessor is still there.
    for (let k = at + SECTOR_WORDS - 1; k >= at + BLOCK_WORDS; k--) {
      words[k] = mixed[k] ^ words[k - BLOCK_WORDS];
    }
    words[at] = mixed[at] ^ first[i++];
    words[at + 1] = mixed[at + 1] ^ first[i++];
    words[at + 2] = mixed[at + 2] ^ first[i++];
    words[at + 3] = mixed[at + 3] ^ first[i++];
  }
}

/**
 * Each block mixed with a tweak of its own, before and after (XTS). (IEEE 1619)
 *
 * @param tweaking Encrypts the vector to the first block's tweak.
 */
export function xts(
  cipher: BlockCipher,
  tweaking: BlockCipher,
  vectors: Vectors,
): SectorCipher {
  const tweaks = new Uint32Array(BATCH / 4);
  const by = (crypt: BlockCipher["encrypt"]): Change => (words, first) => {
    const { length } = words;
    mix(words, tweaking.encrypt(vectors(first, length / SECTOR_WORDS)), tweaks);
    const crypted = crypt(words);
    for (let i = 0; i < length; i++) words[i] = crypted[i] ^ tweaks[i];
  };
  return inBatches(
    by((words) => cipher.encrypt(words)),
    by((words) => cipher.decrypt(words)),
  );
}

/**
 * Mix each block's tweak into it. From one block to the next, the tweak is
 * multiplied by x in GF(2^128).
 *
 * @param starts The tweaks of each sector's first block.
 * @param tweaks Receives the tweaks of all blocks.
 */
function mix(
  words: Uint32Array,
  starts: Uint32Array,
  tweaks: Uint32Array,
): void {
  for (let at = 0, i = 0; at < words.length; i += BLOCK_WORDS) {
    let a = starts[i];
    let b = starts[i + 1];
    let c = starts[i + 2];
    let d = starts[i + 3];
    for (const end = at + SECTOR_WORDS; at < end; at += BLOCK_WORDS) {
      words[at] ^= tweaks[at] = a;
      words[at + 1] ^= tweaks[at + 1] = b;
      words[at + 2] ^= tweaks[at + 2] = c;
      words[at + 3] ^= tweaks[at + 3] = d;
      const carry = (d >> 31) & 0x87;
      d = (d << 1) | (c >>> 31);
      c = (c << 1) | (b >>> 31);
      b = (b << 1) | (a >>> 31);
      a = (a << 1) ^ carry;
    }
  }
}

/**
 * Each block mixed with an encrypted counter that begins with the vector (CTR).
 */
export function ctr(cipher: BlockCipher, vectors: Vectors): SectorCipher {
  const change: Change = (words, first) => {
    const starts = vectors(first, words.length / SECTOR_WORDS);
    const stream = cipher.encrypt(counters(starts));
    for (let i = 0; i < words.length; i++) words[i] ^= stream[i];
  };
  return inBatches(change, change);
}

/** The counters of all blocks: 128 bits, big-endian. */
function counters(starts: Uint32Array): Uint32Array {
  const all = new Uint32Array(starts.length / BLOCK_WORDS * SECTOR_WORDS);
  const { buffer, byteOffset, byteLength } = starts;
  const from = new DataView(buffer, byteOffset, byteLength);
  const to = new DataView(all.buffer);
  for (let at = 0; at < all.byteLength; at += BLOCK_WORDS * 4) {
    const isFirst = at % SECTOR_SIZE === 0;
    const source = isFirst ? from : to;
    const before = isFirst
      ? at / SECTOR_SIZE * BLOCK_WORDS * 4
      : at - BLOCK_WORDS * 4;
    let carry = isFirst ? 0 : 1;
    for (let i = 12; i >= 0; i -= 4) {
      const sum = source.getUint32(before + i) + carry;
      to.setUint32(at + i, sum);
      carry = sum > 0xffff_ffff ? 1 : 0;
    }
  }
  return all;
}
