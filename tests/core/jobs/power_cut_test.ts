/**
 * The power fails while data moves between images, each on a disk of its own.
 * Whatever either disk had written by then, the content must be whole.
 *
 * `BDRV_SEED` (`7` or `1-500`) chooses the seeds.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { backingOf } from "../../../core/extents.ts";
import type { Image } from "../../../core/image.ts";
import { isEqual } from "../../../core/runtime.ts";
import {
  type BlockNode,
  commit,
  createImage,
  MemoryStore,
  openImage,
  type OptionValues,
  rebase,
  type StackObject,
} from "../../../mod.ts";
import { storeOf } from "../../drivers/qcow2/bytes.ts";
import { assertSound, isDirty } from "../../drivers/qcow2/soundness.ts";
import { Random, seedsToRun } from "../../model.ts";
import { PowerLog, PowerLogs } from "../../power_log.ts";

const SEEDS = 30;
const CUTS = 30;
/** The largest disk's size, in bytes. */
const MAX_SIZE = 451 * 512;

/** An image on a disk of its own. */
interface Layer {
  readonly driver: "raw" | "qcow2";
  readonly store: MemoryStore;
  /** The options to open it with. */
  readonly options: OptionValues;
}

/** Disks that lose power together. */
class Disks extends PowerLogs {
  constructor(layers: readonly Layer[]) {
    super(layers.map(({ store }) => bytesOf(store)));
  }

  /** The content of all disks after some power cuts. */
  *someCuts(random: Random): Generator<Uint8Array[]> {
    const moments = Array.from(
      { length: CUTS },
      () => random.below(this.now + 1),
    ).sort((a, b) => a - b);
    for (const { files } of this.cuts(moments, random)) yield files;
  }
}

function bytesOf(store: MemoryStore): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  return bytes;
}

const fileOf = ({ store }: Layer) => ({ driver: "memory", store });

/** Open a chain of images, the lowest first. */
function chain(
  layers: readonly Layer[],
  files: readonly unknown[],
  isWritable: (index: number) => boolean = () => false,
): Promise<Image> {
  const stack = layers.reduce<StackObject | null>(
    (backing, { driver, options }, index) => ({
      driver,
      file: files[index],
      ...(driver === "qcow2" && { backing, ...options }),
      "read-only": !isWritable(index),
    }),
    null,
  );
  return openImage(stack!, { readOnly: !isWritable(layers.length - 1) });
}

/** The content of a chain. Marks may say that images need a repair first. */
async function contentAfter(
  layers: readonly Layer[],
  files: readonly Uint8Array[],
): Promise<Uint8Array> {
  const logs = files.map((bytes) => new PowerLog(bytes));
  await using image = await chain(layers, logs, () => true);
  return await image.read(0, image.size);
}

async function contentOf(layers: readonly Layer[]): Promise<Uint8Array> {
  await using image = await chain(layers, layers.map(fileOf));
  return await image.read(0, image.size);
}

async function infoOf(layer: Layer, bytes: Uint8Array) {
  await using image = await chain([layer], [new PowerLog(bytes)]);
  return await image.info();
}

/** Layers with random content, the lowest first. */
async function makeLayers(count: number, random: Random): Promise<Layer[]> {
  const layers: Layer[] = [];
  while (layers.length < count) {
    const isOld = random.oneIn(3);
    // An image of version 2 cannot always grow.
    const size = isOld
      ? MAX_SIZE
      : MAX_SIZE - 512 * (random.pick([0, 150, 250]) + random.below(2));
    if (layers.length === 0 && random.oneIn(4)) {
      const store = storeOf(random.bytes(size));
      layers.push({ driver: "raw", store, options: {} });
      continue;
    }
    const store = new MemoryStore();
    await createImage("qcow2", { driver: "memory", store }, {
      size,
      compat: isOld ? "0.10" : "1.1",
      cluster_size: random.pick([512, 512, 2048, 4096]),
      ...(!isOld && {
        lazy_refcounts: random.oneIn(3),
        refcount_bits: random.pick([1, 4, 16, 64]),
        compression_type: random.pick(["zlib", "zlib", "zstd"]),
      }),
    });
    const options = {
      "pass-discard-other": random.oneIn(2),
      "pass-discard-request": random.oneIn(2),
      "pass-discard-snapshot": !random.oneIn(4),
    };
    layers.push({ driver: "qcow2", store, options });
    const top = layers.length - 1;
    await using image = await chain(
      layers,
      layers.map(fileOf),
      (index) => index === top,
    );
    await scribble(image, random);
    if (random.oneIn(2)) {
      await takeSnapshot(image, random);
      await scribble(image, random);
    }
  }
  return layers;
}

/** Write at random: data, compressed data, zeroes, or nothing at all. */
async function scribble(image: Image, random: Random): Promise<void> {
  for (let round = random.below(12); round > 0; round--) {
    const offset = random.below(image.size - 1);
    const wanted = 1 + random.below(random.pick([600, 20_000, 80_000]));
    const length = Math.min(image.size - offset, wanted);
    const kind = random.below(8);
    if (kind === 0) {
      await image.writeZeroes(offset, length, { unmap: random.oneIn(2) });
    } else if (kind === 1) await image.discard(offset, length);
    else if (kind < 5) await compress(image, offset, length, random);
    else await image.write(offset, random.bytes(length));
  }
}

/** Write the whole clusters of a range compressed, where that is possible. */
async function compress(
  image: Image,
  offset: number,
  length: number,
  random: Random,
): Promise<void> {
  const { clusterSize } = await image.info();
  const first = Math.ceil(offset / clusterSize!) * clusterSize!;
  const end = offset + length - clusterSize!;
  for (let at = first; at <= end; at += clusterSize!) {
    const bytes = new Uint8Array(clusterSize!).fill(1 + random.below(200));
    if (random.oneIn(2)) bytes.set(random.bytes(clusterSize! / 2));
    try {
      await image.node.writeCompressed!(at, [bytes]);
    } catch {
      // The clusters are allocated already, or narrow refcounts have no room.
    }
  }
}

/** With narrow refcounts, there may be no room. */
async function takeSnapshot(image: Image, random: Random): Promise<void> {
  const vmStateSize = random.oneIn(2) ? 9000 : 0;
  if (vmStateSize > 0) {
    await image.node.vmState!.save(0, [random.bytes(vmStateSize)]);
  }
  await image.node.snapshots!.create({ name: "a snapshot", vmStateSize })
    .catch(() => {});
}

/** The qcow2 images either ask for a repair, or are sound. */
async function assertAllSound(
  layers: readonly Layer[],
  files: readonly Uint8Array[],
): Promise<void> {
  for (const [index, { driver }] of layers.entries()) {
    if (driver === "raw") continue;
    const store = storeOf(files[index]);
    if (!await isDirty(store)) await assertSound(store);
  }
}

for (const seed of seedsToRun(SEEDS)) {
  Deno.test(`commit() survives power cuts of all images (seed ${seed})`, async () => {
    const random = new Random(seed);
    const layers = await makeLayers(random.pick([2, 2, 3]), random);
    const base = random.oneIn(3) ? 0 : layers.length - 2;
    const top = layers.length - 1;
    const before = await contentOf(layers);
    const disks = new Disks(layers);
    {
      await using overlay = await chain(
        layers,
        disks.logs,
        (index) => index === top || index === base,
      );
      let node: BlockNode = overlay.node;
      for (let index = top; index > base; index--) node = backingOf(node)!;
      await commit(overlay.node, {
        base: node,
        ...(random.oneIn(4) && { keepOverlay: true }),
      });
    }
    for (const files of disks.someCuts(random)) {
      const found = await contentAfter(layers, files);
      assertEquals(isEqual(found, before), true, "the content has changed");
      await assertAllSound(layers, files);
    }
  });

  Deno.test(`rebase() survives power cuts (seed ${seed})`, async () => {
    const random = new Random(seed);
    const layers = await makeLayers(random.pick([2, 3]), random);
    const below = layers.slice(0, -1);
    const top = layers[below.length];
    const [base] = layers;
    const before = await contentOf(layers);
    {
      // So that the header says which of the chains it relies on.
      await using image = await chain([top], [fileOf(top)], () => true);
      await image.node.image!.changeBacking!("old", "raw");
    }
    const disks = new Disks([top]);
    const isAlone = random.oneIn(3);
    {
      const files = [...below.map(fileOf), disks.logs[0]];
      await using overlay = await chain(
        layers,
        files,
        (index) => index === below.length,
      );
      await using image = await chain([base], [fileOf(base)]);
      const backing = { name: "new", format: base.driver, node: image.node };
      await rebase(overlay.node, isAlone ? undefined : backing);
    }
    for (const [file] of disks.someCuts(random)) {
      const { backingFile } = await infoOf(top, file);
      const left = backingFile === "old" ? below : isAlone ? [] : [base];
      const files = [...left.map(({ store }) => bytesOf(store)), file];
      const found = await contentAfter([...left, top], files);
      assertEquals(isEqual(found, before), true, "the content has changed");
      await assertAllSound([top], [file]);
    }
  });
}
