/** Images with compressed grains. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { deflateSync, inflateSync } from "node:zlib";
import { isEqual } from "../../../core/runtime.ts";
import { usePlatform } from "../../../core/platform/mod.ts";
import { webPlatform } from "../../../core/platform/web.ts";
import {
  BlockError,
  convert,
  createImage,
  MemoryStore,
  openImage,
  streamImage,
} from "../../../mod.ts";
import { Random } from "../../model.ts";
import { GRAIN, newImage, SECTOR, stackOf } from "./make.ts";

const MIB = 1024 * 1024;

/** A disk with some data, part of which does not compress. */
function someDisk(size: number): Uint8Array {
  const disk = new Uint8Array(size);
  const random = new Random(7);
  for (const offset of [100, 3 * MIB - 70_000, size - 3000]) {
    disk.set(random.bytes(2500), offset);
  }
  disk.fill(5, 40 * MIB, 40 * MIB + 200_000);
  disk.set(random.bytes(150_000), 70 * MIB);
  return disk;
}

/** Read it as a tool would that knows only markers, and cannot seek. */
function walk(bytes: Uint8Array, size: number) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const disk = new Uint8Array(size + GRAIN);
  const markers: number[] = [];
  const grains = new Map<number, number>();
  const tables: Uint8Array[] = [];
  let last = -1;
  for (let at = 128 * SECTOR;;) {
    const [value, length, type] = [0, 8, 12].map((field) =>
      view.getUint32(at + field, true)
    );
    if (length > 0) {
      assert(value > last, "grains are in the order of the disk");
      last = value;
      grains.set(value / 128, at / SECTOR);
      const data = inflateSync(bytes.subarray(at + 12, at + 12 + length));
      assertEquals(data.length, GRAIN);
      disk.set(data, value * SECTOR);
      at += Math.ceil((12 + length) / SECTOR) * SECTOR;
      continue;
    }
    markers.push(type);
    at += SECTOR;
    if (type === 0) {
      assertEquals(at, bytes.length);
      return { disk: disk.subarray(0, size), markers, grains, tables };
    }
    tables.push(bytes.subarray(at, at + value * SECTOR));
    at += value * SECTOR;
  }
}

Deno.test("a stream has the same markers, tables and footer as VMware's", async () => {
  const size = 80 * MIB + 512;
  const disk = someDisk(size);
  const source = { driver: "memory", store: new MemoryStore() };
  source.store.write(0, disk);
  await using raw = await openImage({ driver: "raw", file: source });
  const stream = streamImage("vmdk", raw.node, {
    create: { subformat: "streamOptimized", adapter_type: "lsilogic" },
  });
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const view = new DataView(bytes.buffer);
  const header = (at: number) => ({
    magic: view.getUint32(at),
    version: view.getUint32(at + 4, true),
    flags: view.getUint32(at + 8, true),
    capacity: view.getBigUint64(at + 12, true),
    grain: view.getBigUint64(at + 20, true),
    descriptor: view.getBigUint64(at + 28, true),
    entries: view.getUint32(at + 44, true),
    redundant: view.getBigUint64(at + 48, true),
    directory: view.getBigUint64(at + 56, true),
    overhead: view.getBigUint64(at + 64, true),
    compression: view.getUint16(at + 77, true),
  });
  const first = header(0);
  assertEquals(first, {
    magic: 0x4b444d56,
    version: 3,
    flags: 0x30001,
    capacity: BigInt(size / 512),
    grain: 128n,
    descriptor: 1n,
    entries: 512,
    redundant: 0n,
    directory: 2n ** 64n - 1n,
    overhead: 128n,
    compression: 1,
  });
  const { directory, ...footer } = header(bytes.length - 1024);
  assertEquals({ ...footer, directory: first.directory }, first);
  const found = walk(bytes, size);
  assertEquals(isEqual(found.disk, disk), true);
  // Three tables that map 32 MiB each, behind their grains; then the directory
  // and the footer.
  assertEquals(found.markers, [1, 1, 1, 2, 3, 0]);
  const at = Number(directory) * SECTOR;
  for (let table = 0; table < 3; table++) {
    const place = view.getUint32(at + 4 * table, true) * SECTOR;
    for (let i = 0; i < 512; i++) {
      const entry = view.getUint32(place + 4 * i, true);
      assertEquals(entry, found.grains.get(512 * table + i) ?? 0);
    }
  }
  // Only grains with content take space.
  const used = Array.from({ length: Math.ceil(size / GRAIN) }, (_, i) => i)
    .filter((i) => disk.subarray(i * GRAIN, (i + 1) * GRAIN).some(Boolean));
  assertEquals([...found.grains.keys()], used);
  await using image = await openImage(stackOf(bytes));
  assertEquals([image.size, image.readOnly], [size, true]);
  assertEquals(isEqual(await image.read(0, size), disk), true);
  assertEquals(await image.read(100, 10), disk.slice(100, 110));
  await image.check();
});

Deno.test("only streams can be streamed", async () => {
  await using raw = await openImage({
    driver: "raw",
    file: { driver: "memory", store: new MemoryStore(MIB) },
  });
  for (
    const [create, message] of [
      [{}, "Only a VMDK with subformat=streamOptimized can be a stream"],
      [
        { subformat: "streamOptimized", backing_file: "x" },
        "A VMDK in a stream has no backing file",
      ],
    ] as const
  ) {
    const stream = streamImage("vmdk", raw.node, { create });
    await assertRejects(() => new Response(stream).bytes(), Error, message);
  }
});

Deno.test("convert() to an open stream compresses", async () => {
  const size = 80 * MIB + 512;
  const disk = someDisk(size);
  const source = { driver: "memory", store: new MemoryStore() };
  source.store.write(0, disk);
  const target = { driver: "memory", store: new MemoryStore() };
  await createImage("vmdk", target, { size, subformat: "streamOptimized" });
  {
    await using raw = await openImage({ driver: "raw", file: source });
    await using image = await openImage({ driver: "vmdk", file: target });
    await convert([raw.node], image.node, { targetIsZero: true });
    for await (const extent of image.extents()) {
      assertEquals(extent.allocated, extent.compressed);
    }
  }
  assert(target.store.size < MIB);
  await using image = await openImage({ driver: "vmdk", file: target });
  assertEquals(isEqual(await image.read(0, size), disk), true);
  await image.check();
});

Deno.test("a stream takes only whole grains, each of them once", async () => {
  const bytes = await newImage({
    size: 3 * GRAIN + 512,
    subformat: "streamOptimized",
  });
  await using image = await openImage(stackOf(bytes));
  const data = new Uint8Array(GRAIN).fill(1);
  for (const [offset, length] of [[0, 512], [512, GRAIN], [0, GRAIN + 512]]) {
    const write = () => image.write(offset, new Uint8Array(length));
    assertEquals((await assertRejects(write, BlockError)).code, "EINVAL");
  }
  await image.write(0, data);
  await image.write(3 * GRAIN, data.subarray(0, 512));
  const error = await assertRejects(() => image.write(0, data), BlockError);
  assertEquals(error.code, "EIO");
  assertEquals(error.message.includes("allocated cluster"), true);
  assertEquals(await image.read(0, GRAIN), data);
  assertEquals(await image.read(3 * GRAIN, 512), data.subarray(0, 512));
  // Concurrent writes are stored in their order.
  const both = [image.write(GRAIN, data), image.write(2 * GRAIN, data)];
  await Promise.all(both);
  assertEquals(await image.read(2 * GRAIN, 5), data.subarray(0, 5));
  await image.check();
});

Deno.test("a damaged grain is an error", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("vmdk", file, { size: MIB, subformat: "streamOptimized" });
  {
    await using image = await openImage({ driver: "vmdk", file });
    await image.write(0, new Random(1).bytes(GRAIN));
  }
  const { store } = file;
  const good = new Uint8Array(store.size);
  store.read(0, good);
  const view = new DataView(good.buffer);
  const grain = view.getUint32(64, true) * SECTOR;
  for (const at of [0, 11, 12, 15, 100, 5000, 40_000, 65_000]) {
    const bytes = good.slice();
    bytes[grain + at] ^= 0x40;
    const stack = stackOf(bytes);
    await using image = await openImage(stack, { readOnly: true });
    const read = () => image.read(0, 512);
    const error = await assertRejects(
      read,
      BlockError,
      undefined,
      `byte ${at}`,
    );
    assertEquals(error.code, "EINVAL");
    assertEquals((await image.read(GRAIN, 1))[0], 0);
  }
});

Deno.test("grains without markers, and a truncated last one, are read", async () => {
  const size = GRAIN + 1024;
  const empty = await newImage({ size, subformat: "streamOptimized" });
  const random = new Random(2);
  const contents = [random.bytes(GRAIN), random.bytes(1024)];
  for (const hasMarkers of [true, false]) {
    const bytes = new Uint8Array(empty.length + 4 * GRAIN);
    bytes.set(empty);
    const view = new DataView(bytes.buffer);
    view.setUint32(8, hasMarkers ? 0x30003 : 0x10003, true);
    const directory = view.getUint32(56, true) * SECTOR;
    const table = view.getUint32(directory, true) * SECTOR;
    for (const [i, content] of contents.entries()) {
      const data = deflateSync(content);
      const at = empty.length + i * 2 * GRAIN;
      view.setUint32(table + 4 * i, at / SECTOR, true);
      view.setUint32(at, i * 128, true);
      view.setUint32(at + 8, data.length, true);
      bytes.set(data, at + (hasMarkers ? 12 : 0));
    }
    await using image = await openImage(stackOf(bytes), { readOnly: true });
    assertEquals(await image.read(0, GRAIN), contents[0]);
    assertEquals(await image.read(GRAIN + 1, 1023), contents[1].slice(1));
  }
});

Deno.test("streams are read without the system's libraries", async () => {
  const size = 80 * MIB + 512;
  const disk = someDisk(size);
  const source = { driver: "memory", store: new MemoryStore() };
  source.store.write(0, disk);
  await using raw = await openImage({ driver: "raw", file: source });
  const create = { subformat: "streamOptimized" };
  const stream = streamImage("vmdk", raw.node, { create });
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  usePlatform(webPlatform());
  try {
    await using image = await openImage(stackOf(bytes));
    const found = await image.read(69 * MIB, 2 * MIB);
    assertEquals(isEqual(found, disk.subarray(69 * MIB, 71 * MIB)), true);
    bytes[bytes.indexOf(0x78, 128 * SECTOR) + 500] ^= 1;
    await using damaged = await openImage(stackOf(bytes));
    await assertRejects(() => damaged.read(0, 512), BlockError);
  } finally {
    usePlatform();
  }
});
