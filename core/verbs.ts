/**
 * The verbs that a node may lack.
 *
 * @module
 */

/** Those that change, or describe, what it holds. */
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
