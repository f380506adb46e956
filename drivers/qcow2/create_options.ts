/**
 * Option tables for create, amend and encryption. The code that uses them is
 * loaded on demand.
 *
 * @module
 */
import {
  LUKS_AMEND_OPTIONS,
  LUKS_CREATE_OPTIONS,
  LUKS_OPEN_OPTIONS,
  withPrefix,
} from "../../core/crypto/luks_option_tables.ts";
import type { OptionTable } from "../../core/options.ts";
import { DEFAULT_CLUSTER_SIZE } from "./format.ts";

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
