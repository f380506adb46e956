/** Changing the size of an image in use. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
} from "../../../mod.ts";

const MIB = 1024 * 1024;

Deno.test("a request that waits for a shrink ends up past the end", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: 4 * MIB });
  await using image = await openImage({ driver: "qcow2", file });
  await image.write(3 * MIB, new Uint8Array(MIB).fill(1));
  const shrinking = image.resize(2 * MIB);
  const late = [
    () => image.write(3 * MIB, new Uint8Array(10)),
    () => image.read(3 * MIB, 10),
    () => image.writeZeroes(2 * MIB - 1, 2),
    () => image.discard(3 * MIB, MIB),
  ];
  for (const request of late.map((act) => assertRejects(act, BlockError))) {
    assertEquals((await request).code, "EINVAL");
  }
  await shrinking;
  await image.resize(4 * MIB);
  assertEquals(await image.read(3 * MIB, 10), new Uint8Array(10));
  const { corruptions, leaks } = await image.check();
  assertEquals([corruptions, leaks], [0, 0]);
});

Deno.test("shrinking frees refcount blocks that count nothing any more", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  const options = { size: 3 * MIB, cluster_size: 512, refcount_bits: 64 };
  await createImage("qcow2", file, options);
  await using image = await openImage({ driver: "qcow2", file });
  await image.write(0, new Uint8Array(3 * MIB).fill(1));
  await image.resize(4096);
  await image.flush();
  await using content = await openImage({ driver: "raw", file });
  const read = async (offset: number, length: number) =>
    new DataView((await content.read(offset, length)).slice().buffer);
  const header = await read(0, 72);
  const place = Number(header.getBigUint64(48));
  const table = await read(place, header.getUint32(56) * 512);
  for (let at = 0; at < table.byteLength; at += 8) {
    const block = Number(table.getBigUint64(at));
    const counts = new Uint8Array((await read(block, 512)).buffer);
    assert(block === 0 || counts.some((byte) => byte !== 0));
  }
  assertEquals(await image.read(0, 4096), new Uint8Array(4096).fill(1));
  await image.resize(3 * MIB);
  await image.write(MIB, new Uint8Array(2 * MIB).fill(2));
  assertEquals(
    await image.read(MIB, 2 * MIB),
    new Uint8Array(2 * MIB).fill(2),
  );
  const { corruptions, leaks } = await image.check();
  assertEquals([corruptions, leaks], [0, 0]);
});

Deno.test("preallocation works even where the old end lies within a cluster", async () => {
  for (const preallocation of ["metadata", "falloc", "full"] as const) {
    for (const head of [0, 1]) {
      const file = { driver: "memory", store: new MemoryStore() };
      await createImage("qcow2", file, { size: MIB - 512 });
      await using image = await openImage({ driver: "qcow2", file });
      // The last cluster is unallocated, or allocated and half empty.
      await image.write(MIB - 1024, new Uint8Array(512 * head).fill(1));
      await image.resize(MIB + 1536, { preallocation });
      const grown = file.store.size;
      await image.write(MIB - 512, new Uint8Array(2048).fill(2));
      await image.flush();
      assertEquals(file.store.size, grown);
      const expected = new Uint8Array(512).fill(head);
      assertEquals(await image.read(MIB - 1024, 512), expected);
      const { corruptions, leaks } = await image.check();
      assertEquals([corruptions, leaks], [0, 0]);
    }
  }
});

Deno.test("growing does not expose what lay past the end", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  // Refcounts of one bit leave no room for any snapshot.
  const options = { size: MIB, cluster_size: 512, refcount_bits: 1 };
  await createImage("qcow2", file, options);
  for (const preallocation of ["off", "metadata"] as const) {
    await using image = await openImage({ driver: "qcow2", file });
    const { size } = image;
    // VM state that was saved for a snapshot which was never created.
    await image.node.vmState!.save(0, [new Uint8Array(MIB).fill(1)]);
    await image.resize(size + 1536, { preallocation });
    await image.resize(size + MIB / 2, { preallocation });
    const found = await image.read(size, MIB / 2);
    assertEquals(found.every((byte) => byte === 0), true);
    await image.resize(size + 3 * MIB);
    await image.flush();
    const { corruptions, leaks } = await image.check();
    assertEquals([corruptions, leaks], [0, 0]);
  }
});
