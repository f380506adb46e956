/**
 * `info --limits`: the limits of a node's requests.
 *
 * @module
 */
import type { BlockNode } from "../core/node.ts";

/** Bytes of a page, the best alignment of memory. */
const PAGE_SIZE = 4096;
/** Most parts of a vectored request. */
const IOV_MAX = 1024;
const SECTOR_SIZE = 512;

/** Protocols that read directly into the caller's memory. */
const FILES = ["file", "host_device", "host_cdrom"];

/** The limits of a node, by QEMU's names and in its order. */
export function limitsOf(node: BlockNode): Record<string, number> {
  const { requestAlignment = 1, writeZeroesAlignment, discardAlignment } =
    node.limits ?? {};
  return {
    ...(writeZeroesAlignment !== undefined && {
      "write-zeroes-alignment": writeZeroesAlignment,
    }),
    "request-alignment": requestAlignment,
    "min-mem-alignment": memoryAlignment(node),
    ...(discardAlignment !== undefined && {
      "discard-alignment": discardAlignment,
    }),
    "opt-mem-alignment": PAGE_SIZE,
    "max-iov": IOV_MAX,
  };
}

/**
 * The alignment that the protocols below need; a backing file has its own
 * buffers.
 */
function memoryAlignment(node: BlockNode): number {
  if (node.driver.role === "protocol") {
    return FILES.includes(node.driver.name)
      ? node.limits?.requestAlignment ?? 1
      : SECTOR_SIZE;
  }
  const below = Object.entries(node.children)
    .filter(([role, child]) => child && role !== "backing")
    .map(([, child]) => memoryAlignment(child!));
  return Math.max(1, ...below);
}
