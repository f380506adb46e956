/**
 * Nodes that pass requests through to the node below, changing some.
 *
 * @module
 */
import type { BlockNode } from "./node.ts";
import type { DriverTraits } from "./traits.ts";

/** What a node can do only if the one below can. */
const PASSED_ON = [
  "writev",
  "writeZeroes",
  "discard",
  "flush",
  "truncate",
  "info",
  "invalidate",
] as const;

/**
 * A node that does what `file` does, except for what `changes` holds. Its other
 * verbs are those of `file`; checking, repairing and storing compressed data
 * are not passed on.
 */
export function filterNode(
  driver: DriverTraits,
  file: BlockNode,
  changes: Partial<BlockNode>,
): BlockNode {
  const node: BlockNode = {
    driver,
    filename: file.filename,
    get size() {
      return file.size;
    },
    get readOnly() {
      return file.readOnly;
    },
    get snapshots() {
      return file.snapshots;
    },
    get vmState() {
      return file.vmState;
    },
    children: { file },
    readv: (offset, iov) => file.readv(offset, iov),
    status: (offset, length) => file.status(offset, length),
    close: () => Promise.resolve(),
  };
  for (const verb of PASSED_ON) {
    if (file[verb]) Object.assign(node, { [verb]: file[verb].bind(file) });
  }
  return Object.defineProperties(
    node,
    Object.getOwnPropertyDescriptors(changes),
  ) as BlockNode;
}
