/**
 * The options to open an image with, and what follows from them.
 *
 * @module
 */
import type { OpenContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { OptionTable, OptionValues } from "../../core/options.ts";
import { isPlainObject } from "../../core/values.ts";
import type { Behaviour } from "./behaviour.ts";
import { ENCRYPT_OPTIONS } from "./create_options.ts";
import { Compatible } from "./format.ts";
import { Geometry } from "./geometry.ts";
import type { Header } from "./header.ts";
import { OVERLAP_OPTIONS, protectedKinds } from "./overlap_options.ts";
import type { CacheSizes } from "./guest_data.ts";

const MIB = 1024 * 1024;

/** Options of `open`, without the children. */
export const OPEN_OPTIONS: OptionTable = {
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
export function flatten(options: OptionValues): OptionValues {
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

/** How the image is to be used, according to its options and its header. */
export function behaviourOf(
  options: OptionValues,
  header: Header,
  context: OpenContext,
): Behaviour {
  const flag = (name: string, otherwise: boolean) =>
    options[name] as boolean | undefined ?? otherwise;
  const isLazy = (header.compatible.low & Compatible.LAZY_REFCOUNTS) !== 0;
  const lazyRefcounts = flag("lazy-refcounts", isLazy);
  if (lazyRefcounts && header.version < 3) {
    throw new BlockError(
      "EINVAL",
      "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
    );
  }
  const protects = protectedKinds(options);
  const keepsDiscarded = flag("discard-no-unref", false);
  if (keepsDiscarded && header.version < 3) {
    throw invalid("discard-no-unref is only supported since qcow2 version 3");
  }
  return {
    lazyRefcounts,
    protectedKinds: protects,
    keepsDiscarded,
    passDiscard: {
      request: flag("pass-discard-request", true),
      snapshot: flag("pass-discard-snapshot", true),
      other: flag("pass-discard-other", false),
      always: true,
      never: false,
    },
    report: (line) => context.report(line),
    warn: (message) => context.warn(message),
    ...(context.event && { event: (name) => context.event?.(name) }),
  };
}

/**
 * Slices of L2 tables to cache by default: slices of small clusters take up
 * more memory than their bytes.
 */
const USUAL_SLICES = 4096;

/** The sizes of the caches, by QEMU's rules and with QEMU's messages. */
export function cacheSizes(options: OptionValues, header: Header): CacheSizes {
  const geometry = Geometry.of(header);
  const { clusterSize } = geometry;
  const total = options["cache-size"] as number | undefined;
  let l2 = options["l2-cache-size"] as number | undefined;
  let refcount = options["refcount-cache-size"] as number | undefined;
  const minRefcount = 4 * clusterSize;
  const { entrySize } = geometry.l2;
  const covering = geometry.clustersFor(header.size) * entrySize;
  const wholeL2 = geometry.clusterEnd(covering);
  if (total !== undefined) {
    if (l2 !== undefined && refcount !== undefined) {
      throw invalid(
        "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time",
      );
    }
    if (l2 !== undefined && l2 > total) {
      throw invalid("l2-cache-size may not exceed cache-size");
    }
    if (refcount !== undefined && refcount > total) {
      throw invalid("refcount-cache-size may not exceed cache-size");
    }
    if (l2 !== undefined) refcount = total - l2;
    else if (refcount !== undefined) l2 = total - refcount;
    else {
      l2 = Math.min(wholeL2, Math.max(0, total - minRefcount));
      refcount = total - l2;
    }
  }
  const usual = Math.min(32 * MIB, USUAL_SLICES * clusterSize);
  l2 = Math.min(l2 ?? usual, wholeL2);
  refcount ??= minRefcount;
  const l2Entry = options["l2-cache-entry-size"] as number | undefined ??
    (l2 < wholeL2 ? Math.min(4096, clusterSize) : clusterSize);
  if (
    l2Entry < 512 || l2Entry > clusterSize ||
    !Number.isInteger(Math.log2(l2Entry))
  ) {
    throw invalid(
      `L2 cache entry size must be a power of two between 512 and the cluster size (${clusterSize})`,
    );
  }
  if (l2 / l2Entry >= 2 ** 31) throw invalid("L2 cache size too big");
  if (refcount / clusterSize >= 2 ** 31) {
    throw invalid("Refcount cache size too big");
  }
  return { l2, l2Entry, refcount: Math.max(refcount, minRefcount) };
}

const CACHE_SIZES = ["cache-size", "l2-cache-size", "refcount-cache-size"];

/**
 * The options of an image that is reopened. A new template for overlap checks,
 * or a new total cache size, replaces all earlier details; a complete set of
 * details replaces the earlier total.
 */
export function joinOptions(
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
