/**
 * On a file that responds slowly, requests wait only for what they need, not
 * for each other.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import {
  convert,
  createImage,
  type Image,
  MemoryStore,
  openImage,
} from "../../../mod.ts";
import { openProtocol } from "../../../core/open.ts";
import { Random } from "../../model.ts";
import { Rounds } from "../../rounds.ts";

const CLUSTER = 4096;
/** Bytes of the disk mapped by one L2 table. */
const COVERAGE = CLUSTER / 8 * CLUSTER;
const TABLES = 16;

/** An image in which every other cluster is written, in random order. */
async function makeImage(): Promise<MemoryStore> {
  const store = new MemoryStore();
  await createImage("qcow2", { driver: "memory", store }, {
    size: TABLES * COVERAGE,
    cluster_size: CLUSTER,
  });
  await using image = await openImage({
    driver: "qcow2",
    file: { driver: "memory", store },
  });
  const random = new Random(1);
  for (let table = 0; table < TABLES; table++) {
    const clusters = Array.from({ length: 32 }, (_, i) => 2 * i);
    while (clusters.length > 0) {
      const [cluster] = clusters.splice(random.below(clusters.length), 1);
      const offset = table * COVERAGE + cluster * CLUSTER;
      await image.write(offset, random.bytes(CLUSTER));
    }
  }
  return store;
}

async function openSlowly(
  store: MemoryStore,
): Promise<{ rounds: Rounds; image: Image }> {
  const file = await openProtocol({ driver: "memory", store });
  const rounds = new Rounds(file);
  const stack = { driver: "qcow2", file: rounds.node };
  return { rounds, image: await openImage(stack) };
}

const store = await makeImage();

function copyOf(store: MemoryStore): MemoryStore {
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  const copy = new MemoryStore();
  copy.write(0, bytes);
  return copy;
}

Deno.test("reads under different uncached L2 tables wait together", async () => {
  const { rounds, image } = await openSlowly(store);
  const count = await rounds.of(() =>
    Promise.all(
      Array.from({ length: TABLES }, (_, i) => image.read(i * COVERAGE, 512)),
    )
  );
  // One round for the tables, and one for the data.
  assertEquals(count, 2);
  await image.close();
});

Deno.test("reads under the same L2 table read it once", async () => {
  const { rounds, image } = await openSlowly(store);
  const count = await rounds.of(() =>
    Promise.all(
      Array.from({ length: 8 }, (_, i) => image.read(2 * i * CLUSTER, 512)),
    )
  );
  assertEquals(count, 2);
  await image.close();
});

Deno.test("a read of scattered clusters waits for all of them at once", async () => {
  const { rounds, image } = await openSlowly(store);
  const length = 32 * CLUSTER;
  const found = new Uint8Array(length);
  const count = await rounds.of(() => image.read(0, found));
  assertEquals(count, 2);
  await using plain = await openImage({
    driver: "qcow2",
    file: { driver: "memory", store },
  });
  assert(isEqual(found, await plain.read(0, length)));
  await image.close();
});

Deno.test("a write to scattered clusters waits for all of them at once", async () => {
  const { rounds, image } = await openSlowly(copyOf(store));
  const bytes = new Random(2).bytes(32 * CLUSTER);
  await image.read(0, 1);
  const count = await rounds.of(() => image.write(0, bytes));
  // A refcount block; then 31 runs, in place and new, of which at most 16 are
  // in flight.
  assertEquals(count, 3);
  assert(isEqual(await image.read(0, bytes.length), bytes));
  await image.close();
});

Deno.test("a copy's requests wait together", async () => {
  const count = async (parallel: number) => {
    const { rounds, image } = await openSlowly(store);
    const copy = { driver: "memory", store: new MemoryStore() };
    await createImage("raw", copy, { size: image.size });
    await using target = await openImage({ driver: "raw", file: copy });
    const count = await rounds.of(() =>
      convert([image.node], target.node, { targetIsZero: true, parallel })
    );
    await image.close();
    return count;
  };
  const [one, eight] = [await count(1), await count(8)];
  assert(4 * eight <= one + 4 * TABLES, `${eight} rounds, ${one} one by one`);
});

Deno.test("concurrent walks through all tables make progress", async () => {
  const file = { driver: "memory", store };
  await using image = await openImage({ driver: "qcow2", file });
  const walk = async () => {
    let extents = 0;
    for await (const _ of image.extents()) extents++;
    return extents;
  };
  const alone = await walk();
  const counts = await Promise.all(Array.from({ length: 8 }, walk));
  assertEquals(counts, Array.from({ length: 8 }, () => alone));
});
