/** Readers that see only whole sectors can read all of an image. */
import { assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  createImage,
  type Image,
  MemoryStore,
  openImage,
} from "../../../mod.ts";
import { LoopDevice, loopTest } from "../../loop.ts";
import { TempDir } from "../../qemu.ts";

const MIB = 1024 * 1024;

/** Bytes that compress slightly, to an odd length. */
function textOf(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed;
  for (let at = 0; at < length; at++) {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    bytes[at] = 97 + (state >> 16) % 11;
  }
  return bytes;
}

/** Operations that make a file longer, each at its end. */
const CHANGES: { [name: string]: (image: Image) => Promise<unknown> } = {
  "a compressed cluster": (image) => image.writeCompressed(0, textOf(65536)),
  "some compressed clusters": async (image) => {
    for (let at = 0; at < 5; at++) {
      await image.writeCompressed(at * 65536, textOf(65536, at));
    }
  },
  "a byte in a new cluster": (image) => image.write(7, new Uint8Array([1])),
  "a byte at the end of an existing cluster": async (image) => {
    await image.write(0, new Uint8Array([1]));
    await image.write(1001, new Uint8Array([1]));
  },
  "a snapshot table": (image) => image.node.snapshots!.create({ name: "odd" }),
  "a larger L1 table": (image) => image.resize(100 * 1024 * MIB),
};

for (const [what, change] of Object.entries(CHANGES)) {
  Deno.test(`an image ends with a whole sector after ${what}`, async () => {
    const store = new MemoryStore();
    const file = { driver: "memory", store };
    await createImage("qcow2", file, { size: MIB });
    assertEquals(store.size % 512, 0);
    {
      await using image = await openImage({ driver: "qcow2", file });
      await change(image);
    }
    assertEquals(store.size % 512, 0);
  });
}

Deno.test("a file that already has an odd length is left alone", async () => {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, { size: MIB });
  store.truncate(store.size + 7);
  const { size } = store;
  {
    await using image = await openImage({ driver: "qcow2", file });
    await image.flush();
  }
  assertEquals(store.size, size);
});

for (const compression_type of ["zlib", "zstd"] as const) {
  for (const cluster_size of [512, 4096, 65536]) {
    const kind = `${compression_type}, clusters of ${cluster_size} bytes`;
    Deno.test(`a truncated compressed cluster is EIO: ${kind}`, async () => {
      const store = new MemoryStore();
      const file = { driver: "memory", store };
      const options = { size: MIB, cluster_size, compression_type };
      await createImage("qcow2", file, options);
      await using image = await openImage({ driver: "qcow2", file });
      const last = 20;
      for (
        let index = 0;
        index <= last && index * cluster_size < MIB;
        index++
      ) {
        const data = textOf(cluster_size, index);
        await image.writeCompressed(index * cluster_size, data);
      }
      await image.flush();
      const start = Math.min(last * cluster_size, MIB - cluster_size);
      const read = () => image.read(start, cluster_size);
      assertEquals(await read(), textOf(cluster_size, start / cluster_size));
      // Zeroes in place of the missing bytes may well decode, to other data.
      const whole = store.size - 512;
      for (let missing = 0; missing < Math.min(512, cluster_size / 8);) {
        store.truncate(whole - missing);
        await image.node.invalidate!();
        assertEquals((await assertRejects(read, BlockError)).code, "EIO");
        missing += 17;
      }
    });
  }
}

loopTest("a compressed image is complete when read from a device", async () => {
  await using dir = new TempDir();
  const file = dir.file("disk.qcow2");
  await createImage("qcow2", file, { size: MIB });
  const data = textOf(MIB);
  {
    await using image = await openImage(file);
    await image.writeCompressed(0, data);
    await image.node.snapshots!.create({ name: "odd" });
  }
  using device = new LoopDevice(file);
  await using image = await openImage(device.path, { readOnly: true });
  assertEquals(await image.read(0, MIB), data);
  assertEquals((await image.node.snapshots!.list())[0].name, "odd");
});
