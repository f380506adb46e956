/**
 * Checking a VDI image: each block must be used at most once, and counted.
 *
 * @module
 */
import { nothingFound } from "../../core/check_result.ts";
import type { CheckOptions, CheckResult } from "../../core/node.ts";
import { hasPlace, type VdiTable } from "./block_table.ts";
import type { VdiHeader } from "./header.ts";

/** Check the block map. */
export async function checkBlocks(
  { blocks, blocksAllocated }: VdiHeader,
  table: VdiTable,
  { report = () => {} }: CheckOptions,
): Promise<CheckResult> {
  const seen = new Set<number>();
  let allocated = 0;
  let corruptions = 0;
  const found = (line: string) => {
    report(line);
    corruptions++;
  };
  for (let index = 0; index < blocks; index++) {
    const entry = await table.entry(index);
    if (!hasPlace(entry)) continue;
    if (entry >= blocks) {
      found(`ERROR: block index ${index} too large, is ${entry}`);
      continue;
    }
    allocated++;
    if (seen.has(entry)) {
      found(`ERROR: block index ${entry} also used by ${entry}`);
    }
    seen.add(entry);
  }
  if (allocated !== blocksAllocated) {
    found(
      `ERROR: allocated blocks mismatch, is ${allocated}, ` +
        `should be ${blocksAllocated}`,
    );
  }
  return { ...nothingFound(), corruptions };
}
