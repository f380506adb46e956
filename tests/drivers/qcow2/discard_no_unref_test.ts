/**
 * The option `discard-no-unref`: discarded and zeroed clusters keep their
 * offsets.
 *
 * @module
 */
import { assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  createImage,
  type Image,
  MemoryStore,
  openImage,
  type OptionValues,
} from "../../../mod.ts";
import { contentOf } from "./bytes.ts";

const CLUSTER = 16384;
const SIZE = 16 * CLUSTER;

interface Disk {
  readonly store: MemoryStore;
}

async function newDisk(options: OptionValues = {}): Promise<Disk> {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  const size = { size: SIZE, cluster_size: CLUSTER };
  await createImage("qcow2", file, { ...size, ...options });
  return { store };
}

async function using<T>(
  { store }: Disk,
  use: (image: Image) => Promise<T>,
  options: OptionValues = { "discard-no-unref": true },
): Promise<T> {
  await using image = await openImage({
    driver: "qcow2",
    file: { driver: "memory", store },
    backing: null,
    ...options,
  });
  const result = await use(image);
  await image.close();
  return result;
}

/** Each cluster's host offset, and whether it reads as zeroes. */
function placesOf(image: Image) {
  return Promise.all(
    Array.from({ length: SIZE / CLUSTER }, async (_, index) => {
      const extent = await image.node.status(index * CLUSTER, CLUSTER);
      return [extent.hostOffset, extent.zero] as const;
    }),
  );
}

const filled = (byte: number) => new Uint8Array(CLUSTER).fill(byte);

for (const extended of [false, true]) {
  Deno.test(`clusters keep their offsets (extended_l2=${extended})`, async () => {
    const disk = await newDisk({ extended_l2: extended });
    await using(disk, async (image) => {
      await image.write(0, new Uint8Array(4 * CLUSTER).fill(1));
      await image.writeCompressed(8 * CLUSTER, filled(2));
    });
    await using(disk, async (image) => {
      const before = await placesOf(image);
      await image.discard(0, CLUSTER);
      await image.writeZeroes(CLUSTER, CLUSTER, { unmap: true });
      await image.writeZeroes(2 * CLUSTER, CLUSTER);
      await image.discard(8 * CLUSTER, CLUSTER);
      const after = await placesOf(image);
      for (const index of [0, 1, 2]) {
        assertEquals(after[index], [before[index][0], true]);
        assertEquals(await image.read(index * CLUSTER, CLUSTER), filled(0));
      }
      // A compressed cluster has no host cluster of its own.
      assertEquals(after[8], [undefined, true]);
      await image.write(0, filled(3));
      assertEquals((await placesOf(image))[0], before[0]);
      assertEquals(await image.read(0, CLUSTER), filled(3));
      const { leaks, corruptions } = await image.check();
      assertEquals([leaks, corruptions], [0, 0]);
      // Their data is gone from the file.
      const host = before[1][0]!;
      const bytes = contentOf(disk.store).subarray(host, host + CLUSTER);
      assertEquals(bytes, filled(0));
    });
  });
}

Deno.test("clusters shared with a snapshot keep their data", async () => {
  const disk = await newDisk();
  await using(disk, async (image) => {
    await image.write(0, new Uint8Array(4 * CLUSTER).fill(1));
    await image.node.snapshots!.create({ name: "before" });
    await image.discard(0, 2 * CLUSTER);
    await image.writeZeroes(2 * CLUSTER, CLUSTER, { unmap: true });
    await image.write(CLUSTER, filled(5));
    assertEquals(await image.read(0, CLUSTER), filled(0));
    assertEquals(await image.read(CLUSTER, CLUSTER), filled(5));
    const { leaks, corruptions } = await image.check();
    assertEquals([leaks, corruptions], [0, 0]);
    await image.node.snapshots!.apply("before");
    const whole = new Uint8Array(4 * CLUSTER).fill(1);
    assertEquals(await image.read(0, 4 * CLUSTER), whole);
  });
});

Deno.test("version 2 refuses the option", async () => {
  const disk = await newDisk({ compat: "v2" });
  const error = await assertRejects(
    () => using(disk, (image) => image.info()),
    BlockError,
    "discard-no-unref is only supported since qcow2 version 3",
  );
  assertEquals(error.code, "EINVAL");
});
