/**
 * The power fails at every step of changes that random tests seldom make: those
 * that move many tables, or repair the image.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { Image } from "../../../core/image.ts";
import { defaultOptions } from "../../../core/options.ts";
import { isEqual } from "../../../core/runtime.ts";
import { create } from "../../../drivers/qcow2/create.ts";
import { CREATE_OPTIONS } from "../../../drivers/qcow2/option_tables.ts";
import { Incompatible } from "../../../drivers/qcow2/format.ts";
import { BlockError, openImage } from "../../../mod.ts";
import { Random } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
import { newImage, openBytes, put32 } from "./bytes.ts";
import { type Change, cutEverywhere, repair } from "./cut_changes.ts";

for (const [name, change] of Object.entries(changes())) {
  Deno.test(`${name}: the power may fail at any step`, async () => {
    await cutEverywhere(change, new Random(1));
  });
}

Deno.test("create() writes the image's size only once the image is complete", async () => {
  const log = new PowerLog(new Uint8Array());
  const options = {
    ...defaultOptions(CREATE_OPTIONS),
    size: 300 * 512,
    cluster_size: 512,
    preallocation: "metadata",
  };
  await create(options, {
    filename: log.filename,
    createNamed: () => Promise.reject(new Error("there is one file")),
    createFile: () => Promise.resolve(log),
    createPart: () => Promise.reject(new Error("There is one file")),
    openBeside: () => Promise.reject(new Error("It has no parent")),
    unlocked: () => {},
    warn: () => {},
    secret: () => Promise.resolve(undefined),
  });
  for (const { what, file } of log.reordered()) {
    const image = await openBytes(file, { purpose: "check" }).catch(() => {});
    if (!image?.size) continue;
    const { corruptions, leaks, allocatedClusters } = await image.image!
      .check!();
    assertEquals([corruptions, leaks, allocatedClusters], [0, 0, 300], what);
    await image.close();
  }
});

for (
  const [name, request] of Object.entries({
    "a write with fua": (image: Image, bytes: Uint8Array) =>
      image.write(1000, bytes, { fua: true }),
    "zeroes with fua": (image: Image) =>
      image.writeZeroes(1000, 9000, { fua: true }),
    "flush()": async (image: Image, bytes: Uint8Array) => {
      await image.write(1000, bytes);
      await image.flush();
    },
  })
) {
  Deno.test(`${name} is durable as soon as it completes`, async () => {
    const log = new PowerLog(await newImage());
    await using image = await openImage({ driver: "qcow2", file: log });
    await image.write(0, new Uint8Array(20_000).fill(1));
    await image.flush();
    await request(image, new Uint8Array(9000).fill(2));
    const left = await openBytes(log.durable);
    const found = new Uint8Array(image.size);
    await left.readv(0, [found]);
    await left.close();
    assertEquals(isEqual(found, await image.read(0, image.size)), true);
  });
}

for (const compat of ["0.10", "1.1"]) {
  Deno.test(`what emptying has given up does not come back with a power cut (${compat})`, async () => {
    const log = new PowerLog(await newImage({ compat }));
    await using image = await openImage({ driver: "qcow2", file: log });
    await image.write(0, new Uint8Array(20_000).fill(1));
    await image.flush();
    await image.node.image!.makeEmpty!();
    const left = await openBytes(log.durable);
    const found = new Uint8Array(20_000);
    await left.readv(0, [found]);
    await left.close();
    assertEquals(isEqual(found, new Uint8Array(20_000)), true);
  });
}

Deno.test("features that a change invalidates are gone before it", async () => {
  const start = await newImage();
  // An autoclear feature that nobody knows.
  start[95] |= 0x20;
  const log = new PowerLog(start);
  {
    await using image = await openImage({ driver: "qcow2", file: log });
    await image.write(0, new Uint8Array(9000).fill(1));
  }
  for (const { what, file } of log.reordered()) {
    const claimsIt = (file[95] & 0x20) !== 0;
    assert(!claimsIt || isEqual(file, start), what);
  }
});

Deno.test("the mark of a corrupt image is durable at once", async () => {
  const bytes = await newImage();
  // An L2 table that is not aligned to a cluster.
  put32(bytes, l1Of(bytes), 0x80000000, 0x5200);
  const log = new PowerLog(bytes);
  await using image = await openImage({ driver: "qcow2", file: log }, {
    report: () => {},
  });
  await assertRejects(() => image.write(0, new Uint8Array(512)), BlockError);
  const { specific } = await infoOf(log.durable);
  assertEquals(specific!.data.corrupt, true);
});

async function infoOf(bytes: Uint8Array) {
  const node = await openBytes(bytes, { purpose: "info", readOnly: true });
  const info = await node.info!();
  await node.close();
  return info;
}

function changes(): { [name: string]: Change } {
  return {
    "shrinking drops refcount blocks that others count": {
      create: { size: 400 * 512, cluster_size: 512, refcount_bits: 16 },
      async prepare(image, random) {
        await writeShuffled(image, random);
        // The new blocks are adjacent, and counted by one of them.
        await image.node.image!.amend!({ refcount_bits: 64 });
      },
      change: (image) => image.resize(512),
    },
    "shrinking drops L2 tables, but no refcount block": {
      create: { size: 150 * 512, cluster_size: 512 },
      // Sequentially, so that the remaining data precedes those tables.
      prepare: (image, random) => image.write(0, random.bytes(150 * 512)),
      change: (image) => image.resize(512),
    },
    "the refcount table grows": {
      create: { size: 4500 * 512, cluster_size: 512, refcount_bits: 64 },
      prepare: (image, random) => image.write(0, random.bytes(3940 * 512)),
      change: async (image) => {
        await image.write(3940 * 512, new Uint8Array(60 * 512).fill(1));
      },
    },
    "the L1 table grows": {
      create: { size: 100 * 512, cluster_size: 512 },
      prepare: writeShuffled,
      change: (image) => image.resize(300 * 512),
    },
    "a refcount block is made": {
      create: { size: 400 * 512, cluster_size: 512 },
      prepare: (image, random) => image.write(0, random.bytes(200 * 512)),
      change: (image) => image.write(200 * 512, new Random(6).bytes(150 * 512)),
    },
    "refcounts lag behind": {
      create: { size: 100 * 512, cluster_size: 512, lazy_refcounts: true },
      // Reused clusters still have their old content.
      options: { "pass-discard-request": false },
      async prepare(image, random) {
        await image.write(0, random.bytes(50 * 512));
        await image.discard(0, 40 * 512);
      },
      change: (image) => image.write(60 * 512, new Random(8).bytes(30 * 512)),
    },
    "clusters are compressed": {
      create: { size: 100 * 512, cluster_size: 512 },
      prepare: (image, random) => image.write(0, random.bytes(50 * 512)),
      async change(image) {
        for (let at = 60 * 512; at < 90 * 512; at += 512) {
          const bytes = new Uint8Array(512).fill(at / 512);
          await image.node.writeCompressed!(at, [bytes]);
        }
      },
    },
    "compressed clusters are overwritten while refcounts lag behind": {
      create: { size: 40 * 4096, cluster_size: 4096, lazy_refcounts: true },
      async prepare(image, random) {
        for (let at = 0; at < image.size; at += 4096) {
          const bytes = new Uint8Array(4096);
          bytes.set(random.bytes(3000));
          await image.node.writeCompressed!(at, [bytes]);
        }
      },
      // What they took up is discarded: only the order within the flush keeps
      // that from being durable before the entries that point elsewhere.
      async change(image) {
        await image.write(0, new Random(9).bytes(30 * 4096));
        await image.flush();
      },
    },
    "freed clusters are used again": {
      create: { size: 100 * 512, cluster_size: 512 },
      prepare: (image, random) => image.write(0, random.bytes(50 * 512)),
      async change(image) {
        await image.discard(0, 30 * 512);
        await image.write(60 * 512, new Random(7).bytes(30 * 512));
      },
    },
    "growing hides a longer backing file": {
      create: { size: 100 * 512, cluster_size: 4096 },
      backing: new Random(1).bytes(400 * 512),
      prepare: async () => {},
      change: (image) => image.resize(399 * 512),
    },
    "growing hides the rest of the last cluster": {
      create: { size: 100 * 512, cluster_size: 4096 },
      async prepare(image, random) {
        await writeShuffled(image, random);
        await image.resize(100 * 512 - 1024);
      },
      change: (image) => image.resize(200 * 512),
    },
    "growing reserves space": {
      create: { size: 100 * 512, cluster_size: 512 },
      prepare: writeShuffled,
      change: (image) => image.resize(300 * 512, { preallocation: "metadata" }),
    },
    "overwriting clusters that nothing counts": {
      create: { size: 300 * 512, cluster_size: 512, lazy_refcounts: true },
      async prepare(image, random) {
        await image.write(0, random.bytes(297 * 512));
        // In the file, cluster 299 precedes 298.
        for (const cluster of [297, 299, 298]) {
          await image.write(cluster * 512, random.bytes(512));
        }
        await image.discard(0, 20 * 512);
      },
      damage(bytes) {
        // The second refcount block; a new one will be allocated right behind
        // 297.
        put32(bytes, refcountTableOf(bytes) + 8, 0, 0);
        const l2 = offsetAt(bytes, l1Of(bytes) + 4 * 8);
        for (const cluster of [297, 298, 299]) {
          bytes[l2 + cluster % 64 * 8] &= ~0x80;
        }
      },
      change: (image) => image.write(297 * 512, new Random(5).bytes(3 * 512)),
    },
    "emptying an image in more pieces than are remembered": {
      create: { size: 1100 * 512, cluster_size: 512, compat: "0.10" },
      backing: new Random(2).bytes(1100 * 512),
      // All refcount blocks fit: evicting one would write the L2 tables first.
      options: { "refcount-cache-size": 65536 },
      prepare: writeShuffled,
      change: (image) => image.node.image!.makeEmpty!(),
    },
    "emptying an image": {
      create: { size: 100 * 512, cluster_size: 512 },
      backing: new Random(3).bytes(300 * 512),
      async prepare(image, random) {
        // Data comes to lie where the first tables were, and will be again.
        await image.resize(300 * 512);
        await image.node.image!.amend!({ refcount_bits: 64 });
        await writeShuffled(image, random);
      },
      change: (image) => image.node.image!.makeEmpty!(),
    },
    "emptying an image with tables in front": {
      create: { size: 100 * 512, cluster_size: 512 },
      backing: new Random(3).bytes(100 * 512),
      async prepare(image, random) {
        // An L2 table comes to lie where the refcounts were.
        await image.node.image!.amend!({ refcount_bits: 64 });
        await writeShuffled(image, random);
      },
      change: (image) => image.node.image!.makeEmpty!(),
    },
    "widening refcounts": {
      create: { size: 200 * 512, cluster_size: 512 },
      prepare: writeShuffled,
      change: (image) => image.node.image!.amend!({ refcount_bits: 64 }),
    },
    "narrowing refcounts of which one block counts the others": {
      create: { size: 200 * 512, cluster_size: 512 },
      async prepare(image, random) {
        await writeShuffled(image, random);
        await image.node.image!.amend!({ refcount_bits: 64 });
      },
      change: (image) => image.node.image!.amend!({ refcount_bits: 16 }),
    },
    "narrowing refcounts of which the first block counts the others": {
      create: { size: 200 * 512, cluster_size: 512 },
      async prepare(image, random) {
        await writeShuffled(image, random);
        // Room for the new blocks among the first clusters of the file.
        const early = await firstClusters(image, 20);
        for (const offset of early) await image.discard(offset, 512);
        await image.node.image!.amend!({ refcount_bits: 64 });
      },
      change: (image) => image.node.image!.amend!({ refcount_bits: 16 }),
    },
    "amending to version 2": {
      create: { size: 200 * 512, cluster_size: 512 },
      async prepare(image, random) {
        await writeShuffled(image, random);
        await image.writeZeroes(0, 20 * 512);
        await image.node.snapshots!.create({ name: "a snapshot" });
        await image.writeZeroes(30 * 512, 40 * 512);
      },
      backing: new Random(4).bytes(200 * 512),
      change: (image) => image.node.image!.amend!({ compat: "0.10" }),
    },
    "amending to version 3": {
      create: { size: 100 * 512, cluster_size: 512, compat: "0.10" },
      prepare: writeBesideSnapshot,
      // Its entry has no extra data, which version 3 requires.
      damage: (bytes) => put32(bytes, snapshotsOf(bytes) + 36, 0),
      change: (image) => image.node.image!.amend!({ compat: "1.1" }),
    },
    ...snapshotChanges("1.1"),
    // Version 2 has no mark that asks for a repair.
    ...snapshotChanges("0.10"),
    "repairing leaks": {
      create: { size: 100 * 512, cluster_size: 512 },
      prepare: writeShuffled,
      // The last L1 entry: its L2 table and data are leaked.
      damage: (bytes) => put32(bytes, l1Of(bytes) + 8, 0, 0),
      isRepair: true,
      change: repair,
    },
    "repairing refcounts that are gone": {
      create: { size: 100 * 512, cluster_size: 512 },
      prepare: writeShuffled,
      damage: (bytes) => put32(bytes, refcountTableOf(bytes), 0, 0),
      isRepair: true,
      change: repair,
    },
    "repairing a single refcount": {
      create: { size: 100 * 512, cluster_size: 512 },
      prepare: writeShuffled,
      damage: (bytes) => setRefcount(bytes, 80, 0),
      isRepair: true,
      change: repair,
    },
    "repairing refcounts that lag behind": {
      create: { size: 100 * 512, cluster_size: 512, lazy_refcounts: true },
      prepare: writeShuffled,
      damage(bytes) {
        put32(bytes, 76, Incompatible.DIRTY);
        setRefcount(bytes, 80, 2);
        setRefcount(bytes, 130, 1);
      },
      isRepair: true,
      change: repair,
    },
    "storing bitmaps": {
      create: { size: 100 * 512, cluster_size: 512 },
      async prepare(image, random) {
        await addBitmaps(image);
        await writeShuffled(image, random);
      },
      // Each invalidation stores them, and marks them as in use again.
      async change(image) {
        await image.bitmaps.clear("a");
        await image.node.invalidate!();
        await image.bitmaps.merge("a", "b");
        await image.bitmaps.remove("b");
        await image.node.invalidate!();
        await image.bitmaps.remove("c");
        await image.node.invalidate!();
      },
    },
    "repairing bitmaps": {
      create: { size: 100 * 512, cluster_size: 512 },
      async prepare(image, random) {
        await addBitmaps(image);
        await writeShuffled(image, random);
      },
      damage(bytes) {
        // The table of the second bitmap.
        const directory = bitmapDirectoryOf(bytes);
        bytes[offsetAt(bytes, directory + 32) + 7] |= 2;
      },
      isRepair: true,
      change: repair,
    },
    "repairing a snapshot table": {
      create: { size: 100 * 512, cluster_size: 512 },
      async prepare(image, random) {
        await writeShuffled(image, random);
        await image.node.snapshots!.create({ name: "a snapshot" });
      },
      // Its extra data is truncated to nothing: what follows is taken for the
      // name.
      damage: (bytes) => put32(bytes, snapshotsOf(bytes) + 36, 0),
      isRepair: true,
      change: repair,
    },
  };
}

function snapshotChanges(compat: string): { [name: string]: Change } {
  const create = { size: 100 * 512, cluster_size: 512, compat };
  return {
    [`taking a snapshot (${compat})`]: {
      create,
      prepare: writeShuffled,
      change: (image) => image.node.snapshots!.create({ name: "a snapshot" }),
    },
    [`applying a snapshot (${compat})`]: {
      create,
      prepare: writeBesideSnapshot,
      change: (image) => image.node.snapshots!.apply("a snapshot"),
    },
    [`deleting a snapshot (${compat})`]: {
      create,
      prepare: writeBesideSnapshot,
      change: (image) => image.node.snapshots!.delete("a snapshot"),
    },
  };
}

const l1Of = (bytes: Uint8Array) => offsetAt(bytes, 40);
const refcountTableOf = (bytes: Uint8Array) => offsetAt(bytes, 48);
const snapshotsOf = (bytes: Uint8Array) => offsetAt(bytes, 64);

function offsetAt(bytes: Uint8Array, field: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return Number(view.getBigUint64(field) & 0xff_ffff_ffff_ff00n);
}

/** Change a 16-bit refcount in the first block. */
function setRefcount(bytes: Uint8Array, cluster: number, value: number): void {
  const block = offsetAt(bytes, refcountTableOf(bytes));
  new DataView(bytes.buffer).setUint16(block + 2 * cluster, value);
}

/**
 * Write to every cluster, so that no two neighbours are adjacent in the file.
 */
async function writeShuffled(image: Image, random: Random): Promise<void> {
  const { clusterSize } = await image.info();
  const clusters = Array.from(
    { length: Math.ceil(image.size / clusterSize!) },
    (_, index) => index,
  );
  for (let left = clusters.length; left > 0; left--) {
    const at = random.below(left);
    const offset = clusters[at] * clusterSize!;
    clusters[at] = clusters[left - 1];
    const length = Math.min(clusterSize!, image.size - offset);
    await image.write(offset, random.bytes(length));
  }
}

/** Write to some clusters, and to some that a snapshot shares. */
async function writeBesideSnapshot(
  image: Image,
  random: Random,
): Promise<void> {
  await image.write(0, random.bytes(image.size / 2));
  await image.node.snapshots!.create({ name: "a snapshot" });
  const start = image.size / 4;
  await image.write(start, random.bytes(image.size / 2));
}

/** Guest offsets of the clusters that come first in the file. */
async function firstClusters(image: Image, count: number): Promise<number[]> {
  const places: [hostOffset: number, offset: number][] = [];
  for await (const { hostOffset, offset, length } of image.extents()) {
    for (let at = 0; hostOffset !== undefined && at < length; at += 512) {
      places.push([hostOffset + at, offset + at]);
    }
  }
  places.sort(([a], [b]) => a - b);
  return places.slice(0, count).map(([, offset]) => offset);
}

async function addBitmaps({ bitmaps }: Image): Promise<void> {
  for (const name of ["a", "b", "c"]) {
    await bitmaps.add(name, { granularity: 512 });
  }
}

/** The offset of the bitmap directory, in an image without other extensions. */
function bitmapDirectoryOf(bytes: Uint8Array): number {
  return offsetAt(bytes, 112 + 8 + 16);
}
