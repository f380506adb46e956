/**
 * The ciphers, modes and hash functions that LUKS headers name, and which of
 * them are supported.
 *
 * @module
 */
import { BlockError, invalid } from "../errors.ts";
import { aes } from "./ciphers.ts";
import { digestSize, hasher, type HashName, hashNamed } from "./hashes.ts";
import {
  CIPHER_MODES,
  type CipherMode,
  VECTOR_GENERATORS,
  type VectorGenerator,
} from "./luks_option_tables.ts";
import {
  cbc,
  ctr,
  ecb,
  essiv,
  plain,
  plain64,
  type SectorCipher,
  type Vectors,
  xts,
} from "./sector_ciphers.ts";

/** Bytes of the keys of each cipher family. */
const KEY_SIZES: { readonly [family: string]: readonly number[] } = {
  aes: [16, 24, 32],
  cast5: [16],
  serpent: [16, 24, 32],
  twofish: [16, 24, 32],
};

/** How an image is encrypted. */
export interface Algorithms {
  /** `aes`, or the name of another family. */
  readonly family: string;
  /** Bytes of the key of one cipher; `xts` uses two. */
  readonly keySize: number;
  readonly mode: CipherMode;
  readonly generator: VectorGenerator;
  /** Named in every header, but used only by `essiv`. */
  readonly generatorHash?: HashName;
  /** The hash function for key derivation. */
  readonly hash: HashName;
}

/** Bytes of the whole key. */
export function masterKeySize({ mode, keySize }: Algorithms): number {
  return mode === "xts" ? 2 * keySize : keySize;
}

/** Parse the fields of a header, in the order in which QEMU checks them. */
export function parseAlgorithms(
  family: string,
  modeText: string,
  hash: string,
  keyBytes: number,
): Algorithms {
  const dash = modeText.indexOf("-");
  if (dash < 0) {
    throw invalid(`Unexpected cipher mode string format '${modeText}'`);
  }
  const mode = modeText.slice(0, dash);
  const [generator, ...rest] = modeText.slice(dash + 1).split(":");
  const generatorHash = rest.length > 0 ? hashNamed(rest.join(":")) : undefined;
  if (!isAmong(CIPHER_MODES, mode)) {
    throw invalid(`Cipher mode '${mode}' not supported`);
  }
  const keySize = mode === "xts" ? Math.floor(keyBytes / 2) : keyBytes;
  const sizes = Object.hasOwn(KEY_SIZES, family) ? KEY_SIZES[family] : [];
  if (!sizes.includes(keySize)) throw unknownCipher(family, keySize);
  if (mode === "xts" && keyBytes % 2 !== 0) {
    throw invalid("XTS cipher key length should be a multiple of 2");
  }
  const hashName = hashNamed(hash);
  if (!isAmong(VECTOR_GENERATORS, generator)) {
    throw invalid(`IV generator '${generator}' not supported`);
  }
  const algorithms: Algorithms = {
    family,
    keySize,
    mode,
    generator,
    ...(generatorHash && { generatorHash }),
    hash: hashName,
  };
  checkVectors(algorithms);
  return algorithms;
}

/** Refuse combinations that yield no initialization vector. */
export function checkVectors(
  { family, generator, generatorHash }: Algorithms,
): void {
  if (generator !== "essiv") return;
  if (!generatorHash) {
    throw invalid("Missing IV generator hash specification");
  }
  if (family === "cast5") {
    throw invalid("Cipher cast5-128 not supported with essiv");
  }
  const size = digestSize(generatorHash);
  if (KEY_SIZES[family].includes(size)) return;
  const title = family === "aes"
    ? "AES"
    : family[0].toUpperCase() + family.slice(1);
  throw invalid(`No ${title} cipher with key size ${size} available`);
}

/** The mode as written in a header. */
export function modeText(algorithms: Algorithms): string {
  const { mode, generator, generatorHash } = algorithms;
  const hash = generatorHash ? `:${generatorHash}` : "";
  return `${mode}-${generator}${hash}`;
}

/** The cipher's name, such as `aes-256`. */
export function cipherName({ family, keySize }: Algorithms): string {
  return `${family}-${keySize * 8}`;
}

/**
 * The sector cipher for a key and a header's algorithms.
 *
 * @throws {BlockError} ENOTSUP if the cipher is not supported.
 */
export async function sectorCipher(
  algorithms: Algorithms,
  key: Uint8Array,
): Promise<SectorCipher> {
  const { family, keySize, mode } = algorithms;
  if (family !== "aes") throw unknownCipher(family, keySize);
  const cipher = await aes(key.subarray(0, keySize));
  if (mode === "ecb") return ecb(cipher);
  const vectors = await vectorsOf(algorithms, key);
  switch (mode) {
    case "cbc":
      return cbc(cipher, vectors);
    case "ctr":
      return ctr(cipher, vectors);
    case "xts":
      return xts(cipher, await aes(key.subarray(keySize)), vectors);
  }
}

async function vectorsOf(
  { generator, generatorHash }: Algorithms,
  key: Uint8Array,
): Promise<Vectors> {
  if (generator !== "essiv") return generator === "plain" ? plain : plain64;
  return essiv(await aes(await hasher(generatorHash!)(key)));
}

function unknownCipher(family: string, keySize: number): BlockError {
  return new BlockError(
    "ENOTSUP",
    `Algorithm '${family}' with key size ${keySize} bytes not supported`,
  );
}

function isAmong<T extends string>(
  words: readonly T[],
  word: string,
): word is T {
  return (words as readonly string[]).includes(word);
}
