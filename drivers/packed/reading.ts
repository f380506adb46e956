/**
 * Reading structures of a file.
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";

/** Bytes of a file, with zeroes past its end. */
export async function bytesAt(
  file: BlockNode,
  at: number,
  length: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = allocate(length);
  await readPadded(file, at, [bytes]);
  return bytes;
}
