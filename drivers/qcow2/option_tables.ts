/**
 * The tables of all options, and how they are parsed: loaded when an image is
 * opened with any, or made.
 *
 * @module
 */
import {
  LUKS_AMEND_OPTIONS,
  LUKS_CREATE_OPTIONS,
  LUKS_OPEN_OPTIONS,
  withPrefix,
} from "../../core/crypto/luks_option_tables.ts";
import {
  type OptionTable,
  type OptionValues,
  parseOptions,
} from "../../core/options.ts";
import type { DriverTables } from "../../core/traits.ts";
import { isPlainObject } from "../../core/values.ts";
import type { ParsedOptions } from "./behaviour.ts";
import { DEFAULT_CLUSTER_SIZE } from "./format.ts";
import { OVERLAP_OPTIONS, protectedKinds } from "./overlap_options.ts";

/** The kinds of encryption. */
export const FORMATS = ["aes", "luks"] as const;

/** Options of `open` below `encrypt`. */
export const ENCRYPT_OPTIONS: OptionTable = {
  "encrypt.format": {
    type: "string",
    help: "Encryption format that the image must have: 'aes', 'luks'",
  },
  "encrypt.key-secret": {
    type: "string",
    help: "ID of secret providing qcow AES key or LUKS passphrase",
  },
  ...withPrefix("encrypt.", LUKS_OPEN_OPTIONS),
};

/** Encryption options of `create`, which come first. */
export const ENCRYPT_CREATE_OPTIONS: OptionTable = {
  encryption: {
    type: "boolean",
    help:
      "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
  },
  "encrypt.format": {
    type: "enum",
    values: FORMATS,
    oldValues: ["qcow"],
    help: "Encrypt the image, format choices: 'aes', 'luks'",
  },
  "encrypt.key-secret": {
    type: "string",
    help: "ID of secret providing qcow AES key or LUKS passphrase",
  },
  ...withPrefix("encrypt.", LUKS_CREATE_OPTIONS),
};

/** Options of `create`, in the order in which help shows them. */
export const CREATE_OPTIONS: OptionTable = {
  ...ENCRYPT_CREATE_OPTIONS,
  cluster_size: {
    type: "size",
    default: DEFAULT_CLUSTER_SIZE,
    help: "qcow2 cluster size",
  },
  extended_l2: {
    type: "boolean",
    default: false,
    help: "Extended L2 tables",
  },
  preallocation: {
    type: "enum",
    values: ["off", "metadata", "falloc", "full"],
    help: "Preallocation mode (allowed values: off, metadata, falloc, full)",
  },
  compression_type: {
    type: "enum",
    values: ["zlib", "zstd"],
    default: "zlib",
    help: "Compression method used for image cluster compression",
  },
  keep_data_file: {
    type: "boolean",
    help: "Assume the external data file already exists and do not " +
      "overwrite it",
  },
  size: { type: "size", help: "Virtual disk size" },
  compat: {
    type: "string",
    help: "Compatibility level (v2 [0.10] or v3 [1.1])",
  },
  backing_file: { type: "string", help: "File name of a base image" },
  backing_fmt: { type: "string", help: "Image format of the base image" },
  data_file: { type: "string", help: "File name of an external data file" },
  data_file_raw: {
    type: "boolean",
    help: "The external data file must stay valid as a raw image",
  },
  lazy_refcounts: {
    type: "boolean",
    default: false,
    help: "Postpone refcount updates",
  },
  refcount_bits: {
    type: "number",
    default: 16,
    help: "Width of a reference count entry in bits",
  },
};

const { size, compat, backing_file, backing_fmt } = CREATE_OPTIONS;
const { data_file, data_file_raw } = CREATE_OPTIONS;
const { lazy_refcounts, refcount_bits } = CREATE_OPTIONS;

/** Options of `amend`, in the order in which they are checked. */
export const AMEND_OPTIONS: OptionTable = {
  ...withPrefix("encrypt.", LUKS_AMEND_OPTIONS),
  size,
  compat,
  // They are accepted unchanged; `rebase` changes them.
  backing_file: { ...backing_file, unsupported: true },
  backing_fmt: { ...backing_fmt, unsupported: true },
  data_file,
  data_file_raw,
  lazy_refcounts,
  refcount_bits,
};

/** Options of `open`, without the children. */
const OPEN_OPTIONS: OptionTable = {
  "cache-size": {
    type: "size",
    help:
      "Maximum combined metadata (L2 tables and refcount blocks) cache size",
  },
  "l2-cache-size": { type: "size", help: "Maximum L2 table cache size" },
  "l2-cache-entry-size": {
    type: "size",
    help: "Size of each entry in the L2 cache",
  },
  "refcount-cache-size": {
    type: "size",
    help: "Maximum refcount block cache size",
  },
  "cache-clean-interval": {
    type: "number",
    help: "Clean unused cache entries after this time (in seconds)",
  },
  "lazy-refcounts": {
    type: "boolean",
    help: "Postpone refcount updates",
  },
  "pass-discard-request": {
    type: "boolean",
    help: "Pass guest discard requests to the layer below",
  },
  "pass-discard-snapshot": {
    type: "boolean",
    help: "Generate discard requests when snapshot related space is freed",
  },
  "pass-discard-other": {
    type: "boolean",
    help: "Generate discard requests when other clusters are freed",
  },
  "discard-no-unref": {
    type: "boolean",
    help: "Keep the places of clusters that are discarded or zeroed",
  },
  ...OVERLAP_OPTIONS,
  ...ENCRYPT_OPTIONS,
};

/** Flatten options to dotted names: `{"overlap-check.template": "all"}`. */
function flatten(options: OptionValues): OptionValues {
  const flat = { ...options };
  for (const group of ["overlap-check", "encrypt"]) {
    const nested = options[group];
    if (!isPlainObject(nested)) continue;
    delete flat[group];
    for (const [name, value] of Object.entries(nested)) {
      flat[`${group}.${name}`] = value;
    }
  }
  return flat;
}

/** Parse the options of an image that is opened, and leave its children be. */
export function parseOpenOptions(
  options: OptionValues,
  children: readonly string[],
): ParsedOptions {
  const values = parseOptions(OPEN_OPTIONS, flatten(options), children);
  return { values, protectedKinds: () => protectedKinds(values) };
}

const CACHE_SIZES = ["cache-size", "l2-cache-size", "refcount-cache-size"];

/**
 * The options of an image that is reopened. A new template for overlap checks,
 * or a new total cache size, replaces all earlier details; a complete set of
 * details replaces the earlier total.
 */
function joinOptions(
  before: OptionValues,
  changes: OptionValues,
): OptionValues {
  const isChanged = (name: string) => Object.hasOwn(changes, name);
  const newTemplate = isChanged("overlap-check") ||
    isChanged("overlap-check.template");
  const [total, ...parts] = CACHE_SIZES;
  const kept = Object.entries(before).filter(([name]) =>
    !(newTemplate && name.startsWith("overlap-check")) &&
    !(isChanged(total) && parts.includes(name))
  );
  const joined = { ...Object.fromEntries(kept), ...changes };
  const hasAll = CACHE_SIZES.every((name) => Object.hasOwn(joined, name));
  if (hasAll && !CACHE_SIZES.every(isChanged)) delete joined[total];
  return joined;
}

/** What the driver adds to itself. */
export const TABLES: DriverTables = {
  openOptions: OPEN_OPTIONS,
  joinOptions,
  createOptions: CREATE_OPTIONS,
  amendOptions: AMEND_OPTIONS,
};
