/**
 * VHDX images as bytes, to be patched. The offsets are those of images made
 * here, or by QEMU, as long as the table and the log take 1 MiB each.
 *
 * @module
 */
import type { StackObject } from "../../../core/spec.ts";
import { putChecksum } from "../../../drivers/vhdx/crc32c.ts";
import { createImage, MemoryStore } from "../../../mod.ts";
import { contentOf, storeOf } from "../qcow2/bytes.ts";

export const MIB = 1024 * 1024;
/** Offsets of the image's parts. */
export const PLACE = {
  header: 64 * 1024,
  otherHeader: 128 * 1024,
  regions: 192 * 1024,
  otherRegions: 256 * 1024,
  log: MIB,
  bat: 2 * MIB,
  metadata: 3 * MIB,
  /** Metadata items; the first are the file parameters. */
  items: 3 * MIB + 64 * 1024,
} as const;

/** The bytes of a new image of 8 MiB in blocks of 1 MiB. */
export async function newImage(
  options = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const store = new MemoryStore();
  await createImage("vhdx", { driver: "memory", store }, {
    size: 8 * MIB,
    block_size: MIB,
    ...options,
  });
  return contentOf(store);
}

/** The description of an image that consists of the bytes. */
export function stackOf(bytes: Uint8Array): StackObject {
  return { driver: "vhdx", file: { driver: "memory", store: storeOf(bytes) } };
}

/** Change a structure with a checksum: a header, or a region table. */
export function patch(
  bytes: Uint8Array,
  at: number,
  change: (view: DataView) => void,
): void {
  const length = at < PLACE.regions ? 4096 : 65536;
  const part = bytes.subarray(at, at + length);
  change(new DataView(part.buffer, part.byteOffset, length));
  putChecksum(part, 4);
}

/** Change both copies of the headers. */
export function patchHeaders(
  bytes: Uint8Array,
  change: (view: DataView) => void,
): void {
  patch(bytes, PLACE.header, change);
  patch(bytes, PLACE.otherHeader, change);
}

/** Change both copies of the region table. */
export function patchRegions(
  bytes: Uint8Array,
  change: (view: DataView) => void,
): void {
  patch(bytes, PLACE.regions, change);
  patch(bytes, PLACE.otherRegions, change);
}

/** Set an entry of the block allocation table. */
export function putEntry(
  bytes: Uint8Array,
  index: number,
  state: number,
  offset: number | bigint = 0,
): void {
  new DataView(bytes.buffer, bytes.byteOffset).setBigUint64(
    PLACE.bat + 8 * index,
    BigInt(offset) | BigInt(state),
    true,
  );
}
