/**
 * Storing a LUKS header in a part of a node.
 *
 * @module
 */
import { asBlockError, BlockError, reasonOf } from "../errors.ts";
import type { BlockNode } from "../node.ts";
import { readPadded } from "../requests.ts";
import type { HeaderStore } from "./luks_volume.ts";

/** Stores a header in a node, from `start` on. */
export function headerStore(node: BlockNode, start = 0): HeaderStore {
  return {
    get length() {
      return node.size - start;
    },
    async read(offset, bytes) {
      try {
        await readPadded(node, start + offset, [bytes]);
      } catch (error) {
        throw failed("Could not read encryption header", error);
      }
    },
    async write(offset, bytes) {
      try {
        await node.writev!(start + offset, [bytes]);
        await node.flush?.();
      } catch (error) {
        throw failed("Could not write encryption header", error);
      }
    },
  };
}

function failed(what: string, error: unknown): BlockError {
  const { code } = asBlockError(error);
  return new BlockError(code, `${what}: ${reasonOf(error)}`, { cause: error });
}
