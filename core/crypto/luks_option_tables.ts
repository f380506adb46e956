/**
 * The options that all formats with LUKS have in common. What uses them is
 * loaded when it is used.
 *
 * @module
 */
import {
  type OptionTable,
  type OptionValues,
  parseOption,
} from "../options.ts";

/** All names of ciphers that QEMU accepts, such as `aes-256`. */
const CIPHER_NAMES: readonly string[] = [
  "aes-128",
  "aes-192",
  "aes-256",
  "des",
  "3des",
  "cast5-128",
  "serpent-128",
  "serpent-192",
  "serpent-256",
  "twofish-128",
  "twofish-192",
  "twofish-256",
];

/** The ciphers that are supported. */
export const SUPPORTED_CIPHERS = CIPHER_NAMES.filter((name) =>
  name.startsWith("aes-")
);

/** How a cipher is used on a sector. */
export const CIPHER_MODES = ["ecb", "cbc", "xts", "ctr"] as const;
/** One of them. */
export type CipherMode = typeof CIPHER_MODES[number];

/** How the initialization vector of a sector is made. */
export const VECTOR_GENERATORS = ["plain", "plain64", "essiv"] as const;
/** One of them. */
export type VectorGenerator = typeof VECTOR_GENERATORS[number];

/** The hash functions that images name. */
const HASH_NAMES = [
  "md5",
  "sha1",
  "sha224",
  "sha256",
  "sha384",
  "sha512",
  "ripemd160",
] as const;
/** One of them. */
export type HashName = typeof HASH_NAMES[number];

/** Ciphers of QEMU that are not supported here. */
const UNSUPPORTED_CIPHERS = CIPHER_NAMES.filter((name) =>
  !SUPPORTED_CIPHERS.includes(name)
);

/** How a new image is encrypted; see `algorithmsOf`. */
export const LUKS_CREATE_OPTIONS: OptionTable = {
  "cipher-alg": {
    type: "enum",
    values: CIPHER_NAMES,
    unsupported: UNSUPPORTED_CIPHERS,
    help: "Name of encryption cipher algorithm",
  },
  "cipher-mode": {
    type: "enum",
    values: CIPHER_MODES,
    help: "Name of encryption cipher mode",
  },
  "ivgen-alg": {
    type: "enum",
    values: VECTOR_GENERATORS,
    help: "Name of IV generator algorithm",
  },
  "ivgen-hash-alg": {
    type: "enum",
    values: HASH_NAMES,
    help: "Name of IV generator hash algorithm",
  },
  "hash-alg": {
    type: "enum",
    values: HASH_NAMES,
    help: "Name of encryption hash algorithm",
  },
  "iter-time": {
    type: "number",
    help: "Time to spend in PBKDF in milliseconds",
  },
};

/** How an image is opened. */
export const LUKS_OPEN_OPTIONS: OptionTable = {
  "max-unlock-time": {
    type: "number",
    help: "Longest time to spend on finding the key, in milliseconds",
  },
};

/** Which passphrases are to be added or erased; see `changeSlots`. */
export const LUKS_AMEND_OPTIONS: OptionTable = {
  state: {
    type: "enum",
    values: ["active", "inactive"],
    help: "Select new state of affected keyslots (active/inactive)",
  },
  keyslot: {
    type: "number",
    help: "Select a single keyslot to modify explicitly",
  },
  "old-secret": {
    type: "string",
    help: "Select all keyslots that match this password",
  },
  "new-secret": {
    type: "string",
    help: "New secret to set in the matching keyslots. Empty string to erase",
  },
  "iter-time": {
    type: "number",
    help: "Time to spend in PBKDF in milliseconds",
  },
};

/** The options of a table, below a prefix. */
export function withPrefix(prefix: string, table: OptionTable): OptionTable {
  return Object.fromEntries(
    Object.entries(table).map(([name, spec]) => [prefix + name, spec]),
  );
}

/** The options below a prefix, without it, each with the type of the table. */
export function withoutPrefix(
  prefix: string,
  table: OptionTable,
  options: OptionValues,
): OptionValues {
  const values: OptionValues = {};
  for (const [name, spec] of Object.entries(table)) {
    const value = options[prefix + name];
    if (value !== undefined) values[name] = parseOption(name, spec, value);
  }
  return values;
}
