/**
 * What a write brings: bytes, or a range of another file, which the system
 * copies by itself.
 *
 * @module
 */
import { type IoVector, sliceVector, vectorLength } from "./bytes.ts";
import type { BlockNode } from "./node.ts";

/** A range of a protocol's node. */
export interface FileRange {
  readonly source: BlockNode;
  /** Bytes. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
}

/** What is written. */
export type Payload = IoVector | FileRange;

/** Whether the system is to copy it. */
export function isFileRange(payload: Payload): payload is FileRange {
  return "source" in payload;
}

/** Bytes of it. */
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
