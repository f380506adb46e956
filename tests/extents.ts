/** An extent's kind, in one word. @module */
import type { Extent } from "../core/node.ts";

/** The word. */
export function kindOf({ allocated, zero, compressed }: Extent): string {
  if (zero) return "zero";
  if (compressed) return "compressed";
  return allocated ? "data" : "unallocated";
}
