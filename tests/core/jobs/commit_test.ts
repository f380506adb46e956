import { assert, assertEquals, assertRejects } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import {
  BlockError,
  commit,
  CommitError,
  type CommitOptions,
  MemoryStore,
  openImage,
} from "../../../mod.ts";
import { faultyNode } from "../../fault_disk.ts";
import { Random, seedsToRun } from "../../model.ts";
import {
  contentOf,
  damageOf,
  type Layer,
  makeLayer,
  recordingFile,
  scribble,
  stackOf,
} from "./chains.ts";

const SIZE = 600 * 512;

/** A base and an overlay, both with data. */
async function makePair(seed: number, options = {}): Promise<[Layer, Layer]> {
  const random = new Random(seed);
  const base = await makeLayer(SIZE, options);
  await scribble([base], random);
  const overlay = await makeLayer(SIZE, options);
  await scribble([base, overlay], random);
  return [base, overlay];
}

async function commitPair(
  layers: readonly Layer[],
  options?: CommitOptions,
): Promise<void> {
  await using image = await openImage(stackOf(layers, { writable: [1] }));
  await commit(image.node, options);
}

Deno.test("commit() moves the content to the base, and empties the overlay", async () => {
  const layers = await makePair(1);
  const before = await contentOf(layers);
  await commitPair(layers);
  const [base, overlay] = layers;
  assert(isEqual(await contentOf([base]), before));
  assert(isEqual(await contentOf(layers), before));
  assertEquals(overlay.store.size, 4 * 65536);
  assertEquals(await damageOf(base) + await damageOf(overlay), 0);
});

Deno.test("commit() with keepOverlay leaves the overlay as it is", async () => {
  const layers = await makePair(2);
  const before = await contentOf(layers);
  const { size } = layers[1].store;
  await commitPair(layers, { keepOverlay: true });
  assert(isEqual(await contentOf([layers[0]]), before));
  assertEquals(layers[1].store.size, size);
});

Deno.test("commit() of any chain to any of its images keeps the content", async () => {
  for (const seed of seedsToRun(40)) {
    const random = new Random(seed);
    const count = 2 + random.below(3);
    const layers: Layer[] = [];
    for (let i = 0; i < count; i++) {
      const size = 512 * (1 + random.below(600));
      if (i === 0 && random.oneIn(3)) {
        // Disks of any size: the last sector may be incomplete.
        const length = size - random.pick([0, 0, 24, 511]);
        const store = new MemoryStore(length);
        store.write(0, random.bytes(Math.min(length, 30_000)));
        layers.push({ store, driver: "raw", size: length });
        continue;
      }
      layers.push(
        await makeLayer(size, {
          cluster_size: random.pick([512, 4096, 65536]),
          // Version 2 cannot grow where a longer backing file would show
          // through.
          compat: i === 0 || i === count - 1
            ? random.pick(["v2", "v3", "v3"])
            : "v3",
        }),
      );
      await scribble(layers, random, random.below(12));
    }
    const before = await contentOf(layers);
    const depth = 1 + random.below(count - 1);
    {
      await using image = await openImage(
        stackOf(layers, { writable: [depth] }),
      );
      let base = image.node;
      for (let i = 0; i < depth; i++) base = base.children.backing!;
      await commit(image.node, { base });
    }
    const committed = layers.slice(0, count - depth);
    const after = await contentOf(committed);
    assert(
      isEqual(after.subarray(0, before.length), before),
      `BDRV_SEED=${seed}: the base has the content`,
    );
    if (depth === 1) assert(isEqual(await contentOf(layers), before), "both");
    for (const layer of layers) {
      if (layer.driver === "raw") continue;
      assertEquals(await damageOf(layer), 0, `BDRV_SEED=${seed}`);
    }
  }
});

Deno.test("commit() grows a smaller base, and does not shrink a larger one", async () => {
  for (const [below, above] of [[1000, 4000], [4000, 1000]]) {
    const base = await makeLayer(below * 512);
    await scribble([base], new Random(1));
    const overlay = await makeLayer(above * 512);
    await scribble([base, overlay], new Random(2));
    const before = await contentOf([base, overlay]);
    const old = await contentOf([base]);
    await commitPair([base, overlay]);
    const after = await contentOf([base]);
    assertEquals(after.length, Math.max(above, below) * 512);
    assert(isEqual(after.subarray(0, before.length), before));
    const rest = after.subarray(before.length);
    assert(isEqual(rest, old.subarray(before.length)));
  }
});

Deno.test("commit() empties the overlay only after the base is durable", async () => {
  const layers = await makePair(3);
  const [base, overlay] = layers;
  const events: string[] = [];
  const files = {
    0: await recordingFile(overlay, "overlay", events),
    1: await recordingFile(base, "base", events),
  };
  const image = await openImage(stackOf(layers, { writable: [1], files }));
  events.length = 0;
  await commit(image.node);
  const firstOfOverlay = events.indexOf("overlay write");
  const lastOfBase = events.lastIndexOf("base write");
  const flushed = events.indexOf("base flush", lastOfBase);
  assert(lastOfBase >= 0 && lastOfBase < flushed && flushed < firstOfOverlay);
  await image.close();
});

Deno.test("commit() loses nothing if the base fails", async () => {
  for (const kind of ["writev", "flush"] as const) {
    for (let after = 0;; after++) {
      const layers = await makePair(4, { cluster_size: 4096 });
      const before = await contentOf(layers);
      const below = await openImage({
        driver: "raw",
        file: { driver: "memory", store: layers[0].store },
      });
      const { node } = faultyNode(below.node, {
        after,
        kind,
        once: false,
        code: "ENOSPC",
      });
      const image = await openImage(
        stackOf(layers, { writable: [1], files: { 1: node } }),
      );
      const error = await commit(image.node).then(() => undefined, (e) => e);
      await image.close().catch(() => {});
      assert(isEqual(await contentOf(layers), before), `${kind} ${after}`);
      if (!error) break;
      assert(error instanceof CommitError);
      assertEquals([error.stage, error.code], ["copy", "ENOSPC"]);
    }
  }
});

Deno.test("an aborted commit() ends, and can be repeated", async () => {
  const layers = await makePair(5);
  const before = await contentOf(layers);
  {
    await using image = await openImage(stackOf(layers, { writable: [1] }));
    const controller = new AbortController();
    const job = commit(image.node, {
      rateLimit: 1000,
      signal: controller.signal,
    });
    setTimeout(() => controller.abort(), 20);
    const error = await assertRejects(() => job, CommitError);
    assertEquals([error.code, error.stage], ["ECANCELED", "copy"]);
  }
  assert(isEqual(await contentOf(layers), before));
  await commitPair(layers);
  assert(isEqual(await contentOf([layers[0]]), before));
});

Deno.test("commit() respects the rate limit", async () => {
  const base = await makeLayer(1 << 20);
  const overlay = await makeLayer(1 << 20);
  {
    await using image = await openImage(stackOf([base, overlay]));
    await image.write(0, new Uint8Array(640 * 1024).fill(7));
  }
  const start = performance.now();
  await commitPair([base, overlay], { rateLimit: 1 << 20 });
  const seconds = (performance.now() - start) / 1000;
  // A tenth of a second's worth may come at once, and the last request too.
  assert(seconds > 0.4 && seconds < 5, `${seconds} s`);
});

Deno.test("commit() refuses what it cannot do", async () => {
  const layers = await makePair(6);
  const refused = async (code: string, attempt: () => Promise<void>) => {
    assertEquals((await assertRejects(attempt, BlockError)).code, code);
  };
  await using alone = await openImage(stackOf([layers[0]]));
  await refused("EINVAL", () => commit(alone.node));
  await using fixed = await openImage(stackOf(layers));
  await refused("EACCES", () => commit(fixed.node));
  await refused("EINVAL", () => commit(fixed.node, { base: alone.node }));
});
