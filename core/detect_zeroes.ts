/**
 * The option `detect-zeroes` of every node: writes of nothing but zeroes become
 * `writeZeroes`.
 *
 * @module
 */
import { vectorLength } from "./bytes.ts";
import { asBlockError } from "./errors.ts";
import { wrapNode } from "./filter.ts";
import type { BlockNode } from "./node.ts";
import { isZero } from "./runtime.ts";

/** The wrapper; `unmap` lets `writeZeroes` free space. */
export function detectZeroes(node: BlockNode, unmap: boolean): BlockNode {
  if (!node.writeZeroes) return node;
  return wrapNode(node, {
    async writev(offset, iov, flags) {
      if (!iov.every(isZero)) return await node.writev!(offset, iov, flags);
      try {
        const fua = flags?.fua;
        await node.writeZeroes!(offset, vectorLength(iov), { fua, unmap });
      } catch (error) {
        if (asBlockError(error).code !== "ENOTSUP") throw error;
        await node.writev!(offset, iov, flags);
      }
    },
  });
}
