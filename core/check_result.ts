/**
 * What checks of several formats have in common.
 *
 * @module
 */
import { BlockError } from "./errors.ts";
import type { CheckOptions, CheckResult } from "./node.ts";

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

/** Refuse, in QEMU's words, to repair an image of a format that cannot be. */
export function refuseRepair({ repair }: CheckOptions): void {
  if (!repair) return;
  throw new BlockError("ENOTSUP", "This image format does not support checks");
}
