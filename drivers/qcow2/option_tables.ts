/**
 * The tables of all options, and how they are parsed: loaded when an image is
 * opened with any, or made.
 *
 * @module
 */
import {
  type OptionTable,
  type OptionValues,
  parseOptions,
} from "../../core/options.ts";
import type { DriverTables } from "../../core/traits.ts";
import { isPlainObject } from "../../core/values.ts";
import type { ParsedOptions } from "./behaviour.ts";
import {
  AMEND_OPTIONS,
  CREATE_OPTIONS,
  ENCRYPT_OPTIONS,
} from "./create_options.ts";
import { OVERLAP_OPTIONS, protectedKinds } from "./overlap_options.ts";

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
