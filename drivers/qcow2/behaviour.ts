/**
 * How an image is used: the result of its options.
 *
 * @module
 */
import type { OptionValues } from "../../core/options.ts";
import type { MetadataKind } from "./overlap_options.ts";

/** Why clusters are freed. */
export type FreeReason = "request" | "snapshot" | "other" | "always" | "never";

/** How an image is used, apart from its caches. */
export interface Behaviour {
  /** Refcounts on the disk may be outdated, as the dirty bit then says. */
  lazyRefcounts: boolean;
  /** Metadata that other writes must not overlap. Default: the usual kinds. */
  protectedKinds?: ReadonlySet<MetadataKind>;
  /**
   * Whether to discard freed space in the file, by the reason for freeing it.
   */
  passDiscard: { readonly [reason in FreeReason]: boolean };
  /** Clusters that are discarded or zeroed stay allocated in the file. */
  keepsDiscarded: boolean;
  /** Receives findings, a line each. */
  report(line: string): void;
  /** Receives warnings. */
  warn(message: string): void;
  /** Receives the name of each step, as in QEMU's blkdebug. */
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
