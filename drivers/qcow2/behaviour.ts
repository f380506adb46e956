/**
 * How an image is used, as its user's options say, or who makes it.
 *
 * @module
 */
import type { OptionValues } from "../../core/options.ts";
import type { MetadataKind } from "./overlap_options.ts";

/** Why clusters are given up. */
export type FreeReason = "request" | "snapshot" | "other" | "always" | "never";

/** How an image is used, apart from its caches. */
export interface Behaviour {
  /** Refcounts on the disk may lag behind; the dirty bit says so. */
  lazyRefcounts: boolean;
  /** Metadata that no other write may overlap. Default: the usual kinds. */
  protectedKinds?: ReadonlySet<MetadataKind>;
  /** Whether to pass freed space down to the file, by the reason. */
  passDiscard: { readonly [reason in FreeReason]: boolean };
  /** Clusters that are discarded or zeroed keep their places in the file. */
  keepsDiscarded: boolean;
  /** Receives findings, a line each. */
  report(line: string): void;
  /** Receives warnings. */
  warn(message: string): void;
  /** Receives the name of each step, as QEMU's blkdebug has them. */
  event?(name: string): void;
}

/** The options of an image that is opened, parsed. */
export interface ParsedOptions {
  /** By dotted name. */
  readonly values: OptionValues;
  /**
   * Which kinds of metadata they say to protect; absent if they say nothing.
   *
   * @throws {BlockError} EINVAL if they contradict each other.
   */
  protectedKinds?(): ReadonlySet<MetadataKind>;
}
