/**
 * The options of an image that can be changed.
 *
 * @module
 */
import {
  LUKS_AMEND_OPTIONS,
  withPrefix,
} from "../../core/crypto/luks_option_tables.ts";
import type { OptionTable } from "../../core/options.ts";
import { CREATE_OPTIONS } from "./create_options.ts";

const { size, compat, backing_file, backing_fmt } = CREATE_OPTIONS;
const { data_file, data_file_raw } = CREATE_OPTIONS;
const { lazy_refcounts, refcount_bits } = CREATE_OPTIONS;

/** The options of `amend`, in the order in which they are looked at. */
export const AMEND_OPTIONS: OptionTable = {
  ...withPrefix("encrypt.", LUKS_AMEND_OPTIONS),
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
