/**
 * Hash functions, and deriving keys from passphrases (PBKDF2, RFC 8018), by the
 * runtime: browsers have four hash functions, Node.js has all. Keys are derived
 * in another thread.
 *
 * @module
 */
import { allocate } from "../bytes.ts";
import { BlockError, invalid } from "../errors.ts";
import { platform } from "../platform/mod.ts";
import type { Hash } from "../platform/platform.ts";
import type { HashName } from "./luks_option_tables.ts";

export type { HashName };

/** Bytes of each digest. */
const DIGEST_SIZES: { readonly [hash in HashName]: number } = {
  md5: 16,
  sha1: 20,
  sha224: 28,
  sha256: 32,
  sha384: 48,
  sha512: 64,
  ripemd160: 20,
};

/** Names of the hash functions that browsers have. */
const WEB_NAMES: { readonly [name in HashName]?: string } = {
  sha1: "SHA-1",
  sha256: "SHA-256",
  sha384: "SHA-384",
  sha512: "SHA-512",
};

/**
 * The hash function with a name.
 *
 * @throws {BlockError} EINVAL if there is none of that name.
 */
export function hashNamed(name: string): HashName {
  if (Object.hasOwn(DIGEST_SIZES, name)) return name as HashName;
  throw invalid(`Hash algorithm '${name}' not supported`);
}

/** Bytes of a digest. */
export function digestSize(hash: HashName): number {
  return DIGEST_SIZES[hash];
}

/** Computes digests. */
export type Hasher = (data: Uint8Array) => Uint8Array | Promise<Uint8Array>;

/**
 * A function that computes digests.
 *
 * @throws {BlockError} ENOTSUP if the runtime lacks it.
 */
export function hasher(hash: HashName): Hasher {
  const native = platform().crypto();
  if (native) return (data) => native.createHash(hash).update(data).digest();
  const name = WEB_NAMES[hash];
  const { subtle } = globalThis.crypto ?? {};
  if (!name || !subtle) throw lacking(hash);
  return async (data) =>
    new Uint8Array(await subtle.digest(name, data as Uint8Array<ArrayBuffer>));
}

/**
 * A digest of bytes that arrive in parts.
 *
 * @throws {BlockError} ENOTSUP if the runtime lacks the hash function, or can
 * hash only complete data, as browsers.
 */
export function runningHash(hash: HashName): Hash {
  const native = platform().crypto();
  if (!native) throw lacking(hash);
  return native.createHash(hash);
}

/** The input of a key derivation. */
export interface Derivation {
  readonly hash: HashName;
  readonly salt: Uint8Array;
  /** At least 1, below 2^32. */
  readonly iterations: number;
  /** Bytes of the key. */
  readonly length: number;
}

/**
 * Derive a key from a passphrase.
 *
 * @throws {BlockError} ENOTSUP if the runtime lacks the hash function.
 */
export async function deriveKey(
  passphrase: Uint8Array,
  { hash, salt, iterations, length }: Derivation,
): Promise<Uint8Array> {
  const name = WEB_NAMES[hash];
  const { subtle } = globalThis.crypto ?? {};
  // Some runtimes refuse an empty key, or 2^31 and more iterations.
  if (name && subtle && passphrase.length > 0 && iterations < 2 ** 31) {
    const key = await subtle.importKey(
      "raw",
      passphrase as Uint8Array<ArrayBuffer>,
      "PBKDF2",
      false,
      ["deriveBits"],
    );
    const how = { name: "PBKDF2", hash: name, salt, iterations };
    const bits = await subtle.deriveBits(how as Pbkdf2Params, key, length * 8);
    return new Uint8Array(bits);
  }
  const native = platform().crypto();
  if (!native) throw lacking(hash);
  return await new Promise((resolve, reject) => {
    const done = (error: Error | null, key: Uint8Array) =>
      error ? reject(error) : resolve(new Uint8Array(key));
    native.pbkdf2(passphrase, salt, iterations, length, hash, done);
  });
}

function lacking(hash: HashName): BlockError {
  return new BlockError(
    "ENOTSUP",
    `Hash algorithm '${hash}' is not available in this runtime`,
  );
}

/** Cryptographically random bytes. */
export function randomBytes(length: number): Uint8Array<ArrayBuffer> {
  const bytes = allocate(length);
  // The most bytes per call.
  for (let at = 0; at < length; at += 65536) {
    globalThis.crypto.getRandomValues(bytes.subarray(at, at + 65536));
  }
  return bytes;
}
