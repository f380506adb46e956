/**
 * Table entries that no correct program writes.
 *
 * @module
 */
import { assertEquals, assertRejects } from "@std/assert";
import type { IoVector } from "../../../core/bytes.ts";
import { Image } from "../../../core/image.ts";
import type { BlockNode } from "../../../core/node.ts";
import { openProtocol } from "../../../core/open.ts";
import { BlockError, openImage } from "../../../mod.ts";
import { DelayNode, Scheduler } from "../../delay.ts";
import { Random } from "../../model.ts";
import { contentOf, newImage, openBytes, put64, storeOf } from "./bytes.ts";

/**
 * An image with given entries in its first L2 table, and that table's offset.
 */
async function writtenImage(
  options = {},
): Promise<{ bytes: Uint8Array; l1: number; l2: number }> {
  const store = storeOf(await newImage(options));
  const file = { driver: "memory", store };
  await using image = await openImage({ driver: "qcow2", file });
  await image.write(0, new Uint8Array(20_000).fill(1));
  await image.close();
  const bytes = contentOf(store);
  const view = new DataView(bytes.buffer);
  const l1 = Number(view.getBigUint64(40));
  const l2 = Number(view.getBigUint64(l1) & 0xfffffffffffffen);
  return { bytes, l1, l2 };
}

const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

/** Open the image, and collect the warnings. */
async function open(bytes: Uint8Array, readOnly = false) {
  const said: string[] = [];
  const report = (line: string) => said.push(line);
  const image = new Image(await openBytes(bytes, { readOnly, report }));
  return { image, said };
}

async function assertCorrupt(act: () => Promise<unknown>): Promise<void> {
  const error = await assertRejects(act, BlockError);
  assertEquals(error.code, "EIO");
}

for (const cached of [false, true]) {
  const how = cached ? "already in the cache" : "not read before";
  Deno.test(`an unaligned cluster, its table ${how}, is not read`, async () => {
    const { bytes, l2 } = await writtenImage();
    put64(bytes, l2 + 8, COPIED | 0x5200n);
    const { image, said } = await open(bytes, true);
    if (cached) await image.read(0, 100);
    await assertCorrupt(() => image.read(5000, 100));
    assertEquals(said, [
      "qcow2: Image is corrupt: Cluster allocation offset 0x5200 unaligned " +
      `(L2 offset: 0x${l2.toString(16)}, L2 index: 0x1); ` +
      "further non-fatal corruption events will be suppressed",
    ]);
    // The other clusters can still be read.
    assertEquals((await image.read(8192, 1))[0], 1);
  });
}

Deno.test("reading damage in a writable image marks it as corrupt, and ends its use", async () => {
  const { bytes, l2 } = await writtenImage();
  put64(bytes, l2 + 8, COPIED | 0x5200n);
  const store = storeOf(bytes);
  const file = { driver: "memory", store };
  const said: string[] = [];
  const image = await openImage({ driver: "qcow2", file }, {
    report: (line) => said.push(line),
  });
  await assertCorrupt(() => image.read(5000, 100));
  assertEquals(said, [
    "qcow2: Marking image as corrupt: Cluster allocation offset 0x5200 " +
    `unaligned (L2 offset: 0x${l2.toString(16)}, L2 index: 0x1); ` +
    "further corruption events will be suppressed",
  ]);
  const error = await assertRejects(
    () => image.write(0, new Uint8Array(1)),
    BlockError,
  );
  assertEquals(error.code, "ENOMEDIUM");
  await image.close();
  assertEquals(contentOf(store)[79], 2);
  const refused = await assertRejects(
    () => openImage({ driver: "qcow2", file }),
    BlockError,
  );
  assertEquals(refused.code, "EACCES");
});

Deno.test("an unaligned cluster can be discarded, without freeing anything", async () => {
  const { bytes, l2 } = await writtenImage();
  put64(bytes, l2 + 8, COPIED | 0x5200n);
  const { image, said } = await open(bytes);
  await image.discard(0, image.size);
  assertEquals(said, [
    "qcow2: Image is corrupt: Cannot free unaligned cluster 0x5200; " +
    "further non-fatal corruption events will be suppressed",
  ]);
  assertEquals(await image.read(4096, 1), new Uint8Array(1));
  await image.write(4096, new Uint8Array([7]));
  assertEquals((await image.read(4096, 1))[0], 7);
});

Deno.test("an unaligned L2 table is not used", async () => {
  const { bytes, l1 } = await writtenImage();
  put64(bytes, l1, COPIED | 0x5200n);
  for (const act of ["read", "write"]) {
    const { image, said } = await open(bytes);
    await assertCorrupt(() =>
      act === "read" ? image.read(0, 1) : image.write(0, new Uint8Array(1))
    );
    assertEquals(said, [
      "qcow2: Marking image as corrupt: L2 table offset 0x5200 unaligned " +
      "(L1 index: 0); further corruption events will be suppressed",
    ]);
  }
});

for (const entry of [1n, COPIED | 0x5001n]) {
  Deno.test(`version 2 has no zero clusters (${entry.toString(16)})`, async () => {
    const { bytes, l2 } = await writtenImage({ compat: "v2" });
    put64(bytes, l2, entry);
    const { image, said } = await open(bytes, true);
    await assertCorrupt(() => image.read(0, 1));
    assertEquals(said.length, 1);
    assertEquals(
      said[0].includes("Zero cluster entry found in pre-v3 image"),
      true,
    );
  });
}

Deno.test("a compressed cluster of garbage is an EIO", async () => {
  const { bytes, l2 } = await writtenImage();
  // Past the end of the file; over the header; as far away as possible.
  const places = [COMPRESSED | 0x7fffff00n, COMPRESSED, (1n << 63n) - 1n];
  for (const entry of places) {
    put64(bytes, l2, entry);
    const { image } = await open(bytes, true);
    await assertCorrupt(() => image.read(0, 4096));
    assertEquals((await image.read(8192, 1))[0], 1);
  }
});

Deno.test("data far past the end of the file reads as zeroes", async () => {
  const { bytes, l2 } = await writtenImage();
  put64(bytes, l2, COPIED | (1n << 50n));
  const { image } = await open(bytes, true);
  assertEquals(await image.read(0, 4096), new Uint8Array(4096));
});

Deno.test("shrinking does not visit each cluster of a file made huge", async () => {
  const { bytes } = await writtenImage();
  put64(bytes, 40, (1n << 40n) + 4096n);
  const { image } = await open(bytes);
  await image.write(0, new Uint8Array(1));
  const start = performance.now();
  await image.resize(512).catch(() => {});
  assertEquals(performance.now() - start < 2000, true);
});

for (const [place, code] of [[1n << 41n, "EAGAIN"], [1n << 55n, "EFBIG"]]) {
  Deno.test(`a snapshot never refers to clusters without a refcount (${code})`, async () => {
    const { bytes, l2 } = await writtenImage();
    put64(bytes, l2, COPIED | place as bigint);
    const store = storeOf(bytes);
    const file = { driver: "memory", store };
    await using image = await openImage({ driver: "qcow2", file });
    const error = await assertRejects(
      () => image.node.snapshots!.create({ name: "" }),
      BlockError,
    );
    assertEquals(error.code, code);
    await image.close();
    assertEquals(store.allocated < 2 ** 20, true, `${store.allocated} bytes`);
  });
}

Deno.test("refcount blocks and tables never overwrite the header", async () => {
  const { bytes } = await writtenImage();
  // All refcounts are gone: the first free cluster seems to be the header's.
  const table = Number(new DataView(bytes.buffer).getBigUint64(48));
  put64(bytes, table, 0);
  const head = bytes.slice(0, 104);
  const store = storeOf(bytes);
  const file = { driver: "memory", store };
  const image = await openImage({ driver: "qcow2", file });
  await assertCorrupt(() => image.write(40_000, new Uint8Array(10)));
  await image.close();
  const now = contentOf(store).slice(0, 104);
  now[79] &= ~2;
  assertEquals(now, head);
});

/** A node whose reads are overtaken by many other requests. */
class SlowReads extends DelayNode {
  readonly #scheduler: Scheduler;

  constructor(node: BlockNode, random: Random) {
    const scheduler = new Scheduler(random);
    super(node, scheduler, random);
    this.#scheduler = scheduler;
  }

  override async readv(offset: number, iov: IoVector): Promise<void> {
    for (let turn = 0; turn < 300; turn++) await this.#scheduler.pause();
    await super.readv(offset, iov);
  }
}

Deno.test("a reader sees no other cluster's data while its own moves", async () => {
  // Clusters are freed and allocated again all the time.
  const store = storeOf(await newImage({ cluster_size: 512, size: 8192 }));
  const below = await openProtocol({ driver: "memory", store });
  const image = await openImage({
    driver: "qcow2",
    file: new SlowReads(below, new Random(1)),
  });
  const filled = (index: number) => new Uint8Array(512).fill(index + 1);
  const all = Array.from({ length: 16 }, (_, index) => index);
  for (let round = 0; round < 20; round++) {
    await Promise.all(
      all.map((index) => image.write(index * 512, filled(index))),
    );
    await Promise.all(all.flatMap((index) => [
      image.read(index * 512, 512).then((found) => {
        const right = found.every((byte) => byte === 0 || byte === index + 1);
        assertEquals(right, true, `cluster ${index} held ${found[0] - 1}'s`);
      }),
      // One client reuses what the other frees.
      image.discard(index * 512, 512).then(() =>
        image.write((15 - index) * 512, filled(15 - index))
      ),
    ]));
  }
  await image.close();
});
