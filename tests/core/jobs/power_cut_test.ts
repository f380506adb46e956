/**
 * The power fails while data moves from one image to another, each on a disk
 * of its own. Whatever either disk had written by then, the content is whole.
 *
 * `BDRV_SEED` (`7` or `1-500`) chooses seeds.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import {
  commit,
  type MemoryStore,
  openImage,
  rebase,
  type StackObject,
} from "../../../mod.ts";
import { Random, seedsToRun } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
import { contentOf, type Layer, makeLayer, scribble } from "./chains.ts";

const SEEDS = 20;
const CUTS = 40;
const SIZE = 300 * 512;

/** Disks that lose their power together. */
class Disks {
  readonly logs: PowerLog[];
  /** Where each log was, after each event of any. */
  readonly #moments: number[][] = [];

  constructor(stores: readonly MemoryStore[]) {
    const note = () => this.#moments.push(this.logs.map(({ now }) => now));
    this.logs = stores.map((store) => new PowerLog(bytesOf(store), note));
    note();
  }

  /** What some power cuts leave of all disks. */
  *cuts(random: Random): Generator<Uint8Array[]> {
    for (let i = 0; i < CUTS; i++) {
      const moments = random.pick(this.#moments);
      yield this.logs.map((log, disk) => log.cut(moments[disk], random));
    }
  }
}

function bytesOf(store: MemoryStore): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(store.size);
  store.read(0, bytes);
  return bytes;
}

/** Open images that lie upon each other, the lowest first. */
function chain(files: readonly unknown[], writable: boolean) {
  const stack = files.reduce<StackObject | null>((backing, file) => ({
    driver: "qcow2",
    file,
    backing,
    "pass-discard-other": true,
    "read-only": !writable,
  }), null);
  return openImage(stack!, { readOnly: !writable });
}

async function backingFileOf(log: PowerLog): Promise<string | undefined> {
  await using image = await chain([log], false);
  return (await image.info()).backingFile;
}

async function contentAfter(files: readonly Uint8Array[]): Promise<Uint8Array> {
  // A mark that says they must be repaired first needs one that may write.
  const logs = files.map((bytes) => new PowerLog(bytes));
  await using image = await chain(logs, true);
  return await image.read(0, image.size);
}

/** Layers with random content, the lowest first. */
async function makeLayers(count: number, random: Random): Promise<Layer[]> {
  const layers: Layer[] = [];
  while (layers.length < count) {
    const compat = random.pick(["0.10", "1.1"]);
    const cluster_size = random.pick([512, 4096]);
    layers.push(await makeLayer(SIZE, { compat, cluster_size }));
    await scribble(layers, random, 8);
  }
  return layers;
}

for (const seed of seedsToRun(SEEDS)) {
  Deno.test(`commit() survives power cuts of both images (seed ${seed})`, async () => {
    const random = new Random(seed);
    const layers = await makeLayers(2, random);
    const before = await contentOf(layers);
    const disks = new Disks(layers.map(({ store }) => store));
    {
      await using overlay = await chain(disks.logs, true);
      if (random.oneIn(2)) {
        await overlay.node.snapshots!.create({ name: "a snapshot" });
      }
      await commit(overlay.node);
    }
    for (const files of disks.cuts(random)) {
      const found = await contentAfter(files);
      assertEquals(isEqual(found, before), true, "the content has changed");
    }
  });

  Deno.test(`rebase() survives power cuts (seed ${seed})`, async () => {
    const random = new Random(seed);
    const [base, middle, top] = await makeLayers(3, random);
    const before = await contentOf([base, middle, top]);
    const disks = new Disks([top.store]);
    const read = (layer: Layer) => ({ driver: "memory", store: layer.store });
    {
      const stack = {
        driver: "qcow2",
        file: disks.logs[0],
        backing: (await chain([base, middle].map(read), false)).node,
      };
      await using overlay = await openImage(stack);
      const { node } = await chain([read(base)], false);
      await rebase(overlay.node, { name: "base", format: "qcow2", node });
      await node.close();
    }
    for (const [file] of disks.cuts(random)) {
      const log = new PowerLog(file);
      const backingFile = await backingFileOf(log);
      const below = backingFile === "base" ? [base] : [base, middle];
      await using image = await chain([...below.map(read), log], true);
      const found = await image.read(0, SIZE);
      assertEquals(isEqual(found, before), true, "the content has changed");
    }
  });
}
