/**
 * New images that are written front to back into a file.
 *
 * @module
 */
import { createImage } from "../create.ts";
import { openProtocol } from "../open.ts";
import type { BlockNode } from "../node.ts";
import type { CacheMode } from "../open_options.ts";
import { protocolStack } from "../sources.ts";
import type { Source } from "../spec.ts";
import { located } from "./copy_source.ts";
import { imageChunks, type StreamImageOptions } from "./stream.ts";

/** How to write a stream to a file. */
export interface StreamFileOptions extends StreamImageOptions {
  /** How writes reach the disk. Default: `writeback`. */
  readonly cache?: CacheMode;
  /** As for `createImage`. */
  onUnlocked?(why: string): void;
}

/**
 * Make or empty a file, and write to it what {@linkcode imageChunks} yields:
 * nothing is lost before the first of it is there, so that options which make
 * no sense cost no file.
 */
export async function streamToFile(
  format: string,
  target: Source,
  sources: readonly BlockNode[],
  { cache, onUnlocked, ...options }: StreamFileOptions,
): Promise<void> {
  const patches: [offset: number, bytes: Uint8Array][] = [];
  const chunks = imageChunks(format, sources, options, {
    replace: (offset, bytes) => patches.push([offset, bytes]),
  });
  let next = await chunks.next();
  const stack = protocolStack(target);
  await createImage(String(stack.driver), stack, { size: 0 }, { onUnlocked });
  const file = await openProtocol(stack, { resize: true, cache, onUnlocked });
  const write = async (at: number, bytes: Uint8Array) => {
    try {
      await file.writev!(at, [bytes]);
    } catch (error) {
      throw located("writing at byte", at, error);
    }
  };
  try {
    for (let at = 0; !next.done; next = await chunks.next()) {
      await write(at, next.value);
      at += next.value.length;
    }
    for (const [offset, bytes] of patches) await write(offset, bytes);
    await file.flush?.();
  } finally {
    await chunks.return();
    await file.close();
  }
}
