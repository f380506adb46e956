/**
 * What writing guest data needs, in addition to reading it.
 *
 * @module
 */
export { GuestData } from "./guest_data.ts";
export { OverlapGuard } from "./overlap.ts";
export { Refcounts } from "./refcounts.ts";
