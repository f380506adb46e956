/**
 * AES on batches of blocks: through OpenSSL's library or the runtime if
 * possible, else by a JavaScript library.
 *
 * @module
 */
import { platform } from "../platform/mod.ts";
import type { Cipher } from "../platform/platform.ts";
import { libraryCipher } from "./library_cipher.ts";

/** A cipher that works on single blocks of 16 bytes. */
export interface BlockCipher {
  /** The blocks of `input`, encrypted. */
  encrypt(input: Uint32Array): Uint32Array;
  /** The blocks of `input`, decrypted. */
  decrypt(input: Uint32Array): Uint32Array;
}

/** AES with a key of 16, 24 or 32 bytes. */
export async function aes(key: Uint8Array): Promise<BlockCipher> {
  const own = key.slice();
  return nativeAes(own) ?? await portableAes(own);
}

/** AES of the runtime, if it has it. */
export function nativeAes(key: Uint8Array): BlockCipher | undefined {
  const [toEncrypt, toDecrypt] = [true, false].map((encrypts) =>
    libraryCipher(key, encrypts)
  );
  if (toEncrypt && toDecrypt) {
    return blockCipher(
      (bytes) => toEncrypt.update(bytes),
      (bytes) => toDecrypt.update(bytes),
    );
  }
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
  // Without padding, each call returns all blocks passed to it.
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

/** Words as bytes. */
export function bytesOf(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

/** Bytes as words; a copy if they are not aligned. */
export function wordsOf(bytes: Uint8Array): Uint32Array {
  const { buffer, byteOffset, length } = bytes;
  return byteOffset % 4 === 0
    ? new Uint32Array(buffer, byteOffset, length / 4)
    : new Uint32Array(bytes.slice().buffer);
}
