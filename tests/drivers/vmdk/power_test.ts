import { assertEquals } from "@std/assert";
import { wrapNode } from "../../../core/filter.ts";
import { isEqual } from "../../../core/runtime.ts";
import { openImage } from "../../../mod.ts";
import { Random, seedsToRun } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
import { storeOf } from "../qcow2/bytes.ts";
import { GRAIN, newImage, SECTOR, stackOf } from "./make.ts";

const SIZE = 3 * 1024 * 1024;

/**
 * Require only that flushed data survives, and that a later write is complete
 * or absent.
 */
async function surviveCuts(
  seed: number,
  options: Record<string, unknown>,
  write: (
    image: Awaited<ReturnType<typeof openImage>>,
    disk: Uint8Array,
    random: Random,
  ) => Promise<void>,
): Promise<void> {
  const random = new Random(seed);
  const log = new PowerLog(await newImage({ size: SIZE, ...options }));
  // Data copied from the backing file into new grains is the first to get lost.
  const below = random.bytes(SIZE);
  const parent = { driver: "memory", store: storeOf(below) };
  const backing = options.subformat ? null : { driver: "raw", file: parent };
  const start = backing ? below : new Uint8Array(SIZE);
  const disk = start.slice();
  const flushed: { moment: number; disk: Uint8Array }[] = [];
  {
    await using image = await openImage({
      driver: "vmdk",
      file: log,
      backing,
    });
    for (let i = 0; i < 12; i++) {
      await write(image, disk, random);
      await image.flush();
      flushed.push({ moment: log.now, disk: disk.slice() });
    }
  }
  const moments = Array.from({ length: 15 }, () => random.below(log.now + 1))
    .sort((a, b) => a - b);
  for (const { moment, file } of log.cuts(moments, random)) {
    const done = flushed.filter((one) => one.moment <= moment);
    const before = done.at(-1)?.disk ?? start;
    const after = flushed[done.length]?.disk ?? disk;
    await using image = await openImage({ ...stackOf(file), backing });
    const found = await image.read(0, SIZE);
    for (let at = 0; at < SIZE; at++) {
      if (found[at] === before[at] || found[at] === after[at]) continue;
      throw new Error(`seed ${seed}, cut at ${moment}: byte ${at}`);
    }
    await image.check();
    if (options.subformat) continue;
    // The next write does not overwrite anything else.
    const fresh = random.bytes(100);
    const offset = random.below(SIZE - 100);
    await image.write(offset, fresh);
    found.set(fresh, offset);
    assertEquals(isEqual(await image.read(0, SIZE), found), true);
  }
}

for (const zeroed_grain of [false, true]) {
  Deno.test(`flushed data survives power cuts (zeroed grains: ${zeroed_grain})`, async () => {
    for (const seed of seedsToRun(6)) {
      await surviveCuts(seed, { zeroed_grain }, async (image, disk, random) => {
        if (zeroed_grain && random.oneIn(4)) {
          const first = random.below(SIZE / GRAIN) * GRAIN;
          disk.fill(0, first, first + GRAIN);
          await image.writeZeroes(first, GRAIN);
          return;
        }
        const bytes = random.bytes(1 + random.below(150_000));
        const offset = random.below(SIZE - bytes.length);
        disk.set(bytes, offset);
        await image.write(offset, bytes);
      });
    }
  });
}

Deno.test("a stream survives power cuts", async () => {
  for (const seed of seedsToRun(4)) {
    let next = 0;
    const options = { subformat: "streamOptimized" };
    await surviveCuts(seed, options, async (image, disk, random) => {
      const bytes = new Uint8Array(2 * GRAIN);
      bytes.set(random.bytes(random.below(1000)), random.below(3000));
      disk.set(bytes, next);
      await image.writeCompressed(next, bytes);
      next += 2 * GRAIN;
    });
  }
});

Deno.test("the content id changes before the data", async () => {
  for (const zeroed_grain of [false, true]) {
    const log = new PowerLog(await newImage({ zeroed_grain }));
    const places: number[] = [];
    const file = wrapNode(log, {
      writev(offset, iov) {
        places.push(Math.floor(offset / SECTOR));
        return log.writev(offset, iov);
      },
    });
    await using image = await openImage({ driver: "vmdk", file });
    if (zeroed_grain) await image.writeZeroes(0, GRAIN);
    else await image.write(0, new Uint8Array(GRAIN).fill(1));
    await image.flush();
    // It is at the start of the descriptor, which follows the header.
    assertEquals([places.indexOf(1), places.lastIndexOf(1)], [0, 0]);
    assertEquals(places.length > 1, true);
  }
});

Deno.test("the file has all of each grain, however little is written of it", async () => {
  const log = new PowerLog(await newImage());
  await using image = await openImage({ driver: "vmdk", file: log });
  for (const at of [5 * GRAIN, 2 * GRAIN + 1000]) {
    await image.write(at, new Uint8Array(600).fill(1));
    assertEquals(log.size % GRAIN, 0);
  }
});
