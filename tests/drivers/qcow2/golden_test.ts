/**
 * Images made by QEMU read as QEMU says; and whatever is done to their bytes,
 * the worst result is a `BlockError`.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import type { Image } from "../../../core/image.ts";
import type { OptionValues } from "../../../core/options.ts";
import { BlockError, type MemoryStore, openImage } from "../../../mod.ts";
import { Random, seedsToRun } from "../../model.ts";
import { storeOf } from "./bytes.ts";
import { GOLDEN, goldenBytes, goldenData, goldenStack } from "./golden.ts";

const hex = (bytes: ArrayBuffer) =>
  Array.from(
    new Uint8Array(bytes),
    (byte) => byte.toString(16).padStart(2, "0"),
  )
    .join("");

async function sha256(image: Image): Promise<string> {
  const content = await image.read(0, image.size);
  return hex(await crypto.subtle.digest("SHA-256", new Uint8Array(content)));
}

/** How to name the key of an encrypted image. */
function keyOption(name: string): OptionValues {
  const key = { "key-secret": "key" };
  return name.endsWith(".luks") ? key : { encrypt: key };
}

for (const { name, what, size, sha256: sum, open = {} } of GOLDEN) {
  Deno.test(`golden ${name} (${what}) reads as QEMU says`, async () => {
    const stack = {
      ...await goldenStack(name, open.backing),
      ...(open.key && keyOption(name)),
    };
    const secrets = { key: open.key ?? "" };
    await using image = await openImage(stack, { readOnly: true, secrets });
    if (open.snapshot) await image.node.snapshots!.loadTemporary(open.snapshot);
    assertEquals(image.size, size);
    assertEquals(await sha256(image), sum);
    // In odd pieces as well.
    const pieces = image.readable({ offset: 1, chunkSize: 7777 });
    const bytes = await new Response(pieces as ReadableStream).bytes();
    assertEquals(bytes.length, size - 1);
    assertEquals(bytes[4999], (await image.read(5000, 1))[0]);
  });
}

/** The names of the images that need no key. */
const PLAIN = new Set(
  GOLDEN.filter(({ open }) => !open?.key).map(({ name }) => name),
);

for (const name of new Set(GOLDEN.map(({ name }) => name))) {
  if (!name.endsWith(".qcow2")) continue;
  Deno.test(`golden ${name} is sound, and stays so when written to`, async () => {
    const { key } = GOLDEN.find((image) => image.name === name)?.open ?? {};
    const stack = { ...await goldenStack(name), ...(key && keyOption(name)) };
    const secrets = { key: key ?? "" };
    // Opening for writing repairs the image that was not closed.
    await using image = await openImage(stack, { secrets });
    await image.write(3000, new Uint8Array(100_000).fill(7));
    await image.writeZeroes(50_000, 300_000);
    await image.discard(0, image.size / 2);
    await image.close();
    const how = { readOnly: true, secrets };
    await using closed = await openImage(stack, how);
    const { corruptions, leaks, checkErrors } = await closed.check();
    assertEquals([corruptions, checkErrors, leaks], [0, 0, 0]);
  });
}

/** Use an image that may be damaged in any way. */
async function exercise(
  store: MemoryStore,
  random: Random,
  data: OptionValues,
): Promise<void> {
  const file = { driver: "memory", store };
  const stack = { driver: "qcow2", file, ...data, backing: null };
  const purpose = random.pick(["io", "io", "check", "info"] as const);
  const image = await openImage(stack, {
    readOnly: random.oneIn(3),
    purpose,
    gate: "deny",
  });
  try {
    const most = Math.min(image.size, 4 * 2 ** 20);
    const acts: (() => Promise<unknown>)[] = [
      () => image.read(0, most),
      () => Array.fromAsync(image.extents(0, most)),
      () => image.check(),
      () => image.info(),
      () => image.write(random.below(most), random.bytes(Math.min(most, 700))),
      () => image.writeZeroes(0, Math.min(most, 9000), { unmap: true }),
      () => image.discard(0, Math.min(most, 70_000)),
      () => image.flush(),
      () => image.resize(512 * random.below(9000)),
      async () => {
        for (const { id } of await image.node.snapshots!.list()) {
          await image.node.snapshots!.apply(id);
        }
      },
      () => image.node.snapshots!.create({ name: "x" }),
      () => image.bitmaps.add("x", { granularity: 512 << random.below(9) }),
      async () => {
        for (const { name } of await image.bitmaps.list()) {
          await Array.fromAsync(image.bitmaps.dirty(name, 0, most));
          await image.bitmaps.merge(name, name);
          if (random.oneIn(2)) await image.bitmaps.clear(name);
          else await image.bitmaps.remove(name);
        }
      },
      () => image.check({ repair: { leaks: true, corruptions: true } }),
      () => image.read(0, Math.min(image.size, 4 * 2 ** 20)),
    ];
    for (const act of acts) {
      if (!random.oneIn(4)) await act().catch(expectBlockError);
    }
  } finally {
    await image.close().catch(expectBlockError);
  }
}

function expectBlockError(error: unknown): void {
  if (!(error instanceof BlockError)) throw error;
  // An error without a code of its own was not foreseen.
  if (error.cause && !(error.cause instanceof BlockError)) {
    assert(
      (error.cause as Error).constructor === Error ||
        !(/^(Type|Range|Reference|Syntax)Error$/.test(
          (error.cause as Error).name,
        )),
      `unforeseen: ${(error.cause as Error).stack}`,
    );
  }
}

/** Damage some bytes: anywhere, but mostly in the header and in tables. */
function damage(bytes: Uint8Array, random: Random): void {
  const tables: number[] = [];
  for (let at = 0; at < bytes.length; at += 512) {
    if (bytes.subarray(at, at + 512).some((byte) => byte !== 0)) {
      tables.push(at);
    }
  }
  for (let count = 1 + random.below(8); count > 0; count--) {
    const place = random.oneIn(3)
      ? random.below(120)
      : random.pick(tables) + random.below(random.pick([8, 64, 512]));
    bytes[place] = random.pick([
      bytes[place] ^ (1 << random.below(8)),
      random.below(256),
      0xff,
      0,
    ]);
  }
}

const FUZZ_SEEDS = 300;

Deno.test("a damaged image causes BlockErrors at worst, and soon", async () => {
  const names = [...PLAIN].filter((name) => name.endsWith(".qcow2"));
  const originals = await Promise.all(names.map(goldenBytes));
  for (const seed of seedsToRun(FUZZ_SEEDS)) {
    const random = new Random(seed);
    const which = random.below(names.length);
    const bytes = originals[which].slice();
    damage(bytes, random);
    const store = storeOf(bytes);
    const start = performance.now();
    try {
      const data = await goldenData(names[which]);
      await exercise(store, random, data).catch(expectBlockError);
    } catch (error) {
      throw new Error(`BDRV_SEED=${seed}, ${names[which]}: ${error}`, {
        cause: error,
      });
    }
    const took = performance.now() - start;
    const { allocated, size } = store;
    // Writing where a damaged entry points may have made the file terabytes
    // long, and a check visits each cluster of that.
    const most = 5000 + size / 2 ** 26;
    assert(took < most, `BDRV_SEED=${seed}, ${names[which]}: ${took} ms`);
    assert(
      allocated < bytes.length + 64 * 2 ** 20,
      `BDRV_SEED=${seed}, ${names[which]}: grew to ${allocated} bytes`,
    );
  }
});
