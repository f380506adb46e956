/**
 * What it takes to write guest data, besides what it takes to read it.
 *
 * @module
 */
export { GuestData } from "./guest_data.ts";
export { OverlapGuard } from "./overlap.ts";
export { Refcounts } from "./refcounts.ts";
