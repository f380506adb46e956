/// <reference lib="dom" />
/**
 * Counts what is read from the files of the user, and fetched from servers.
 *
 * @module
 */
import { vectorLength } from "../core/bytes.ts";
import { dataExtent } from "../core/held.ts";
import type { BlockNode } from "../core/node.ts";

/** Counts bytes, for all sources of an image. */
export class Meter {
  /** Bytes that were read or fetched. */
  fetched = 0;
  /** Bytes that there are. */
  total = 0;
}

/** A node with what is read of it counted; messages call it `filename`. */
export function counted(
  node: BlockNode,
  filename: string,
  meter: Meter,
): BlockNode {
  const { driver, size } = node;
  const counting: BlockNode = {
    driver,
    filename,
    size,
    readOnly: true,
    children: {},
    async readv(offset, iov, flags) {
      await node.readv(offset, iov, flags);
      const inside = Math.min(vectorLength(iov), size - offset);
      meter.fetched += Math.max(0, inside);
    },
    // deno-lint-ignore require-await -- the interface is asynchronous
    status: async (offset, length) => dataExtent(counting, offset, length),
    // Whoever opened the node closes it.
    close: () => Promise.resolve(),
  };
  return counting;
}

/**
 * Count what `fetch` transfers from now on: the driver for web servers reads
 * ahead, and caches what it has read.
 */
export function countFetches(add: (bytes: number) => void): void {
  const plain = globalThis.fetch;
  globalThis.fetch = async (...args) => {
    const response = await plain(...args);
    const { body } = response;
    if (!body) return response;
    const counting = body.pipeThrough(
      new TransformStream<Uint8Array, Uint8Array>({
        transform(chunk, controller) {
          add(chunk.length);
          controller.enqueue(chunk);
        },
      }),
    );
    // A new `Response` would lack the URL.
    Object.defineProperty(response, "body", { value: counting });
    return response;
  };
}
