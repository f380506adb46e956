/**
 * AES of OpenSSL's library, where the system has it and it may be called: it
 * uses the processor's AES instructions, and copies nothing.
 *
 * @module
 */
import { nativeLibrary } from "../runtime.ts";

/** A pointer of the library. */
type Pointer = { readonly pointer: unique symbol };

/** The functions used of the library. */
interface LibCrypto {
  EVP_aes_128_ecb(): Pointer;
  EVP_aes_192_ecb(): Pointer;
  EVP_aes_256_ecb(): Pointer;
  EVP_CIPHER_CTX_new(): Pointer | null;
  EVP_CIPHER_CTX_free(context: Pointer): void;
  EVP_CIPHER_CTX_set_padding(context: Pointer, padding: number): number;
  EVP_CipherInit_ex(
    context: Pointer,
    type: Pointer,
    engine: null,
    key: Uint8Array,
    vector: null,
    encrypts: number,
  ): number;
  EVP_CipherUpdate(
    context: Pointer,
    output: Uint8Array,
    written: Uint8Array,
    input: Uint8Array,
    length: number,
  ): number;
}

function library(): LibCrypto | null {
  const type = { parameters: [], result: "pointer" };
  return nativeLibrary<LibCrypto>("libcrypto.so.3", {
    EVP_aes_128_ecb: type,
    EVP_aes_192_ecb: type,
    EVP_aes_256_ecb: type,
    EVP_CIPHER_CTX_new: type,
    EVP_CIPHER_CTX_free: { parameters: ["pointer"], result: "void" },
    EVP_CIPHER_CTX_set_padding: {
      parameters: ["pointer", "i32"],
      result: "i32",
    },
    EVP_CipherInit_ex: {
      parameters: ["pointer", "pointer", "pointer", "buffer", "buffer", "i32"],
      result: "i32",
    },
    EVP_CipherUpdate: {
      parameters: ["pointer", "buffer", "buffer", "buffer", "i32"],
      result: "i32",
    },
  });
}

/** Contexts hold keys: they are freed with their ciphers. */
const contexts = new FinalizationRegistry<() => void>((free) => free());

/** AES on single blocks, or `null` if there is no such library. */
export function libraryCipher(
  key: Uint8Array,
  encrypts: boolean,
): { update(input: Uint8Array): Uint8Array } | null {
  const crypto = library();
  const context = crypto?.EVP_CIPHER_CTX_new();
  if (!crypto || !context) return null;
  const free = () => crypto.EVP_CIPHER_CTX_free(context);
  const bits = key.length * 8 as 128 | 192 | 256;
  const type = crypto[`EVP_aes_${bits}_ecb`]();
  const direction = encrypts ? 1 : 0;
  const isReady =
    crypto.EVP_CipherInit_ex(context, type, null, key, null, direction) === 1 &&
    crypto.EVP_CIPHER_CTX_set_padding(context, 0) === 1;
  if (!isReady) {
    free();
    return null;
  }
  const written = new Uint8Array(4);
  const cipher = {
    update(input: Uint8Array): Uint8Array {
      const { length } = input;
      const output = new Uint8Array(length);
      const done = crypto.EVP_CipherUpdate(
        context,
        output,
        written,
        input,
        length,
      );
      if (done !== 1) throw new Error("The cipher failed");
      return output;
    },
  };
  contexts.register(cipher, free);
  return cipher;
}
