/**
 * The option tables of all formats with LUKS. The code that uses them is loaded
 * on demand.
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

/** Block cipher modes. */
export const CIPHER_MODES = ["ecb", "cbc", "xts", "ctr"] as const;
/** One of them. */
export type CipherMode = typeof CIPHER_MODES[number];

/** Generators of a sector's initialization vector. */
export const VECTOR_GENERATORS = ["plain", "plain64", "essiv"] as const;
/** One of them. */
export type VectorGenerator = typeof VECTOR_GENERATORS[number];

/** Hash functions that images may name. */
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

/** Options of `create`; see `algorithmsOf`. */
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
    type: "integer",
    help: "Time to spend in PBKDF in milliseconds",
  },
};

/** Options of `open`. */
export const LUKS_OPEN_OPTIONS: OptionTable = {
  "max-unlock-time": {
    type: "number",
    help: "Longest time to spend on finding the key, in milliseconds",
  },
};

/** Options of `amend`: passphrases to add or erase; see `changeSlots`. */
export const LUKS_AMEND_OPTIONS: OptionTable = {
  state: {
    type: "enum",
    values: ["active", "inactive"],
    help: "Select new state of affected keyslots (active/inactive)",
  },
  keyslot: {
    type: "integer",
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
    type: "integer",
    help: "Time to spend in PBKDF in milliseconds",
  },
};

/** The options of a table, with a prefix. */
export function withPrefix(prefix: string, table: OptionTable): OptionTable {
  return Object.fromEntries(
    Object.entries(table).map(([name, spec]) => [prefix + name, spec]),
  );
}

/** The options with a prefix, without it, typed by the table. */
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
