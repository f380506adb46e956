import { assertEquals, assertRejects } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import { geometryOf, sectorsOf } from "../../../drivers/vpc/geometry.ts";
import { BlockError, openImage } from "../../../mod.ts";
import { Random, seedsToRun } from "../../model.ts";
import { PowerLog } from "../../power_log.ts";
import { storeOf } from "../qcow2/bytes.ts";
import {
  MIB,
  newImage,
  patch,
  patchFooters,
  PLACE,
  putEntry,
  stackOf,
} from "./bytes.ts";

/** A change of an image, and the message about it. */
const DAMAGES: readonly (readonly [
  damage: (bytes: Uint8Array<ArrayBuffer>) => void,
  message: string,
])[] = [
  [(bytes) => bytes.fill(0), "invalid VPC image"],
  [(bytes) => {
    bytes[70]++;
    bytes[bytes.length - 500]++;
  }, "Incorrect header checksum"],
  [
    (bytes) => patchFooters(bytes, (view) => view.setUint32(60, 5)),
    "unsupported VHD image (disk type 5)",
  ],
  [
    (bytes) => patch(bytes, 0, (view) => view.setUint32(60, 2)),
    "invalid VPC image",
  ],
  [
    (bytes) =>
      patch(bytes, bytes.length - 512, (view) => view.setUint32(60, 2)),
    "contradict each other",
  ],
  [
    (bytes) =>
      patchFooters(bytes, (view) => view.setBigUint64(48, 2n ** 41n + 512n)),
    "File too large",
  ],
  [
    (bytes) => patchFooters(bytes, (view) => view.setBigInt64(16, -1n)),
    "Error reading dynamic VHD header",
  ],
  [(bytes) => bytes[PLACE.header]++, "Invalid header magic"],
  [
    (bytes) => patch(bytes, PLACE.header, (view) => view.setUint32(32, 3000)),
    "Invalid block size 3000",
  ],
  [
    (bytes) => patch(bytes, PLACE.header, (view) => view.setUint32(32, 256)),
    "Invalid block size 256",
  ],
  [
    (bytes) => patch(bytes, PLACE.header, (view) => view.setUint32(28, 3)),
    "Page table too small",
  ],
  [
    (bytes) =>
      patch(bytes, PLACE.header, (view) => view.setUint32(28, 0xc0000000)),
    "Max Table Entries too large (-1073741824)",
  ],
  [
    (bytes) =>
      patch(bytes, PLACE.header, (view) => view.setUint32(28, 2_000_000)),
    "The image has been truncated",
  ],
  [
    (bytes) =>
      patch(bytes, PLACE.header, (view) => view.setBigInt64(16, -512n)),
    "The image has been truncated",
  ],
  [(bytes) => putEntry(bytes, 1, 5000), "The image has been truncated"],
  [(bytes) => putEntry(bytes, 1, 0), "overlaps its headers"],
  [(bytes) => putEntry(bytes, 1, 3), "overlaps its headers"],
];

Deno.test("an image that makes no sense is refused in QEMU's words", async () => {
  for (const [damage, message] of DAMAGES) {
    const bytes = new Uint8Array(4 * MIB + 4096);
    const image = await newImage();
    bytes.set(image);
    bytes.set(image.subarray(-512), bytes.length - 512);
    damage(bytes);
    await assertRejects(() => openImage(stackOf(bytes)), BlockError, message);
  }
  await assertRejects(
    () => openImage(stackOf(new Uint8Array(511))),
    BlockError,
    "File too small for a VHD header",
  );
  const calc = { force_size_calc: "both" };
  await assertRejects(
    async () => await openImage(stackOf(await newImage(), calc)),
    BlockError,
    "Invalid size calculation mode: 'both'",
  );
});

Deno.test("either copy of the footer makes up for damage to the other", async () => {
  const bytes = await newImage();
  bytes[70]++;
  const warnings: string[] = [];
  const warn = (message: string) => warnings.push(message);
  await using image = await openImage(stackOf(bytes), { warn });
  assertEquals([image.size, warnings.length], [8 * MIB, 1]);
});

Deno.test("a disk's size follows the rule of the program that made it", async () => {
  const sizes: [creator: string, rule: string | undefined, size: number][] = [
    ["qemu", undefined, 1000 * 512],
    ["vpc ", undefined, 1000 * 512],
    ["vpc ", "current_size", 8 * MIB],
    ["qem2", undefined, 8 * MIB],
    ["win ", undefined, 8 * MIB],
    ["win ", "chs", 1000 * 512],
    ["d2v\0", undefined, 8 * MIB],
    ["tap\0", undefined, 8 * MIB],
    ["wa\0\0", undefined, 8 * MIB],
    ["vbox", undefined, 8 * MIB],
  ];
  const bytes = await newImage();
  for (const [creator, rule, size] of sizes) {
    patchFooters(bytes, (view) => {
      for (let i = 0; i < 4; i++) view.setUint8(28 + i, creator.charCodeAt(i));
      view.setUint16(56, 25);
      view.setUint8(58, 4);
      view.setUint8(59, 10);
    });
    const options = rule === undefined ? {} : { force_size_calc: rule };
    await using image = await openImage(stackOf(bytes, options));
    assertEquals([creator, image.size], [creator, size]);
  }
});

Deno.test("the largest geometry says nothing about the size", async () => {
  const bytes = await newImage();
  await using image = await openImage(
    stackOf(bytes, { force_size_calc: "chs" }),
  );
  assertEquals(image.size, 8 * MIB);
});

Deno.test("geometryOf() follows the specification", () => {
  const cases: [sectors: number, geometry: [number, number, number]][] = [
    [2108, [31, 4, 17]],
    [204800, [1003, 12, 17]],
    [204816, [1004, 12, 17]],
    [2097648, [2081, 16, 63]],
    [67108864, [16448, 16, 255]],
    [2 ** 32, [65535, 16, 255]],
  ];
  for (const [sectors, [cylinders, heads, perTrack]] of cases) {
    const geometry = geometryOf(sectors);
    assertEquals(geometry, { cylinders, heads, sectors: perTrack });
    assertEquals(sectorsOf(geometry) <= sectors, true);
  }
});

Deno.test("a fixed image ends before its footer", async () => {
  const bytes = await newImage({ subformat: "fixed", size: MIB });
  {
    const store = storeOf(bytes);
    const stack = { driver: "vpc", file: { driver: "memory", store } };
    await using image = await openImage(stack);
    await image.write(MIB - 5, new Uint8Array(5).fill(1));
    await image.write(0, new TextEncoder().encode("conectix"));
    await image.close();
    await using again = await openImage(stack);
    assertEquals(again.size, MIB);
    assertEquals(await again.read(MIB - 5, 5), new Uint8Array(5).fill(1));
  }
  // An old image, whose footer is one byte shorter.
  await using old = await openImage(stackOf(bytes.subarray(0, -1)));
  assertEquals(old.size, MIB);
  patch(bytes, MIB, (view) => view.setBigUint64(48, BigInt(2 * MIB)));
  await assertRejects(
    () => openImage(stackOf(bytes)),
    BlockError,
    "The image has been truncated",
  );
});

/** An image whose first block has sectors 1, 8 and 9 only. */
async function partlyFilled(): Promise<Uint8Array<ArrayBuffer>> {
  const image = await newImage();
  const bytes = new Uint8Array(PLACE.end + 512 + 2 * MIB + 512);
  bytes.set(image);
  bytes.set(image.subarray(-512), bytes.length - 512);
  putEntry(bytes, 0, PLACE.end / 512);
  bytes.fill(0, PLACE.end, PLACE.end + 512);
  bytes[PLACE.end] = 0b01000000;
  bytes[PLACE.end + 1] = 0b11000000;
  bytes.fill(7, PLACE.end + 512, bytes.length - 512);
  return bytes;
}

Deno.test("sectors that are clear in a block's bitmap are zeroes until written", async () => {
  const store = storeOf(await partlyFilled());
  const stack = { driver: "vpc", file: { driver: "memory", store } };
  const disk = new Uint8Array(8 * MIB);
  for (const sector of [1, 8, 9]) {
    disk.fill(7, 512 * sector, 512 * sector + 512);
  }
  {
    await using image = await openImage(stack);
    assertEquals(isEqual(await image.read(0, disk.length), disk), true);
    const random = new Random(1);
    for (let i = 0; i < 40; i++) {
      const bytes = random.bytes(1 + random.below(2000));
      const offset = random.below(60_000);
      await image.write(offset, bytes);
      disk.set(bytes, offset);
      if (i % 10 === 0) await image.flush();
    }
    assertEquals(isEqual(await image.read(0, disk.length), disk), true);
  }
  await using image = await openImage(stack);
  assertEquals(isEqual(await image.read(0, disk.length), disk), true);
});

Deno.test("bitmaps of many new blocks get written, and the footer stays at the end", async () => {
  const blocks = 1500;
  const store = storeOf(await newImage({ size: blocks * 2 * MIB }));
  const stack = { driver: "vpc", file: { driver: "memory", store } };
  const bytes = new Uint8Array(512).fill(7);
  {
    await using image = await openImage(stack);
    for (let i = 0; i < blocks; i++) await image.write(i * 2 * MIB, bytes);
  }
  const footer = new Uint8Array(512);
  store.read(store.size - 512, footer);
  assertEquals(new TextDecoder().decode(footer.subarray(0, 8)), "conectix");
  await using image = await openImage(stack);
  for (let i = 0; i < blocks; i++) {
    assertEquals(await image.read(i * 2 * MIB, 512), bytes);
  }
  // A block whose bitmap is not full has several extents.
  const extents = await Array.fromAsync(image.extents());
  assertEquals(extents.length, blocks);
});

Deno.test("flushed data survives power cuts", async () => {
  const size = 6 * MIB;
  for (const seed of seedsToRun(4)) {
    const random = new Random(seed);
    const log = new PowerLog(
      seed % 2 ? await newImage({ size }) : await partlyFilled(),
    );
    const flushed: { moment: number; disk: Uint8Array }[] = [];
    const disk = new Uint8Array(size);
    {
      await using image = await openImage({ driver: "vpc", file: log });
      disk.set(await image.read(0, size));
      flushed.push({ moment: 0, disk: disk.slice() });
      for (let i = 0; i < 10; i++) {
        const bytes = random.bytes(1 + random.below(3000));
        const offset = random.below(random.oneIn(2) ? 9000 : size - 3000);
        disk.set(bytes, offset);
        await image.write(offset, bytes);
        await image.flush();
        flushed.push({ moment: log.now, disk: disk.slice() });
      }
    }
    const moments = Array.from({ length: 20 }, () => random.below(log.now + 1))
      .sort((a, b) => a - b);
    for (const { moment, file } of log.cuts(moments, random)) {
      const done = flushed.filter((one) => one.moment <= moment);
      const before = done.at(-1)!.disk;
      const after = flushed[done.length]?.disk ?? before;
      await using image = await openImage(stackOf(file));
      const found = await image.read(0, size);
      for (let at = 0; at < size; at++) {
        if (found[at] === before[at] || found[at] === after[at]) continue;
        throw new Error(`seed ${seed}, cut at ${moment}: byte ${at}`);
      }
      // The next write does not overwrite anything else.
      const fresh = random.bytes(100);
      const offset = random.below(size - 100);
      await image.write(offset, fresh);
      found.set(fresh, offset);
      await image.flush();
      assertEquals(isEqual(await image.read(0, size), found), true);
    }
  }
});
