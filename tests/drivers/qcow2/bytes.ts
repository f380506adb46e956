/**
 * Small qcow2 images as bytes, to be patched.
 *
 * @module
 */
import type { BlockNode } from "../../../core/node.ts";
import { openNode } from "../../../core/open.ts";
import type { OpenOptions } from "../../../core/open_options.ts";
import type { OptionValues } from "../../../core/options.ts";
import { createImage, MemoryStore } from "../../../mod.ts";

/** All bytes of a store. */
export function contentOf(store: MemoryStore): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  return bytes;
}

/** The bytes of a new image of 64 KiB with clusters of 4 KiB. */
export async function newImage(
  options: OptionValues = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const store = new MemoryStore();
  await createImage("qcow2", { driver: "memory", store }, {
    size: 65536,
    cluster_size: 4096,
    ...options,
  });
  return contentOf(store);
}

/** A store that holds the bytes. */
export function storeOf(bytes: Uint8Array): MemoryStore {
  const store = new MemoryStore();
  store.write(0, bytes);
  return store;
}

/** Open an image given as bytes. */
export function openBytes(
  bytes: Uint8Array,
  options: OpenOptions = {},
  stack: OptionValues = {},
): Promise<BlockNode> {
  const file = { driver: "memory", store: storeOf(bytes) };
  return openNode({ driver: "qcow2", file, ...stack }, options);
}

/** Put big-endian 32-bit numbers at an offset. */
export function put32(
  bytes: Uint8Array,
  offset: number,
  ...values: number[]
): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  values.forEach((value, i) => view.setUint32(offset + 4 * i, value));
}

/** Put big-endian 64-bit numbers at an offset. */
export function put64(
  bytes: Uint8Array,
  offset: number,
  ...values: (number | bigint)[]
): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  values.forEach((value, i) =>
    view.setBigUint64(offset + 8 * i, BigInt(value))
  );
}

/** A header extension. */
export function extension(type: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(8 + Math.ceil(data.length / 8) * 8);
  put32(bytes, 0, type, data.length);
  bytes.set(data, 8);
  return bytes;
}

/** Replace the header extensions, which follow the header. */
export function putExtensions(
  bytes: Uint8Array,
  ...extensions: Uint8Array[]
): void {
  const isVersion2 = bytes[7] === 2;
  let at = isVersion2 ? 72 : 112;
  for (const one of extensions) {
    bytes.set(one, at);
    at += one.length;
  }
  bytes.fill(0, at, at + 8);
}
