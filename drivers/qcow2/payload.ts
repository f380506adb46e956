/**
 * What a write brings: bytes, or a range of another file, which the system
 * copies by itself.
 *
 * @module
 */
import { type IoVector, sliceVector, vectorLength } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { BlockNode, WriteFlags } from "../../core/node.ts";
import { writeData } from "./encryption.ts";
import type { Qcow2State } from "./state.ts";

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

function isFileRange(payload: Payload): payload is FileRange {
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

/**
 * Write it where it belongs, and what goes `before` and `after` it, which
 * begins at `hostOffset` and `guestOffset`.
 *
 * @throws {BlockError} ENOTSUP if the system would have to encrypt.
 */
export async function writePayload(
  state: Qcow2State,
  hostOffset: number,
  guestOffset: number,
  payload: Payload,
  flags?: WriteFlags,
  before: IoVector = [],
  after: IoVector = [],
): Promise<void> {
  if (!isFileRange(payload)) {
    const all = before.length || after.length
      ? [...before, ...payload, ...after]
      : payload;
    return await writeData(state, hostOffset, guestOffset, all, flags);
  }
  const { dataFile, encryption } = state;
  if (encryption || !dataFile.copyFrom) throw new BlockError("ENOTSUP");
  const start = hostOffset + vectorLength(before);
  const end = start + payload.length;
  const { source, offset, length } = payload;
  if (before.length) await dataFile.writev!(hostOffset, before);
  await dataFile.copyFrom(start, source, offset, length);
  if (after.length) await dataFile.writev!(end, after);
}
