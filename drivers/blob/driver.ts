/**
 * The protocol driver `blob`: bytes held by the program, a `Blob`, a `File` or
 * a buffer. They are read in place, and never written.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import type { IoVector } from "../../core/bytes.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { asBlockError, BlockError, invalid } from "../../core/errors.ts";
import { dataExtent, heldKind } from "../../core/held.ts";
import type { BlockNode, Extent } from "../../core/node.ts";
import { parseOptions } from "../../core/options.ts";
import { valueText } from "../../core/values.ts";

/** `{driver: "blob", blob}`: a `Blob`, an `ArrayBuffer` or an array of bytes. */
export const blobDriver: BlockDriver = {
  name: "blob",
  role: "protocol",
  parseFilename() {
    throw invalid("Unknown protocol 'blob'");
  },

  // deno-lint-ignore require-await -- the interface is asynchronous
  async open(options, context) {
    const { blob } = parseOptions({}, options, ["blob"]);
    if (heldKind(blob) !== "blob") {
      throw invalid(
        `Parameter 'blob' expects a Blob or bytes, not ${valueText(blob)}`,
      );
    }
    return nodeOfBlob(blobDriver, blob, context.filename);
  },
};

/** A read-only node on what {@linkcode heldKind} takes for a blob. */
export function nodeOfBlob(
  driver: BlockDriver,
  blob: unknown,
  filename: string,
): BlockNode {
  const bytes = bytesOf(blob);
  const size = bytes ? bytes.length : (blob as Blob).size;
  const node: BlockNode = {
    driver,
    filename,
    size,
    readOnly: true,
    children: {},
    async readv(offset, iov) {
      if (bytes) fill(iov, bytes, offset);
      else await readBlob(blob as Blob, offset, iov);
    },
    // deno-lint-ignore require-await
    async status(offset, length, flags): Promise<Extent> {
      checkSignal(flags?.signal);
      return dataExtent(node, offset, length);
    },
    async close() {},
  };
  return node;
}

function bytesOf(blob: unknown): Uint8Array | undefined {
  if (ArrayBuffer.isView(blob)) {
    return new Uint8Array(blob.buffer, blob.byteOffset, blob.byteLength);
  }
  return blob instanceof Blob ? undefined : new Uint8Array(blob as ArrayBuffer);
}

async function readBlob(
  blob: Blob,
  offset: number,
  iov: IoVector,
): Promise<void> {
  let end = offset;
  for (const part of iov) end += part.length;
  let bytes: Uint8Array;
  try {
    bytes = new Uint8Array(await blob.slice(offset, end).arrayBuffer());
  } catch (error) {
    // For example, a file that has changed since the user chose it.
    const { message } = asBlockError(error);
    throw new BlockError("EIO", message, { cause: error });
  }
  fill(iov, bytes, 0);
}

/** Fill a vector from `bytes`, with zeroes past their end. */
function fill(iov: IoVector, bytes: Uint8Array, offset: number): void {
  for (const part of iov) {
    const piece = bytes.subarray(offset, offset + part.length);
    part.set(piece);
    part.fill(0, piece.length);
    offset += part.length;
  }
}
