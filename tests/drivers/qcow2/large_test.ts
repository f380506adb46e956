/** Disks whose size in bytes is not a safe integer. @module */
import { assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
} from "../../../mod.ts";

Deno.test("a disk may be larger than 2^53 bytes", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  const size = 2 ** 55;
  await createImage("qcow2", file, { size, cluster_size: 2 ** 18 });
  await using image = await openImage({ driver: "qcow2", file });
  assertEquals(image.size, size);
  const data = new Uint8Array(1024).fill(7);
  for (const offset of [0, 2 ** 53 - 512, 2 ** 54 + 512, size - 1024]) {
    await image.write(offset, data);
  }
  for (const offset of [0, 2 ** 53 - 512, 2 ** 54 + 512, size - 1024]) {
    assertEquals(await image.read(offset, 1024), data);
  }
  assertEquals(await image.read(2 ** 54, 512), new Uint8Array(512));
  // Beyond 2^53, only offsets of whole sectors are exact.
  await assertRejects(() => image.read(2 ** 54, 1000), BlockError);
  const found = [];
  for await (const { offset, length, allocated } of image.extents()) {
    if (allocated) found.push([offset, length]);
  }
  const cluster = 2 ** 18;
  assertEquals(found, [
    [0, cluster],
    [2 ** 53 - cluster, cluster],
    [2 ** 53, cluster],
    [2 ** 54, cluster],
    [size - cluster, cluster],
  ]);
  const { corruptions, leaks } = await image.check();
  assertEquals([corruptions, leaks], [0, 0]);
});
