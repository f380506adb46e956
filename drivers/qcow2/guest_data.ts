/**
 * What it takes to read and write guest data. An image that is only described
 * does without, which `info` would otherwise load for nothing.
 *
 * @module
 */
import { Access, type AccessHost } from "../../core/access.ts";
import { CompressedClusters, type CompressionHost } from "./compression.ts";
import { GuestMap, type GuestMapHost } from "./guest_map.ts";
import type { RefcountHost } from "./refcount_table.ts";
import { Refcounts } from "./refcounts.ts";

/** What guest data needs of the image. */
export type GuestDataHost =
  & AccessHost
  & CompressionHost
  & GuestMapHost
  & RefcountHost;

/** The guest data of an image, and what counts its clusters. */
export class GuestData {
  readonly refcounts: Refcounts;
  readonly compressed: CompressedClusters;
  /** Moves it. */
  readonly access: Access;

  constructor(host: GuestDataHost) {
    this.refcounts = new Refcounts(host);
    this.compressed = new CompressedClusters(host);
    this.access = new Access(host, new GuestMap(host));
  }
}
