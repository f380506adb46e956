/**
 * While an image is open, the tables in its file lag behind, and with lazy
 * refcounts even a flush does not write those: whatever reads them from the
 * file, or drops what is in memory, must have them written first.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import type { Image } from "../../../core/image.ts";
import { openImage } from "../../../mod.ts";
import { newImage, storeOf } from "./bytes.ts";

const CLUSTER = 4096;
const REPAIR = { repair: { leaks: true, corruptions: true } };

/** Operations on a disk between writes. */
const STEPS: { [name: string]: (image: Image) => Promise<unknown> } = {
  "check()": async (image) => {
    const { leaks, corruptions } = await image.check();
    assertEquals([leaks, corruptions], [0, 0]);
  },
  "check() to repair": async (image) => {
    const { leaksFixed, corruptionsFixed } = await image.check(REPAIR);
    assertEquals([leaksFixed, corruptionsFixed], [0, 0]);
  },
  "reopen()": (image) => image.node.reopen!({ "l2-cache-size": 65536 }),
  "invalidate()": (image) => image.node.invalidate!(),
  "amend()": (image) => image.node.image!.amend!({ compat: "0.10" }),
  "a snapshot": (image) => image.node.snapshots!.create({ name: "s" }),
  "applying a snapshot": async ({ node }) => {
    await node.snapshots!.create({ name: "s" });
    await node.snapshots!.apply("s");
  },
  "deleting a snapshot": async (image) => {
    const { snapshots } = image.node;
    await snapshots!.create({ name: "s" });
    await image.write(15 * CLUSTER, new Uint8Array(CLUSTER).fill(2));
    await snapshots!.delete("s");
  },
  "flush()": (image) => image.flush(),
};

for (const [name, step] of Object.entries(STEPS)) {
  Deno.test(`tables that lag behind survive ${name}`, () =>
    survive(false, step));
  Deno.test(`refcounts that lag behind survive ${name}`, () =>
    survive(true, step));
}

async function survive(
  lazy_refcounts: boolean,
  step: (image: Image) => Promise<unknown>,
): Promise<void> {
  const bytes = await newImage({ lazy_refcounts, size: 1 << 20 });
  const file = { driver: "memory", store: storeOf(bytes) };
  {
    await using image = await openImage({ driver: "qcow2", file });
    for (let i = 0; i < 20; i++) {
      await image.write(i * CLUSTER, new Uint8Array(CLUSTER).fill(1));
    }
    await image.discard(0, 4 * CLUSTER);
    // Reusing a freed cluster writes the tables; later changes lag behind.
    await image.write(45 * CLUSTER, new Uint8Array(CLUSTER).fill(1));
    await image.write(46 * CLUSTER, new Uint8Array(CLUSTER).fill(1));
    await step(image);
    for (let i = 10; i < 40; i++) {
      await image.write(i * CLUSTER, new Uint8Array(CLUSTER).fill(2));
    }
  }
  await using image = await openImage({ driver: "qcow2", file });
  const { leaks, corruptions } = await image.check();
  assertEquals([leaks, corruptions], [0, 0]);
  const read = await image.read(0, 50 * CLUSTER);
  const firsts = Array.from({ length: 50 }, (_, i) => read[i * CLUSTER]);
  const value = (i: number) =>
    i < 4 ? 0 : i < 10 || i === 45 || i === 46 ? 1 : i < 40 ? 2 : 0;
  assertEquals(firsts, Array.from({ length: 50 }, (_, i) => value(i)));
}
