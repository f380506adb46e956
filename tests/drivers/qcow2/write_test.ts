import { assertEquals } from "@std/assert";
import { createImage, MemoryStore, openImage } from "../../../mod.ts";

const CLUSTER = 65536;

Deno.test("one write covers both data and preallocated zeroes", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: 4 * CLUSTER });
  const stack = { driver: "qcow2", file };
  let writes = 0;
  await using image = await openImage(stack, {
    onEvent: (name) => writes += name === "write_aio" ? 1 : 0,
  });
  const expected = new Uint8Array(4 * CLUSTER).fill(42);
  await image.write(0, expected);
  // Clusters one and three read as zeroes, two and four hold data.
  for (const cluster of [0, 2]) {
    await image.writeZeroes(cluster * CLUSTER, CLUSTER);
    expected.fill(0, cluster * CLUSTER, (cluster + 1) * CLUSTER);
  }
  for (const start of [3000, CLUSTER + 3000]) {
    const data = new Uint8Array(2 * CLUSTER + 100).fill(start % 251);
    writes = 0;
    await image.write(start, data);
    expected.set(data, start);
    assertEquals(writes, 1);
    assertEquals(await image.read(0, expected.length), expected);
    const extents = await Array.fromAsync(image.extents());
    assertEquals(extents[0].length, 4 * CLUSTER);
    await image.writeZeroes(2 * CLUSTER, CLUSTER);
    expected.fill(0, 2 * CLUSTER, 3 * CLUSTER);
  }
  const { corruptions, leaks } = await image.check();
  assertEquals([corruptions, leaks], [0, 0]);
});
