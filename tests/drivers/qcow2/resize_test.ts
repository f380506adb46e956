/** Changing the size of an image in use. @module */
import { assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
} from "../../../mod.ts";

const MIB = 1024 * 1024;

Deno.test("a request that waits for a shrink finds itself past the end", async () => {
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
    assertEquals((await request).code, "EIO");
  }
  await shrinking;
  await image.resize(4 * MIB);
  assertEquals(await image.read(3 * MIB, 10), new Uint8Array(10));
  const { corruptions, leaks } = await image.check();
  assertEquals([corruptions, leaks], [0, 0]);
});
