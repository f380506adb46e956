/**
 * Emptying an image: the result, and what a power cut or an error leaves.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { Image } from "../../../core/image.ts";
import { filterNode } from "../../../core/filter.ts";
import { isEqual } from "../../../core/runtime.ts";
import {
  BlockError,
  createImage,
  getDriver,
  MemoryStore,
  openImage,
} from "../../../mod.ts";
import { faultyNode } from "../../fault_disk.ts";
import { Random, seedsToRun } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";

const SIZE = 200_192;
const CLUSTER = 512;

interface Subject {
  store: MemoryStore;
  backing: { driver: string; file: { driver: string; store: MemoryStore } };
  /** The content of the backing file. */
  below: Uint8Array;
}

/** An overlay with clusters of many kinds. */
async function makeSubject(
  random: Random,
  options = {},
  snapshot = false,
): Promise<Subject> {
  const below = random.bytes(SIZE);
  const base = new MemoryStore(SIZE);
  base.write(0, below);
  const backing = { driver: "raw", file: { driver: "memory", store: base } };
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, {
    size: SIZE,
    cluster_size: CLUSTER,
    ...options,
  });
  await using image = await openImage({ driver: "qcow2", file, backing });
  for (let round = 0; round < 30; round++) {
    const offset = random.below(SIZE - 1);
    const length = Math.min(SIZE - offset, 1 + random.below(20_000));
    if (random.oneIn(4)) await image.writeZeroes(offset, length);
    else await image.write(offset, random.bytes(length));
    if (snapshot && round === 15) {
      await image.node.snapshots!.create({ name: "kept" });
    }
  }
  return { store, backing, below };
}

function open(file: unknown, { backing }: Subject): Promise<Image> {
  return openImage({ driver: "qcow2", file, backing });
}

/** Assert that the image shows only its backing file. */
async function assertEmpty(image: Image, { below }: Subject): Promise<void> {
  assert(isEqual(await image.read(0, SIZE), below), "shows its backing file");
}

async function assertSound(store: MemoryStore, leaksToo = true): Promise<void> {
  const file = { driver: "memory", store };
  const stack = { driver: "qcow2", file, backing: null };
  const how = { purpose: "check", readOnly: true } as const;
  await using image = await openImage(stack, how);
  const lines: string[] = [];
  const result = await image.check({ report: (line) => lines.push(line) });
  const { corruptions, checkErrors, leaks } = result;
  const found = corruptions + checkErrors + (leaksToo ? leaks : 0);
  assertEquals(found, 0, lines.join("\n"));
}

function contentOf(store: MemoryStore): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  return bytes;
}

function storeOf(bytes: Uint8Array): MemoryStore {
  const store = new MemoryStore();
  store.write(0, bytes);
  return store;
}

Deno.test("makeEmpty() leaves a file as small as a new one", async () => {
  const random = new Random(1);
  const subject = await makeSubject(random);
  const { store } = subject;
  {
    await using image = await open({ driver: "memory", store }, subject);
    await image.node.image!.makeEmpty!();
    await assertEmpty(image, subject);
    // 391 clusters need 7 L2 tables, and so one cluster of L1 table.
    assertEquals(store.size, 4 * CLUSTER);
  }
  await assertSound(store);
  {
    await using image = await open({ driver: "memory", store }, subject);
    await assertEmpty(image, subject);
    const bytes = random.bytes(50_000);
    await image.write(1000, bytes);
    assert(isEqual(await image.read(1000, 50_000), bytes));
  }
  await assertSound(store);
});

for (
  const [name, options, hasSnapshot] of [
    ["version 2", { compat: "v2" }, false],
    ["a snapshot", {}, true],
    ["version 2 and a snapshot", { compat: "v2" }, true],
  ] as const
) {
  Deno.test(`makeEmpty() with ${name} frees only the disk's clusters`, async () => {
    const subject = await makeSubject(new Random(2), options, hasSnapshot);
    const { store } = subject;
    const file = { driver: "memory", store };
    const stack = { driver: "qcow2", file, backing: subject.backing };
    const readSnapshot = async () => {
      await using image = await openImage(stack, { readOnly: true });
      await image.node.snapshots!.loadTemporary("kept");
      return await image.read(0, SIZE);
    };
    const before = hasSnapshot ? await readSnapshot() : undefined;
    {
      await using image = await open(file, subject);
      await image.node.image!.makeEmpty!();
      await assertEmpty(image, subject);
    }
    await assertSound(store);
    if (before) assert(isEqual(await readSnapshot(), before));
  });
}

Deno.test("makeEmpty() with lazy refcounts leaves a clean image", async () => {
  const subject = await makeSubject(new Random(3), { lazy_refcounts: true });
  const { store } = subject;
  {
    await using image = await open({ driver: "memory", store }, subject);
    await image.write(0, new Uint8Array(5000).fill(1));
    await image.node.image!.makeEmpty!();
    await assertEmpty(image, subject);
  }
  await assertSound(store);
});

Deno.test("a power cut while an image is emptied loses nothing", async () => {
  const kinds = [
    { options: {}, snapshot: false, repairs: true },
    { options: { compat: "v2" }, snapshot: false, repairs: false },
    { options: {}, snapshot: true, repairs: false },
  ];
  for (const seed of seedsToRun(4)) {
    for (const { options, snapshot, repairs } of kinds) {
      const random = new Random(seed);
      const subject = await makeSubject(random, options, snapshot);
      const log = new PowerLog(contentOf(subject.store));
      const image = await open(log, subject);
      const disk = await image.read(0, SIZE);
      await image.node.image!.makeEmpty!();
      const emptied = log.now;
      await image.close();
      const moments = Array.from({ length: log.now + 1 }, (_, i) => i);
      for (const { moment, file } of log.cuts(moments, random)) {
        const store = storeOf(file);
        // Without the dirty bit, nobody would repair it.
        if (!repairs) await assertSound(store, false);
        {
          await using left = await open({ driver: "memory", store }, subject);
          const found = await left.read(0, SIZE);
          if (moment >= emptied) await assertEmpty(left, subject);
          else assertEither(found, disk, subject.below, moment);
        }
        await assertSound(store, repairs && isDirty(file));
      }
    }
  }
});

function isDirty(file: Uint8Array): boolean {
  return (file[79] & 1) !== 0;
}

/** Assert that each byte is the old one, or the backing file's. */
function assertEither(
  found: Uint8Array,
  before: Uint8Array,
  after: Uint8Array,
  moment: number,
): void {
  for (let at = 0; at < found.length; at++) {
    if (found[at] === before[at] || found[at] === after[at]) continue;
    throw new Error(`cut at ${moment}: byte ${at} is neither old nor below`);
  }
}

Deno.test("an image that cannot be emptied is repaired at the next opening", async () => {
  for (let after = 0;; after++) {
    const subject = await makeSubject(new Random(5));
    const { store } = subject;
    const below = await openImage({
      driver: "raw",
      file: { driver: "memory", store },
    });
    const before = await open({ driver: "memory", store }, subject);
    const disk = await before.read(0, SIZE);
    await before.close();
    const { node } = faultyNode(below.node, {
      after,
      kind: "writev",
      once: false,
      code: "EIO",
    });
    const image = await open(node, subject);
    const failed = await image.node.image!.makeEmpty!().then(
      () => false,
      () => true,
    );
    if (failed) {
      await assertRejects(() => image.write(0, new Uint8Array(1)), BlockError);
    }
    await image.close().catch(() => {});
    await using left = await open({ driver: "memory", store }, subject);
    const found = await left.read(0, SIZE);
    assertEither(found, disk, subject.below, after);
    await left.close();
    await assertSound(store);
    if (!failed) break;
  }
});

Deno.test("an image that cannot be emptied keeps what was just written", async () => {
  const subject = await makeSubject(new Random(6));
  const { store } = subject;
  const raw = { driver: "raw", file: { driver: "memory", store } };
  const { node } = await openImage(raw);
  let isEmptying = false;
  const file = filterNode(getDriver("blkdebug"), node, {
    debug: {
      event(name) {
        if (isEmptying && name === "l1_update") throw new BlockError("EIO");
      },
    },
  });
  const bytes = new Random(7).bytes(SIZE);
  {
    await using image = await open(file, subject);
    await image.write(0, bytes);
    isEmptying = true;
    await assertRejects(() => image.node.image!.makeEmpty!(), BlockError);
  }
  await using left = await open({ driver: "memory", store }, subject);
  assert(isEqual(await left.read(0, SIZE), bytes), "it is all there");
});
