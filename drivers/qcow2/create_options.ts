/**
 * The options of new images. What makes them is loaded when it is used.
 *
 * @module
 */
import type { OptionTable } from "../../core/options.ts";
import { ENCRYPT_CREATE_OPTIONS } from "./encryption_options.ts";
import { DEFAULT_CLUSTER_SIZE } from "./format.ts";

/** The options of `create`, in the order in which they are shown. */
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
