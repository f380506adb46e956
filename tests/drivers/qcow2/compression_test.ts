/** Compressed clusters, by ourselves and together with QEMU's tools. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import type { Image } from "../../../core/image.ts";
import { setPortable } from "../../platforms.ts";
import { convert, createImage, MemoryStore, openImage } from "../../../mod.ts";
import { Random } from "../../model.ts";
import { qemuTest, runOk, TempDir } from "../../qemu.ts";

const KIB = 1024;
const CLUSTER_SIZES = Array.from({ length: 13 }, (_, i) => 512 << i);
const TYPES = ["zlib", "zstd"] as const;

/**
 * Clusters of every kind, in an arbitrary order; the last one is incomplete.
 */
function sampleDisk(clusterSize: number): Uint8Array<ArrayBuffer> {
  const random = new Random(clusterSize);
  const count = Math.max(11, Math.min(150, 2 ** 18 / clusterSize));
  const size = count * clusterSize - (clusterSize > 512 ? 512 : 0);
  const disk = new Uint8Array(size);
  for (let at = 0, i = 0; at < size; at += clusterSize, i++) {
    const length = Math.min(clusterSize, size - at);
    const half = length >> 1;
    if (i % 4 === 0) disk.set(random.dullBytes(length), at);
    else if (i % 4 === 1) disk.set(random.bytes(length), at);
    else if (i % 4 === 2) disk.set(random.bytes(half), at + half);
  }
  return disk;
}

async function memoryImage(
  size: number,
  options: Record<string, unknown> = {},
): Promise<{ store: MemoryStore; image: Image }> {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, { size, ...options });
  return { store, image: await openImage({ driver: "qcow2", file }) };
}

function contentOf(store: MemoryStore): Uint8Array {
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  return bytes;
}

async function errorCode(act: () => Promise<unknown>): Promise<string> {
  return (await assertRejects(act, BlockError)).code;
}

async function assertClean(image: Image): Promise<void> {
  const lines: string[] = [];
  const { corruptions, leaks } = await image.check({
    report: (line) => lines.push(line),
  });
  assertEquals(corruptions + leaks, 0, lines.join("\n"));
}

for (const type of TYPES) {
  qemuTest(
    `QEMU reads what we compress with ${type}, at any cluster size`,
    async () => {
      await using folder = new TempDir();
      for (const clusterSize of CLUSTER_SIZES) {
        const disk = sampleDisk(clusterSize);
        const name = folder.file("a.qcow2");
        await createImage("qcow2", name, {
          size: disk.length,
          cluster_size: clusterSize,
          compression_type: type,
        });
        {
          await using image = await openImage(name);
          await image.writeCompressed(0, disk);
          assertEquals(await image.read(0, disk.length), disk);
        }
        Deno.writeFileSync(folder.file("a.raw"), disk);
        await runOk(["qemu-img", "check", name]);
        await runOk([
          "qemu-img",
          "compare",
          "-F",
          "raw",
          name,
          folder.file("a.raw"),
        ]);
        Deno.removeSync(name);
      }
    },
  );

  qemuTest(
    `we read what QEMU compresses with ${type}, at any cluster size`,
    async () => {
      await using folder = new TempDir();
      for (const clusterSize of CLUSTER_SIZES) {
        const disk = sampleDisk(clusterSize);
        Deno.writeFileSync(folder.file("a.raw"), disk);
        const name = folder.file("a.qcow2");
        const options = `cluster_size=${clusterSize},compression_type=${type}`;
        await runOk([
          ...["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2"],
          ...["-o", options, folder.file("a.raw"), name],
        ]);
        await using image = await openImage(name);
        assertEquals(await image.read(0, disk.length), disk);
        // In pieces that straddle clusters.
        const piece = Math.max(700, clusterSize + 1);
        for (let at = 0; at < disk.length; at += piece) {
          const length = Math.min(piece, disk.length - at);
          const expected = disk.subarray(at, at + length);
          assertEquals(await image.read(at, length), expected);
        }
        // Replace some with plain data, and discard others.
        const bytes = new Uint8Array(clusterSize).fill(0x5a);
        await image.write(0, bytes);
        await image.write(clusterSize * 4 + 100, bytes);
        await image.discard(clusterSize * 6, clusterSize * 2);
        disk.set(bytes, 0);
        disk.set(bytes, clusterSize * 4 + 100);
        disk.fill(0, clusterSize * 6, clusterSize * 8);
        assertEquals(await image.read(0, disk.length), disk);
        await image.close();
        Deno.writeFileSync(folder.file("a.raw"), disk);
        await runOk(["qemu-img", "check", name]);
        await runOk([
          "qemu-img",
          "compare",
          "-F",
          "raw",
          name,
          folder.file("a.raw"),
        ]);
      }
    },
  );
}

Deno.test("writeCompressed() packs several clusters into one of the file", async () => {
  const { store, image } = await memoryImage(4096 * KIB);
  const empty = store.size;
  const random = new Random(1);
  const disk = random.dullBytes(4096 * KIB);
  await image.writeCompressed(0, disk);
  await image.flush();
  assert(store.size - empty < 64 * 64 * KIB / 2, "nothing is shared");
  await assertClean(image);
  // All but the last of the clusters that share one are discarded, then the
  // last.
  for (let at = 0; at < disk.length; at += 64 * KIB) {
    await image.write(at, new Uint8Array(64 * KIB).fill(at >> 16));
    if (at % (1024 * KIB) === 0) await assertClean(image);
  }
  await assertClean(image);
  await image.close();
});

Deno.test("writeCompressed() replaces compressed clusters", async () => {
  const { image } = await memoryImage(640 * KIB);
  const random = new Random(2);
  for (let round = 0; round < 5; round++) {
    const disk = random.dullBytes(640 * KIB);
    await image.writeCompressed(0, disk);
    assertEquals(await image.read(0, disk.length), disk);
    await assertClean(image);
  }
  await image.close();
});

Deno.test("writeCompressed() stores in the order of its calls", async () => {
  const files = [];
  const disk = sampleDisk(64 * KIB);
  for (const atOnce of [false, true]) {
    const { store, image } = await memoryImage(disk.length);
    const pending = [];
    for (let at = 0; at < disk.length; at += 64 * KIB) {
      const data = disk.subarray(at, at + 64 * KIB);
      const written = image.writeCompressed(at, data);
      if (atOnce) pending.push(written);
      else await written;
    }
    await Promise.all(pending);
    await image.close();
    files.push(contentOf(store));
  }
  assertEquals(files[0], files[1]);
});

Deno.test("writeCompressed() takes a compression level", async () => {
  for (const compression_type of TYPES) {
    const sizes = [];
    for (const level of [1, 9]) {
      const options = { compression_type };
      const { store, image } = await memoryImage(1024 * KIB, options);
      const disk = new Random(3).dullBytes(1024 * KIB);
      await image.writeCompressed(0, disk, { level });
      await image.flush();
      assertEquals(await image.read(0, disk.length), disk);
      sizes.push((await image.check()).imageEndOffset);
      assert(store.size > 0);
      await image.close();
    }
    assert(sizes[0] >= sizes[1], `${compression_type}: ${sizes}`);
  }
});

Deno.test("writeCompressed() refuses what it cannot store", async () => {
  const { image } = await memoryImage(1000 * KIB);
  const cluster = new Uint8Array(64 * KIB);
  const refused: [number, Uint8Array, string][] = [
    [512, cluster, "EINVAL"],
    [0, cluster.subarray(512), "EINVAL"],
    [960 * KIB, cluster.subarray(0, 512), "EINVAL"],
    [960 * KIB, cluster, "EINVAL"],
  ];
  for (const [offset, bytes, code] of refused) {
    const act = () => image.writeCompressed(offset, bytes);
    assertEquals(await errorCode(act), code);
  }
  await image.write(0, cluster.fill(1));
  assertEquals(await errorCode(() => image.writeCompressed(0, cluster)), "EIO");
  await image.writeCompressed(960 * KIB, cluster.subarray(0, 40 * KIB));
  await assertClean(image);
  await image.close();
});

Deno.test("compressed clusters are read and written without native libraries", async () => {
  for (const compression_type of TYPES) {
    const disk = sampleDisk(64 * KIB);
    const options = { compression_type };
    const { image } = await memoryImage(disk.length, options);
    await image.writeCompressed(0, disk);
    setPortable(true);
    try {
      assertEquals(await image.read(0, disk.length), disk);
      const { image: other } = await memoryImage(disk.length, options);
      await other.writeCompressed(0, disk);
      assertEquals(await other.read(0, disk.length), disk);
      await other.close();
    } finally {
      setPortable(false);
    }
    assertEquals(await image.read(0, disk.length), disk);
    await image.close();
  }
});

Deno.test("convert() compresses and decompresses on all processors", async () => {
  const random = new Random(4);
  const size = 24 * 1024 * KIB + 1536;
  const disk = new Uint8Array(size);
  for (let at = 0; at < size; at += 200_000) {
    const length = Math.min(random.pick([1000, 150_000]), size - at);
    disk.set(random.dullBytes(length), at);
  }
  const store = new MemoryStore();
  store.write(0, disk);
  const raw = { driver: "raw", file: { driver: "memory", store } };
  await using source = await openImage(raw, { readOnly: true });
  for (const compression_type of TYPES) {
    for (const cluster_size of [4 * KIB, 64 * KIB, 2048 * KIB]) {
      const options = { cluster_size, compression_type };
      const { image } = await memoryImage(size, options);
      await convert([source.node], image.node, {
        compressed: true,
        targetIsZero: true,
      });
      await assertClean(image);
      const back = new MemoryStore();
      const file = { driver: "memory", store: back };
      await createImage("raw", file, { size });
      await using target = await openImage({ driver: "raw", file });
      await convert([image.node], target.node, { targetIsZero: true });
      await target.flush();
      assertEquals(contentOf(back), disk);
      await image.close();
    }
  }
});

Deno.test("invalidate() forgets decompressed clusters", async () => {
  const contents = await Promise.all([1, 2].map(async (value) => {
    const { store, image } = await memoryImage(128 * KIB);
    const cluster = new Uint8Array(64 * KIB).fill(value);
    await image.node.writeCompressed!(0, [cluster]);
    await image.close();
    return contentOf(store);
  }));
  const store = new MemoryStore();
  store.write(0, contents[0]);
  const file = { driver: "memory", store };
  const options = { readOnly: true };
  await using image = await openImage({ driver: "qcow2", file }, options);
  assertEquals((await image.read(0, 512))[0], 1);
  store.write(0, contents[1]);
  await image.node.invalidate!();
  assertEquals((await image.read(0, 512))[0], 2);
});
