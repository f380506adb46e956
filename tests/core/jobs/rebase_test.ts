import { assert, assertEquals, assertRejects } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
  rebase,
  type RebaseOptions,
} from "../../../mod.ts";
import { faultyNode } from "../../fault_disk.ts";
import { Random, seedsToRun } from "../../model.ts";
import { TempDir } from "../../qemu.ts";
import {
  contentOf,
  damageOf,
  type Layer,
  makeLayer,
  recordingFile,
  scribble,
  stackOf,
} from "./chains.ts";
import { kindOf } from "../../extents.ts";

const SIZE = 600 * 512;
const NAME = { name: "new.qcow2", format: "qcow2" };

/** Rebase the top of a chain onto the top of another. */
async function rebaseTo(
  layers: readonly Layer[],
  below: readonly Layer[] | undefined,
  options?: RebaseOptions,
): Promise<void> {
  await using overlay = await openImage(stackOf(layers));
  if (!below) return await rebase(overlay.node, undefined, options);
  await using base = await openImage(stackOf(below), { readOnly: true });
  await rebase(overlay.node, { ...NAME, node: base.node }, options);
}

/** Rebase the top of a chain onto one of its own images, the `count`th. */
async function rebaseWithin(
  layers: readonly Layer[],
  count: number,
  options?: RebaseOptions,
): Promise<void> {
  await using overlay = await openImage(stackOf(layers));
  let { node } = overlay;
  for (let i = layers.length; i > count; i--) node = node.children.backing!;
  await rebase(overlay.node, { ...NAME, node }, options);
}

async function headerOf(layer: Layer) {
  await using image = await openImage(stackOf([layer]));
  const { backingFile, backingFormat } = await image.info();
  return { backingFile, backingFormat };
}

/** Bytes stored in the image itself, by kind. */
async function ownBytes(layer: Layer): Promise<{ [kind: string]: number }> {
  await using image = await openImage(stackOf([layer]));
  const bytes: { [kind: string]: number } = {};
  for (let at = 0; at < image.size;) {
    const extent = await image.node.status(at, image.size - at);
    const kind = kindOf(extent);
    bytes[kind] = (bytes[kind] ?? 0) + extent.length;
    at += extent.length;
  }
  return bytes;
}

async function makeLayers(seed: number, count: number): Promise<Layer[]> {
  const random = new Random(seed);
  const layers: Layer[] = [];
  for (let i = 0; i < count; i++) {
    const layer = await makeLayer(SIZE);
    await scribble([layer], random, 4);
    layers.push(layer);
  }
  return layers;
}

Deno.test("rebase() keeps the content with any old and new chain", async () => {
  for (const seed of seedsToRun(60)) {
    const random = new Random(seed);
    const make = async (below: Layer[]) => {
      const layer = await makeLayer(512 * (1 + random.below(600)), {
        cluster_size: random.pick([512, 4096, 65536]),
        compat: random.pick(["v2", "v3", "v3"]),
      });
      await scribble([...below, layer], random, random.below(12));
      return layer;
    };
    const old: Layer[] = [];
    while (random.oneIn(2) && old.length < 3) old.push(await make(old));
    const layers = [...old, await make(old)];
    const shared = old.slice(0, random.below(old.length + 1));
    const below = [...shared];
    while (random.oneIn(2)) below.push(await make(below));
    const before = await contentOf(layers);
    const compressed = random.oneIn(4);
    const target = below.length > 0 ? below : undefined;
    if (target && below.length === shared.length) {
      await rebaseWithin(layers, below.length, { compressed });
    } else {
      await rebaseTo(layers, target, { compressed });
    }
    const overlay = layers.at(-1)!;
    const context = `BDRV_SEED=${seed}`;
    const after = await contentOf([...below, overlay]);
    assert(isEqual(after, before), `${context}: the content`);
    assertEquals(await damageOf(overlay), 0, context);
    assertEquals(
      (await headerOf(overlay)).backingFile,
      target && NAME.name,
      context,
    );
  }
});

Deno.test("rebase() to an image of the chain copies what lies between", async () => {
  const random = new Random(1);
  const layers: Layer[] = [];
  for (let i = 0; i < 4; i++) {
    layers.push(await makeLayer(SIZE, { cluster_size: 4096 }));
    await scribble(layers, random);
  }
  const before = await contentOf(layers);
  const [lowest, , , overlay] = layers;
  await rebaseWithin(layers, 1);
  assert(isEqual(await contentOf([lowest, overlay]), before));
});

Deno.test("rebase() copies adjacent clusters together, whatever extents they are of", async () => {
  // Written alone, the first cluster would be cut off from the rest by a table
  // allocated along with it.
  const [old, base, overlay] = await Promise.all(
    ["old", "new", "overlay"].map(async (name) => {
      const file = { driver: "memory", store: new MemoryStore() };
      await createImage("qcow2", file, { size: 4 * 65536 });
      await using image = await openImage({ driver: "qcow2", file });
      if (name !== "overlay") {
        await image.write(3 * 65536, new Uint8Array(65536).fill(1));
        const at = name === "old" ? 0 : 65536;
        await image.write(at, new Uint8Array(2 * 65536).fill(2 + at / 65536));
      }
      return { driver: "qcow2", file };
    }),
  );
  await using image = await openImage({ ...overlay, backing: old });
  const writes: [offset: number, length: number][] = [];
  const node = new Proxy(image.node, {
    get(target, key) {
      const value = Reflect.get(target, key, target);
      if (key !== "writev") {
        return typeof value === "function" ? value.bind(target) : value;
      }
      return (offset: number, iov: Uint8Array[]) => {
        writes.push([offset, iov.reduce((sum, { length }) => sum + length, 0)]);
        return target.writev!(offset, iov);
      };
    },
  });
  await using below = await openImage(base, { readOnly: true });
  await rebase(node, { ...NAME, node: below.node });
  assertEquals(writes, [[0, 3 * 65536]]);
});

Deno.test("rebase() to the same backing file copies nothing", async () => {
  const [base, overlay] = await makeLayers(2, 2);
  const before = await ownBytes(overlay);
  await using image = await openImage(stackOf([base, overlay]));
  const node = image.node.children.backing!;
  await rebase(image.node, { ...NAME, node });
  await image.close();
  assertEquals(await ownBytes(overlay), before);
  assertEquals(await headerOf(overlay), {
    backingFile: "new.qcow2",
    backingFormat: "qcow2",
  });
});

Deno.test("rebase() without a backing file copies only what is not zero", async () => {
  const base = await makeLayer(1 << 30);
  const overlay = await makeLayer(1 << 30);
  {
    await using image = await openImage(stackOf([base]));
    await image.write(700 << 20, new Uint8Array(100_000).fill(7));
  }
  await rebaseTo([base, overlay], undefined);
  const { data } = await ownBytes(overlay);
  assertEquals(data, 2 * 65536);
  assertEquals(await headerOf(overlay), {
    backingFile: undefined,
    backingFormat: undefined,
  });
});

Deno.test("rebase() hides a longer backing file with zeroes", async () => {
  const [base] = await makeLayers(3, 1);
  for (const compat of ["v2", "v3"]) {
    const overlay = await makeLayer(SIZE, { compat });
    await rebaseTo([overlay], [base]);
    const content = await contentOf([base, overlay]);
    assert(isEqual(content, new Uint8Array(SIZE)), compat);
    const { data = 0 } = await ownBytes(overlay);
    assertEquals(data > 0, compat === "v2", compat);
  }
});

Deno.test("rebase() compresses what it copies if asked to", async () => {
  const [base] = await makeLayers(4, 1);
  const overlay = await makeLayer(SIZE);
  {
    await using image = await openImage(stackOf([base]));
    await image.write(0, new Uint8Array(65536 * 3).fill(9));
  }
  const before = await contentOf([base, overlay]);
  await rebaseTo([base, overlay], undefined, { compressed: true });
  const { compressed } = await ownBytes(overlay);
  assert(compressed >= 3 * 65536, `${compressed} bytes`);
  assert(isEqual(await contentOf([overlay]), before));
});

Deno.test("rebase() names the new backing file only when all data is durable", async () => {
  const [base, other] = await makeLayers(5, 2);
  const overlay = await makeLayer(SIZE);
  const events: string[] = [];
  const files = { 0: await recordingFile(overlay, "overlay", events) };
  const image = await openImage(stackOf([base, overlay], { files }));
  await using below = await openImage(stackOf([other]), { readOnly: true });
  events.length = 0;
  await rebase(image.node, { ...NAME, node: below.node });
  // The last write is that of the header.
  const header = events.lastIndexOf("overlay write");
  assertEquals(events[header - 1], "overlay flush");
  assert(events.indexOf("overlay write") < header - 1);
  await image.close();
});

Deno.test("a failed or aborted rebase() leaves the disk as it was", async () => {
  for (const kind of ["writev", "flush"] as const) {
    for (let after = 0;; after++) {
      const [base, other, overlay] = await makeLayers(6, 3);
      const before = await contentOf([base, overlay]);
      const below = await openImage({
        driver: "raw",
        file: { driver: "memory", store: overlay.store },
      });
      const fault = { after, kind, once: false, code: "ENOSPC" } as const;
      const { node } = faultyNode(below.node, fault);
      const image = await openImage(
        stackOf([base, overlay], { files: { 0: node } }),
      );
      await using target = await openImage(stackOf([other]));
      const backing = { ...NAME, node: target.node };
      const error = await rebase(image.node, backing)
        .then(() => undefined, (error) => error);
      await image.close().catch(() => {});
      if (!error) break;
      assert(error instanceof BlockError, String(error));
      const { backingFile } = await headerOf(overlay);
      const chain = backingFile ? [other, overlay] : [base, overlay];
      assert(isEqual(await contentOf(chain), before), `${kind} ${after}`);
    }
  }
  const [base, other, overlay] = await makeLayers(7, 3);
  const signal = AbortSignal.abort();
  const error = await assertRejects(
    () => rebaseTo([base, overlay], [other], { signal }),
    BlockError,
  );
  assertEquals(error.code, "ECANCELED");
  assertEquals((await headerOf(overlay)).backingFile, undefined);
});

Deno.test("rebase() refuses to put an image below itself", async () => {
  await using dir = await new TempDir();
  const [base, overlay, top] = ["base", "overlay", "top"].map((name) =>
    dir.file(name)
  );
  const backed = (backing_file: string) => ({
    size: SIZE,
    backing_file,
    backing_fmt: "qcow2",
  });
  await createImage("qcow2", base, { size: SIZE });
  await createImage("qcow2", overlay, backed(base));
  await createImage("qcow2", top, backed(overlay));
  // Otherwise locks would already refuse it.
  const file = { driver: "file", filename: overlay, locking: "off" };
  await using image = await openImage({ driver: "qcow2", file });
  await using below = await openImage(top, { readOnly: true });
  await assertRejects(
    () => rebase(image.node, { ...NAME, node: below.node }),
    BlockError,
    "infinite loop",
  );
});

Deno.test("rebase() says what it cannot do", async () => {
  const [base, overlay] = await makeLayers(8, 2);
  await using raw = await openImage({
    driver: "raw",
    file: { driver: "memory", store: overlay.store },
  });
  await assertRejects(
    () => rebase(raw.node, undefined),
    BlockError,
    "Could not change the backing file to '': Operation not supported",
  );
  await using image = await openImage(stackOf([base, overlay]));
  const node = image.node.children.backing!;
  const name = "n".repeat(1000);
  const small = await makeLayer(SIZE, { cluster_size: 512 });
  await using narrow = await openImage(stackOf([base, small]));
  await assertRejects(
    () => rebase(narrow.node, { name, format: "qcow2", node }),
    BlockError,
    `'${name}': No space left in the file header`,
  );
  await assertRejects(
    () => rebase(image.node, { name: name + name, format: "qcow2", node }),
    BlockError,
    "Invalid argument",
  );
});
