/**
 * AES on batches of blocks: the runtime's own where there is one and the batch
 * is worth the call, and ours in plain JavaScript elsewhere.
 *
 * @module
 */
import { Aes } from "./aes.ts";
import { nativeModule } from "../runtime.ts";
import { libraryCipher } from "./library_cipher.ts";

/** A cipher that works on blocks of 16 bytes, each by itself. */
export interface BlockCipher {
  /** The blocks of `input`, encrypted. */
  encrypt(input: Uint32Array): Uint32Array;
  /** The blocks of `input`, decrypted. */
  decrypt(input: Uint32Array): Uint32Array;
}

/** The part of `node:crypto` in use. */
interface NativeCrypto {
  createCipheriv(name: string, key: Uint8Array, iv: null): PaddingCipher;
  createDecipheriv(name: string, key: Uint8Array, iv: null): PaddingCipher;
}

interface NativeCipher {
  update(input: Uint8Array): Uint8Array;
}

interface PaddingCipher extends NativeCipher {
  setAutoPadding(on: boolean): void;
}

/** Bytes for which a call to the runtime takes less time than our own AES. */
const WORTH_A_CALL = 256;
/**
 * Bytes to work on before the runtime's cipher is loaded. That takes some 35
 * ms, in which our own does this much.
 */
const PATIENCE = 4 * 1024 * 1024;

/** AES with a key of 16, 24 or 32 bytes. */
export function aes(key: Uint8Array): BlockCipher {
  return new AdaptiveAes(key);
}

class AdaptiveAes implements BlockCipher {
  readonly #key: Uint8Array;
  readonly #own: Aes;
  #encryptor?: NativeCipher | null;
  #decryptor?: NativeCipher | null;
  #bytesSeen = 0;

  constructor(key: Uint8Array) {
    this.#key = key.slice();
    this.#own = new Aes(key);
  }

  encrypt(input: Uint32Array): Uint32Array {
    if (!this.#worthCall(input)) return this.#own.encrypt(input);
    this.#encryptor ??= this.#native("createCipheriv");
    return callNative(this.#encryptor, input) ?? this.#own.encrypt(input);
  }

  decrypt(input: Uint32Array): Uint32Array {
    if (!this.#worthCall(input)) return this.#own.decrypt(input);
    this.#decryptor ??= this.#native("createDecipheriv");
    return callNative(this.#decryptor, input) ?? this.#own.decrypt(input);
  }

  #worthCall({ byteLength }: Uint32Array): boolean {
    if (this.#bytesSeen < PATIENCE) this.#bytesSeen += byteLength;
    return byteLength >= WORTH_A_CALL && this.#bytesSeen >= PATIENCE;
  }

  #native(make: keyof NativeCrypto): NativeCipher | null {
    const ofLibrary = libraryCipher(this.#key, make === "createCipheriv");
    if (ofLibrary) return ofLibrary;
    const crypto = nativeModule<NativeCrypto>("node:crypto");
    if (!crypto) return null;
    const name = `aes-${this.#key.length * 8}-ecb`;
    const cipher = crypto[make](name, this.#key, null);
    cipher.setAutoPadding(false);
    return cipher;
  }
}

/** Without padding, a cipher gives each block back in the call it came by. */
function callNative(
  cipher: NativeCipher | null,
  input: Uint32Array,
): Uint32Array | undefined {
  return cipher ? wordsOf(cipher.update(bytesOf(input))) : undefined;
}

/** Words as bytes. */
export function bytesOf(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

/** Bytes as words, in a copy if they do not begin where a word could. */
export function wordsOf(bytes: Uint8Array): Uint32Array {
  const { buffer, byteOffset, length } = bytes;
  return byteOffset % 4 === 0
    ? new Uint32Array(buffer, byteOffset, length / 4)
    : new Uint32Array(bytes.slice().buffer);
}
