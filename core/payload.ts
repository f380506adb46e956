/**
 * The payload of a write: bytes, or a range of another file that the system
 * copies.
 *
 * @module
 */
import { type IoVector, sliceVector, vectorLength } from "./bytes.ts";
import type { BlockNode } from "./node.ts";

/** A range of a protocol node. */
export interface FileRange {
  readonly source: BlockNode;
  /** Bytes. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
}

/** The data of a write. */
export type Payload = IoVector | FileRange;

/** Whether the system copies it. */
export function isFileRange(payload: Payload): payload is FileRange {
  return "source" in payload;
}

/** Its length in bytes. */
export function payloadLength(payload: Payload): number {
  return isFileRange(payload) ? payload.length : vectorLength(payload);
}

/** The part `[start, start + length)`. */
export function slicePayload(
  payload: Payload,
  start: number,
  length: number,
): Payload {
  if (!isFileRange(payload)) return sliceVector(payload, start, length);
  const { source, offset } = payload;
  return { source, offset: offset + start, length };
}
