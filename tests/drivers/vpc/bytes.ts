/**
 * VHD images as bytes, to be patched.
 *
 * @module
 */
import type { StackObject } from "../../../core/spec.ts";
import { createImage, MemoryStore } from "../../../mod.ts";
import { contentOf, storeOf } from "../qcow2/bytes.ts";

export const MIB = 1024 * 1024;
/** Offsets of a dynamic image's parts, and the end of a small table. */
export const PLACE = {
  footer: 0,
  header: 512,
  table: 1536,
  end: 2048,
} as const;

/** The bytes of a new image of 8 MiB. */
export async function newImage(
  options = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const store = new MemoryStore();
  await createImage("vpc", { driver: "memory", store }, {
    size: 8 * MIB,
    force_size: true,
    ...options,
  });
  return contentOf(store);
}

/** The description of an image that consists of the bytes. */
export function stackOf(bytes: Uint8Array, options = {}): StackObject {
  const file = { driver: "memory", store: storeOf(bytes) };
  return { driver: "vpc", file, ...options };
}

/** Change a footer, or the dynamic header, and correct its checksum. */
export function patch(
  bytes: Uint8Array,
  at: number,
  change: (view: DataView) => void,
): void {
  const [length, field] = at === PLACE.header ? [1024, 36] : [512, 64];
  const part = bytes.subarray(at, at + length);
  const view = new DataView(part.buffer, part.byteOffset, length);
  change(view);
  view.setUint32(field, 0);
  view.setUint32(field, ~part.reduce((sum, byte) => sum + byte, 0));
}

/** Change both footers of a dynamic image. */
export function patchFooters(
  bytes: Uint8Array,
  change: (view: DataView) => void,
): void {
  patch(bytes, PLACE.footer, change);
  patch(bytes, bytes.length - 512, change);
}

/** Set an entry of the block allocation table: a sector number. */
export function putEntry(
  bytes: Uint8Array,
  index: number,
  sector: number,
): void {
  new DataView(bytes.buffer).setUint32(PLACE.table + 4 * index, sector);
}
