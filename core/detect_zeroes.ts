/**
 * Writes of nothing but zeroes that become writes of zeroes: an option of
 * every node, for guests that do not know better.
 *
 * @module
 */
import { vectorLength } from "./bytes.ts";
import { asBlockError } from "./errors.ts";
import { wrapNode } from "./filter.ts";
import type { BlockNode } from "./node.ts";
import { isZero } from "./runtime.ts";

/** A wrapper that looks at what is written; `unmap` gives space back. */
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
