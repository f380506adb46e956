/**
 * The options to open an image with, and what follows from them.
 *
 * @module
 */
import type { OpenContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";
import type { Behaviour, ParsedOptions } from "./behaviour.ts";
import { Compatible } from "./format.ts";
import { Geometry } from "./geometry.ts";
import type { CacheSizes } from "./guest_data.ts";
import type { Header } from "./header.ts";

const MIB = 1024 * 1024;

/** The names of an image's children. */
export const CHILDREN: readonly string[] = ["file", "backing", "data-file"];

/**
 * Parse the options of an image that is opened. The tables that this takes are
 * not loaded for none.
 */
export async function parseOpenOptions(
  options: OptionValues,
): Promise<ParsedOptions> {
  const isChild = (name: string) => CHILDREN.includes(name);
  if (Object.keys(options).every(isChild)) return { values: {} };
  const { parseOpenOptions } = await import("./option_tables.ts");
  return parseOpenOptions(options, CHILDREN);
}

/** How the image is to be used, according to its options and its header. */
export function behaviourOf(
  { values, protectedKinds }: ParsedOptions,
  header: Header,
  context: OpenContext,
): Behaviour {
  const flag = (name: string, otherwise: boolean) =>
    values[name] as boolean | undefined ?? otherwise;
  const isLazy = (header.compatible.low & Compatible.LAZY_REFCOUNTS) !== 0;
  const lazyRefcounts = flag("lazy-refcounts", isLazy);
  if (lazyRefcounts && header.version < 3) {
    throw new BlockError(
      "EINVAL",
      "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
    );
  }
  const protects = protectedKinds?.();
  const keepsDiscarded = flag("discard-no-unref", false);
  if (keepsDiscarded && header.version < 3) {
    throw invalid("discard-no-unref is only supported since qcow2 version 3");
  }
  return {
    lazyRefcounts,
    ...(protects && { protectedKinds: protects }),
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
export function cacheSizes(
  { values: options }: ParsedOptions,
  header: Header,
): CacheSizes {
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
