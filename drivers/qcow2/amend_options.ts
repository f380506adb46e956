/**
 * The options of an image that can be changed.
 *
 * @module
 */
import type { OptionTable } from "../../core/options.ts";
import { CREATE_OPTIONS } from "./create_options.ts";

const { size, compat, backing_file, backing_fmt } = CREATE_OPTIONS;
const { data_file, data_file_raw } = CREATE_OPTIONS;
const { lazy_refcounts, refcount_bits } = CREATE_OPTIONS;

/** The options of `amend`, in the order in which they are looked at. */
export const AMEND_OPTIONS: OptionTable = {
  "encrypt.state": {
    type: "string",
    unsupported: true,
    help: "Select new state of affected keyslots (active/inactive)",
  },
  "encrypt.keyslot": {
    type: "number",
    unsupported: true,
    help: "Select a single keyslot to modify explicitly",
  },
  "encrypt.old-secret": {
    type: "string",
    unsupported: true,
    help: "Select all keyslots that match this password",
  },
  "encrypt.new-secret": {
    type: "string",
    unsupported: true,
    help: "New secret to set in the matching keyslots. Empty string to erase",
  },
  "encrypt.iter-time": {
    type: "number",
    unsupported: true,
    help: "Time to spend in PBKDF in milliseconds",
  },
  size,
  compat,
  // They may be named, but `rebase` is what changes them.
  backing_file: { ...backing_file, unsupported: true },
  backing_fmt: { ...backing_fmt, unsupported: true },
  data_file,
  data_file_raw,
  lazy_refcounts,
  refcount_bits,
};
