/**
 * Checking a VMDK: each grain must lie within its file.
 *
 * @module
 */
import { SECTOR_SIZE } from "../../core/bytes.ts";
import { nothingFound, refuseRepair } from "../../core/check_result.ts";
import { BlockError } from "../../core/errors.ts";
import type { CheckOptions, CheckResult } from "../../core/node.ts";
import { type Extent, FlatExtent } from "./extent.ts";
import { SparseExtent } from "./sparse_extent.ts";

/**
 * Examine the tables.
 *
 * @throws {BlockError} EINVAL after reporting the first fault.
 */
export async function checkExtents(
  extents: readonly Extent[],
  options: CheckOptions,
): Promise<CheckResult> {
  refuseRepair(options);
  const { report = () => {} } = options;
  for (const extent of extents) {
    const { start, file } = extent;
    const check = (offset: number, place: number | undefined) => {
      if (place !== undefined && place < file!.size) return;
      const sector = offset / SECTOR_SIZE;
      report(
        place === undefined
          ? `ERROR: could not get cluster_offset for sector ${sector}`
          : `ERROR: cluster offset for sector ${sector} points after EOF`,
      );
      throw new BlockError("EINVAL");
    };
    if (extent instanceof FlatExtent) check(start, extent.fileOffset);
    if (extent instanceof SparseExtent) {
      await extent.eachGrain((grain, place) =>
        check(start + grain * extent.grainSize, place)
      );
    }
  }
  return nothingFound();
}
