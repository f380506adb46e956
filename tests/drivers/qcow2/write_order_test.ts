/**
 * The power fails at every step of changes that random ones seldom make:
 * those in which many tables move, or the image is repaired.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import type { Image } from "../../../core/image.ts";
import type { OptionValues } from "../../../core/options.ts";
import { createImage, MemoryStore, openImage } from "../../../mod.ts";
import { Random } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
import { contentOf, put32, storeOf } from "./bytes.ts";
import { assertSound, isDirty } from "./soundness.ts";

/** Cuts of a change, spread evenly over its steps. */
const CUTS = 300;

/** A change, and what comes before it. */
interface Change {
  /** What the image is made with. */
  readonly create: OptionValues;
  /** What lies below it. */
  readonly backing?: Uint8Array;
  /** Done before, and durable. */
  prepare(image: Image, random: Random): Promise<void>;
  /** Damage done to the file. */
  damage?(bytes: Uint8Array): void;
  /** Whether it is opened to be repaired. */
  readonly isRepair?: boolean;
  /** What is cut off. */
  change(image: Image): Promise<unknown>;
}

const SEEDS = [1, 2];

for (const seed of SEEDS) {
  for (const [name, change] of Object.entries(changes())) {
    Deno.test(`${name}: the power may fail at any step (seed ${seed})`, async () => {
      await cutEverywhere(change, new Random(seed));
    });
  }
}

function changes(): { [name: string]: Change } {
  return {
    "shrinking drops refcount blocks that others count": {
      create: { size: 400 * 512, cluster_size: 512, refcount_bits: 16 },
      async prepare(image, random) {
        await writeShuffled(image, random);
        // The new blocks lie together, counted by one of them.
        await image.node.image!.amend!({ refcount_bits: 64 });
      },
      change: (image) => image.resize(512),
    },
    "the refcount table grows": {
      create: { size: 4500 * 512, cluster_size: 512, refcount_bits: 64 },
      prepare: (image, random) => image.write(0, random.bytes(3940 * 512)),
      change: async (image) => {
        await image.write(3940 * 512, new Uint8Array(60 * 512).fill(1));
      },
    },
    "growing hides what lies below": {
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
    "emptying an image in more pieces than are kept in mind": {
      create: { size: 1500 * 512, cluster_size: 512, compat: "0.10" },
      backing: new Random(2).bytes(1500 * 512),
      prepare: writeShuffled,
      change: (image) => image.node.image!.makeEmpty!(),
    },
    "repairing leaks": {
      create: { size: 100 * 512, cluster_size: 512 },
      prepare: writeShuffled,
      // The last L1 entry: its tables and data are leaked.
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
    "repairing a snapshot table": {
      create: { size: 100 * 512, cluster_size: 512 },
      async prepare(image, random) {
        await writeShuffled(image, random);
        await image.node.snapshots!.create({ name: "a snapshot" });
      },
      // Its extra data is cut to nothing: what follows is taken for the name.
      damage: (bytes) => put32(bytes, snapshotsOf(bytes) + 36, 0),
      isRepair: true,
      change: repair,
    },
  };
}

const l1Of = (bytes: Uint8Array) => offsetAt(bytes, 40);
const refcountTableOf = (bytes: Uint8Array) => offsetAt(bytes, 48);
const snapshotsOf = (bytes: Uint8Array) => offsetAt(bytes, 64);

function offsetAt(bytes: Uint8Array, field: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return Number(view.getBigUint64(field));
}

async function repair(image: Image): Promise<void> {
  const all = { leaks: true, corruptions: true };
  await image.check({ repair: all });
}

/** Write to every cluster, so that none lies beside its neighbour. */
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

async function cutEverywhere(change: Change, random: Random): Promise<void> {
  const start = await makeImage(change, random);
  const log = new PowerLog(start);
  const before = await contentBefore(change, start);
  {
    await using image = await open(change, log, change.isRepair);
    await change.change(image);
  }
  const after = await read(change, storeOf(contentNow(log)));
  const moments = Array.from(
    { length: CUTS },
    (_, index) => Math.floor(index * (log.now + 1) / CUTS),
  );
  for (const { moment, file } of log.cuts(moments, random)) {
    try {
      const store = storeOf(file);
      if (change.isRepair) {
        // It may have to be done again, and then is done.
        await using image = await open(change, { store }, true);
        await repair(image);
        await image.close();
      }
      if (!await isDirty(store)) await assertSound(store);
      assertEither(await read(change, store), before, after);
    } catch (error) {
      throw new Error(`cut at ${moment} of ${log.now}: ${error}`, {
        cause: error,
      });
    }
  }
}

async function makeImage(
  change: Change,
  random: Random,
): Promise<Uint8Array<ArrayBuffer>> {
  const store = new MemoryStore();
  await createImage("qcow2", { driver: "memory", store }, change.create);
  {
    await using image = await open(change, { store });
    await change.prepare(image, random);
  }
  const bytes = contentOf(store);
  change.damage?.(bytes);
  return bytes;
}

/** What it reads as, damaged or not. */
async function contentBefore(
  change: Change,
  start: Uint8Array,
): Promise<Uint8Array> {
  const store = storeOf(start);
  if (change.isRepair) {
    await using image = await open(change, { store }, true);
    await repair(image);
  }
  return await read(change, store);
}

function contentNow(log: PowerLog): Uint8Array {
  return log.cut(log.now, new Random(1));
}

function open(
  { backing }: Change,
  file: PowerLog | { store: MemoryStore },
  isCheck = false,
): Promise<Image> {
  const below = backing && {
    driver: "raw",
    file: { driver: "memory", store: storeOf(backing) },
  };
  return openImage({
    driver: "qcow2",
    file: file instanceof PowerLog ? file : { driver: "memory", ...file },
    backing: below ?? null,
    "pass-discard-other": true,
  }, { ...(isCheck && { purpose: "check" as const }) });
}

async function read(change: Change, store: MemoryStore): Promise<Uint8Array> {
  await using image = await open(change, { store });
  return await image.read(0, image.size);
}

/** Each byte is what it was or what it is to be; and so is the size. */
function assertEither(
  found: Uint8Array,
  before: Uint8Array,
  after: Uint8Array,
): void {
  assertEquals([before.length, after.length].includes(found.length), true);
  for (let at = 0; at < found.length; at++) {
    // What is past the end of either is zeroes there.
    if (found[at] === (before[at] ?? 0)) continue;
    if (found[at] === (after[at] ?? 0)) continue;
    throw new Error(`byte ${at} is ${found[at]}: neither old nor new`);
  }
}
