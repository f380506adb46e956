/**
 * The verbs that a node may lack.
 *
 * @module
 */

/** Optional verbs that change or describe a node's content. */
export const OPTIONAL_VERBS = [
  "writev",
  "writeZeroes",
  "discard",
  "writeCompressed",
  "copyFrom",
  "flush",
  "truncate",
  "info",
  "setMode",
  "replaceChild",
  "setPermissions",
  "invalidate",
  "reopen",
] as const;

/** One of {@linkcode OPTIONAL_VERBS}. */
export type OptionalVerb = typeof OPTIONAL_VERBS[number];
