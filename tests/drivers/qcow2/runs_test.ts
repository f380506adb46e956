/**
 * Long runs of entries are decoded by comparing numbers; these are the ways in
 * which a run may end.
 */
import { assertEquals } from "@std/assert";
import { chainExtents } from "../../../core/extents.ts";
import { ReferenceCounts } from "../../../drivers/qcow2/reference_counts.ts";
import { writeRefcount } from "../../../drivers/qcow2/refcount_layout.ts";
import { createImage, MemoryStore, openImage } from "../../../mod.ts";
import { contentOf, newImage, openBytes, put64, storeOf } from "./bytes.ts";

const CLUSTER = 4096;
const COPIED = 2 ** 63;
const ZERO = 1;
/** The L2 table of an image of 64 KiB: everything else precedes it. */
const L2_TABLE = 0x10000;

/** The lengths of the extents of an image with these L2 entries, in clusters. */
async function runsOf(entries: readonly bigint[]): Promise<number[]> {
  const small = await newImage();
  const bytes = new Uint8Array(L2_TABLE + CLUSTER);
  bytes.set(small);
  const l1 = Number(new DataView(bytes.buffer).getBigUint64(40));
  put64(bytes, l1, BigInt(COPIED) + BigInt(L2_TABLE));
  put64(bytes, L2_TABLE, ...entries);
  const node = await openBytes(bytes, { readOnly: true });
  const lengths = [];
  for await (const { length } of chainExtents(node)) {
    lengths.push(length / CLUSTER);
  }
  await node.close();
  return lengths;
}

const copied = (offset: number) => BigInt(COPIED) + BigInt(offset);

Deno.test("a run continues past 4 GiB", async () => {
  const start = 2 ** 33 - 2 * CLUSTER;
  const entries = [0, 1, 2, 3].map((i) => copied(start + i * CLUSTER));
  assertEquals(await runsOf(entries), [4, 12]);
});

Deno.test("a run does not continue 4 GiB earlier", async () => {
  const start = 2 ** 33 - CLUSTER;
  const entries = [start, 2 ** 32, 2 ** 32 + CLUSTER].map(copied);
  assertEquals(await runsOf(entries), [1, 2, 13]);
});

Deno.test("a run continues whatever COPIED says, but ends where zeroes begin", async () => {
  const at = (i: number) => BigInt(2 ** 20 + i * CLUSTER);
  const entries = [
    copied(2 ** 20),
    at(1),
    copied(2 ** 20 + 2 * CLUSTER),
    at(3) + BigInt(ZERO),
    at(4) + BigInt(ZERO),
    BigInt(ZERO),
    BigInt(ZERO),
  ];
  assertEquals(await runsOf(entries), [3, 2, 2, 9]);
});

Deno.test("check() counts a cluster 4 GiB earlier at its own offset", async () => {
  const bytes = new Uint8Array(L2_TABLE + CLUSTER);
  bytes.set(await newImage());
  const l1 = Number(new DataView(bytes.buffer).getBigUint64(40));
  put64(bytes, l1, copied(L2_TABLE));
  put64(bytes, L2_TABLE, ...[2 ** 33 - CLUSTER, 2 ** 32].map(copied));
  const store = storeOf(bytes);
  store.write(2 ** 33 + CLUSTER, bytes.subarray(0, 1));
  const file = { driver: "memory", store };
  const image = await openImage({ driver: "qcow2", file }, { readOnly: true });
  const found: string[] = [];
  await image.check({ report: (line) => found.push(line) });
  await image.close();
  const places = found.filter((line) => line.includes("reference=1"))
    .map((line) => Number(/cluster (\d+) /.exec(line)![1]) * CLUSTER);
  assertEquals(places, [L2_TABLE, 2 ** 32, 2 ** 33 - CLUSTER]);
});

Deno.test("tables that were read in passing can be changed and written", async () => {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, { size: 64 << 20, cluster_size: 4096 });
  const stack = {
    driver: "qcow2",
    file,
    "l2-cache-entry-size": 4096,
    "l2-cache-size": 8192,
  };
  const piece = new Uint8Array(CLUSTER);
  {
    await using image = await openImage(stack);
    for (let at = 0; at < image.size; at += 1 << 20) {
      await image.write(at, piece.fill(1));
    }
  }
  {
    await using image = await openImage(stack);
    for (let at = CLUSTER; at < image.size; at += 1 << 20) {
      // Reads the table in passing; then the other tables evict it.
      await image.node.status(at, CLUSTER);
      await image.write(at, piece.fill(2));
      await Array.fromAsync(image.extents());
    }
  }
  await using image = await openImage({
    ...stack,
    file: { driver: "memory", store: storeOf(contentOf(store)) },
  });
  for (let at = 0; at < image.size; at += 1 << 20) {
    assertEquals(await image.read(at, CLUSTER), piece.fill(1));
    assertEquals(await image.read(at + CLUSTER, CLUSTER), piece.fill(2));
  }
  const { corruptions, leaks } = await image.check();
  assertEquals([corruptions, leaks], [0, 0]);
});

Deno.test("ReferenceCounts counts runs up to a counter's maximum", () => {
  const counts = new ReferenceCounts(100_000, 300);
  assertEquals(counts.incrementRun(10, 90_000), 90_000);
  assertEquals(counts.hasShared, false);
  assertEquals(counts.incrementRun(32_000, 1000), 1000);
  assertEquals(counts.hasShared, true);
  assertEquals([31_999, 32_000, 32_999, 33_000].map((i) => counts.get(i)), [
    1,
    2,
    2,
    1,
  ]);
  counts.set(40, 255);
  assertEquals(counts.incrementRun(39, 3), 3);
  assertEquals(counts.get(40), 256);
  counts.set(50, 300);
  assertEquals(counts.incrementRun(48, 5), 2);
  assertEquals(counts.get(50), 300);
});

for (const order of [0, 1, 2, 3, 4, 5, 6]) {
  Deno.test(`ReferenceCounts finds differences from blocks of order ${order}`, () => {
    const length = 70_000;
    const first = 30_000;
    const counts = new ReferenceCounts(200_000, 2 ** (1 << order) - 1);
    const block = new DataView(new ArrayBuffer(length * 8));
    assertEquals(
      counts.nextDifferent(block, order, first, first, 90_000),
      90_000,
    );
    counts.incrementRun(first, 60_000);
    for (let i = 0; i < 60_000; i++) writeRefcount(block, order, i, 1);
    assertEquals(
      counts.nextDifferent(block, order, first, first, 95_000),
      95_000,
    );
    for (const cluster of [30_000, 32_767, 32_768, 89_999]) {
      writeRefcount(block, order, cluster - first, 0);
      assertEquals(
        counts.nextDifferent(block, order, first, first, 95_000),
        cluster,
      );
      writeRefcount(block, order, cluster - first, 1);
    }
    writeRefcount(block, order, 90_000 - first, 1);
    assertEquals(
      counts.nextDifferent(block, order, first, 40_000, 95_000),
      90_000,
    );
  });
}
