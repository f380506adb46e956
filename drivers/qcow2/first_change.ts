/**
 * Autoclear features: they hold only as long as no program that does not know
 * them changes the image. (Specification: "Autoclear features".)
 *
 * @module
 */
import { wrapNode } from "../../core/filter.ts";
import type { BlockNode } from "../../core/node.ts";
import { Autoclear, Incompatible } from "./format.ts";
import type { FeatureBits, Header } from "./header.ts";

/** The features that stay valid when the image is changed here. */
export function keptFeatures({ autoclear, incompatible }: Header): FeatureBits {
  const hasDataFile = (incompatible.low & Incompatible.DATA_FILE) !== 0;
  const known = Autoclear.BITMAPS |
    (hasDataFile ? Autoclear.RAW_EXTERNAL_DATA : 0);
  return { high: 0, low: autoclear.low & known };
}

/** Whether there are features that a change would invalidate. */
export function losesFeatures(header: Header): boolean {
  const { high, low } = header.autoclear;
  return high !== 0 || low !== keptFeatures(header).low;
}

/** The file of an image, with `prepare` awaited before its first change. */
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
