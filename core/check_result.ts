/**
 * An empty check result.
 *
 * @module
 */
import type { CheckResult } from "./node.ts";

/** A result with all counts zero, to be added to. */
export function nothingFound(): CheckResult {
  return {
    corruptions: 0,
    leaks: 0,
    checkErrors: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
    imageEndOffset: 0,
    totalClusters: 0,
    allocatedClusters: 0,
    fragmentedClusters: 0,
    compressedClusters: 0,
  };
}
