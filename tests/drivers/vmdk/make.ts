/**
 * VMDK images for tests: those made by `createImage`, and handmade ones of the
 * kinds that only VMware's products make.
 *
 * @module
 */
import {
  createImage,
  MemoryStore,
  type OptionValues,
  type StackObject,
} from "../../../mod.ts";
import { contentOf, storeOf } from "../qcow2/bytes.ts";

/** The size of a sector, and of a grain in our own images, in bytes. */
export const [SECTOR, GRAIN] = [512, 65536];

/** The bytes of a new single-file image. */
export async function newImage(
  options: OptionValues = {},
): Promise<Uint8Array<ArrayBuffer>> {
  const store = new MemoryStore();
  await createImage("vmdk", { driver: "memory", store }, {
    size: 8 * 1024 * 1024,
    ...options,
  });
  return contentOf(store);
}

/** The description of an image that consists of the bytes. */
export function stackOf(bytes: Uint8Array): StackObject {
  return { driver: "vmdk", file: { driver: "memory", store: storeOf(bytes) } };
}

/** Put a little-endian 32-bit number at an offset. */
export function put(bytes: Uint8Array, at: number, value: number): void {
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(at, value, true);
}

/** As {@linkcode put}, with 64 bits. */
export function putLong(
  bytes: Uint8Array,
  at: number,
  value: bigint | number,
): void {
  new DataView(bytes.buffer, bytes.byteOffset)
    .setBigUint64(at, BigInt(value), true);
}

/** A descriptor with these extent lines. */
export function descriptor(
  lines: readonly string[],
  createType = "monolithicFlat",
  more: readonly string[] = [],
): string {
  return [
    "# Disk DescriptorFile",
    "version=1",
    'encoding="UTF-8"',
    "CID=12345678",
    "parentCID=ffffffff",
    `createType="${createType}"`,
    ...more,
    "",
    "# Extent description",
    ...lines,
    "",
    "# The Disk Data Base",
    'ddb.adapterType = "lsilogic"',
    "",
  ].join("\n");
}

/** Grains by index: 0 for zeroes, or the byte that fills them. */
export type Grains = ReadonlyMap<number, number>;

/** An ESX 3 extent, with grains of `grainSectors`. */
export function cowdExtent(
  size: number,
  grains: Grains,
  grainSectors = 1,
): Uint8Array<ArrayBuffer> {
  const grainSize = grainSectors * SECTOR;
  const tables = Math.ceil(size / grainSize / 4096);
  const first = 4 + Math.ceil(tables * 4 / SECTOR);
  const data = first + tables * 32;
  const bytes = new Uint8Array(data * SECTOR + grains.size * grainSize);
  bytes.set(new TextEncoder().encode("COWD"));
  const fields = [1, 3, size / SECTOR, grainSectors, 4, tables, 0];
  fields.forEach((value, i) => put(bytes, 4 + 4 * i, value));
  for (let i = 0; i < tables; i++) {
    put(bytes, 4 * SECTOR + 4 * i, first + 32 * i);
  }
  let at = data;
  for (const [grain, filler] of grains) {
    put(bytes, first * SECTOR + 4 * grain, at);
    bytes.fill(filler, at * SECTOR, at * SECTOR + grainSize);
    at += grainSectors;
  }
  return bytes;
}

/** An SESPARSE extent; for grains of zeroes there is only the entry. */
export function seSparseExtent(
  size: number,
  grains: Grains,
): Uint8Array<ArrayBuffer> {
  const [grainSize, covered] = [4096, 4096 * 4096];
  const tables = Math.ceil(size / covered);
  const [directory, first] = [8, 16];
  const data = first + tables * 64;
  const bytes = new Uint8Array(data * SECTOR + grains.size * grainSize);
  const fields = [
    ...[0xcafebaben, 0x200000001n, size / SECTOR, 8, 64, 0, 0, 0, 0, 0],
    // The volatile header, two areas of the journal, the directory, the tables.
    ...[1, 1, 2, 1, 3, 1, directory, 8, first, tables * 64],
    // The free bitmap, the backmap, the grains.
    ...[0, 0, 0, 0, data, grains.size * 8],
  ];
  fields.forEach((value, i) => putLong(bytes, 8 * i, value));
  putLong(bytes, SECTOR, 0xcafecafen);
  for (let i = 0; i < tables; i++) {
    putLong(bytes, directory * SECTOR + 8 * i, 0x10000000n << 32n | BigInt(i));
  }
  let number = 0;
  for (const [grain, filler] of grains) {
    const at = first * SECTOR + 8 * grain;
    if (filler === 0) {
      putLong(bytes, at, 0x2000000000000000n);
      continue;
    }
    const low = BigInt(number & 0xfff) << 48n;
    putLong(bytes, at, 0x3000000000000000n | low | BigInt(number >> 12));
    const start = data * SECTOR + number * grainSize;
    bytes.fill(filler, start, start + grainSize);
    number++;
  }
  return bytes;
}
