/**
 * What an image claims that holds only as long as nobody changes it without
 * knowing of it. (Specification: "Autoclear features".)
 *
 * @module
 */
import { wrapNode } from "../../core/filter.ts";
import type { BlockNode } from "../../core/node.ts";
import { Autoclear } from "./format.ts";
import type { FeatureBits } from "./header.ts";

/** Features that stay true here, whatever is changed. */
export const KEPT_FEATURES = Autoclear.BITMAPS | Autoclear.RAW_EXTERNAL_DATA;

/** Whether there are features that a change would make untrue. */
export function losesFeatures({ high, low }: FeatureBits): boolean {
  return high !== 0 || (low & ~KEPT_FEATURES) !== 0;
}

/** The file of an image, with `prepare` waited for before it is changed. */
export function watchChanges(
  file: BlockNode,
  prepare: () => void | Promise<void>,
): BlockNode {
  return wrapNode(file, {
    async writev(...args) {
      await prepare();
      await file.writev!(...args);
    },
    async writeZeroes(...args) {
      await prepare();
      await file.writeZeroes!(...args);
    },
    async discard(...args) {
      await prepare();
      await file.discard!(...args);
    },
    async truncate(...args) {
      await prepare();
      await file.truncate!(...args);
    },
    async copyFrom(...args) {
      await prepare();
      await file.copyFrom!(...args);
    },
  });
}
