/**
 * Writes of nothing but zeroes that become writes of zeroes: an option of
 * every node, for guests that do not know better.
 *
 * @module
 */
import { asBlockError } from "./errors.ts";
import { vectorLength } from "./bytes.ts";
import type { BlockNode } from "./node.ts";
import { isZero } from "./runtime.ts";

/** Have a node look at what is written to it; `unmap` gives space back. */
export function detectZeroes(node: BlockNode, unmap: boolean): void {
  if (!node.writev || !node.writeZeroes) return;
  const writev = node.writev.bind(node);
  const writeZeroes = node.writeZeroes.bind(node);
  node.writev = async (offset, iov, flags) => {
    if (!iov.every(isZero)) return await writev(offset, iov, flags);
    try {
      const fua = flags?.fua;
      await writeZeroes(offset, vectorLength(iov), { fua, unmap });
    } catch (error) {
      if (asBlockError(error).code !== "ENOTSUP") throw error;
      await writev(offset, iov, flags);
    }
  };
}
