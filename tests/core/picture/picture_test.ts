/** Pictures of images: what they show, and how they are encoded. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { crc32, inflateSync } from "node:zlib";
import { BlockError } from "../../../core/errors.ts";
import type { LookName } from "../../../core/picture/looks.ts";
import { Space } from "../../../core/picture/space.ts";
import {
  createImage,
  drawDifference,
  drawPicture,
  type Image,
  MemoryStore,
  openImage,
  pictureToPng,
  pictureToSvg,
  pictureToText,
} from "../../../mod.ts";

const KIB = 1024;
const CLUSTER = 64 * KIB;

async function qcow2(size: number, more = {}): Promise<Image> {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size, ...more });
  return await openImage({ driver: "qcow2", file });
}

/** Bytes by appearance. */
function totals(space: Space): Partial<Record<LookName, number>> {
  return Object.fromEntries(
    space.totals().map(({ name, bytes }) => [name, bytes]),
  );
}

Deno.test("Space counts bytes by cell, and shows the least damage", () => {
  const space = new Space("Disk", 10_000, 4, 512);
  assertEquals([space.cellSize, space.cells], [2560, 4]);
  space.add("data", 2000, 1000);
  space.add("unallocated", 0, 2000);
  space.add("unallocated", 3000, 7000);
  assertEquals(space.shares(0), [
    { name: "unallocated", bytes: 2000 },
    { name: "data", bytes: 560 },
  ]);
  assertEquals(space.lookOf(0), "data");
  assertEquals(space.lookOf(2), "unallocated");
  assertEquals(space.fullness(0), 560 / 2560);
  assertEquals(space.range(3), { offset: 7680, length: 2320 });
  space.add("corrupt", 7700, 1);
  assertEquals([space.lookOf(3), space.fullness(3)], ["corrupt", 1]);
  // A range that reaches past the end is cut off.
  space.add("zero", 9_000, 1e12);
  assertEquals(totals(space).zero, 1000);
});

Deno.test("drawPicture() shows what a disk and its file consist of", async () => {
  const base = await qcow2(4 * 1024 * KIB);
  await base.write(0, new Uint8Array(4 * CLUSTER).fill(1));
  await using disk = await openImage({
    driver: "qcow2",
    file: await created(4 * 1024 * KIB),
    backing: base.node,
  });
  const bytes = new Uint8Array(CLUSTER).fill(2);
  await disk.write(CLUSTER, bytes);
  await disk.node.writeCompressed!(8 * CLUSTER, [bytes]);
  await disk.writeZeroes(2 * CLUSTER, CLUSTER);
  await disk.node.snapshots!.create({ name: "before" });
  await disk.bitmaps.add("since");
  await disk.write(20 * CLUSTER, bytes);
  await disk.write(CLUSTER, bytes);
  const { guest, host, layout, notes } = await drawPicture(disk.node, {
    cells: 64,
    bitmap: "since",
  });
  assertEquals(notes, []);
  const looks = Array.from({ length: 64 }, (_, cell) => guest.lookOf(cell));
  const expected = new Array<LookName>(64).fill("unallocated");
  expected[0] = expected[3] = "backing-1";
  expected[1] = expected[20] = "dirty";
  expected[2] = "zero";
  expected[8] = "compressed";
  assertEquals(looks, expected);
  const { header, data, compressed, leaked, corrupt, ...others } = totals(
    host!,
  );
  assertEquals([header, data, leaked, corrupt], [
    CLUSTER,
    2 * CLUSTER,
    undefined,
    undefined,
  ]);
  assertEquals(compressed! > 0, true);
  assertEquals(others["snapshot-data"], CLUSTER);
  assertEquals(others["l2-table"], 2 * CLUSTER);
  assertEquals(others["l1-table"], 2 * CLUSTER);
  assertEquals(layout!.snapshots.map(({ name }) => name), ["before"]);
  const sum = host!.totals().reduce(
    (all, { name, bytes }) => name === "shared" ? all : all + bytes,
    0,
  );
  assertEquals(sum, host!.size);
});

async function created(size: number) {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size });
  return file;
}

Deno.test("layout() shows what deleting a snapshot would free", async () => {
  await using disk = await qcow2(64 * 1024 * KIB, { cluster_size: 4096 });
  const random = (length: number) => {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length; at += 65536) {
      crypto.getRandomValues(bytes.subarray(at, at + 65536));
    }
    return bytes;
  };
  await disk.write(0, random(300_000));
  for (let at = 0; at < 8; at++) {
    const halfRandom = random(4096).fill(0, 1500);
    await disk.node.writeCompressed!(2 ** 20 + at * 4096, [halfRandom]);
  }
  for (const name of ["a", "b", "c"]) {
    await disk.node.snapshots!.create({ name });
    await disk.write(50_000 * name.charCodeAt(0) % 250_000, random(40_000));
    await disk.write(2 ** 20 + 4096, random(4096));
  }
  const used = async () => {
    const layout = await disk.node.image!.layout!();
    assertEquals([layout.check.leaks, layout.check.corruptions], [0, 0]);
    let bytes = 0;
    for (let at = 0; at < layout.size;) {
      const run = layout.runAt(at, layout.size - at);
      const isSame = run.use !== "free" && run.use !== "snapshot-table";
      if (isSame) bytes += run.length;
      at += run.length;
    }
    return { bytes, layout };
  };
  for (const name of ["b", "a", "c"]) {
    const before = await used();
    const { frees } = before.layout.snapshots.find((it) => it.name === name)!;
    await disk.node.snapshots!.delete(name);
    await disk.node.flush!();
    const after = await used();
    assertEquals(before.bytes - after.bytes, frees, name);
    assert(frees > 0);
  }
});

Deno.test("drawPicture() says what it can of any format", async () => {
  for (const format of ["raw", "vdi", "vmdk", "vpc", "vhdx"]) {
    const file = { driver: "memory", store: new MemoryStore() };
    const size = 64 * 1024 * KIB;
    await createImage(format, file, { size });
    await using disk = await openImage({ driver: format, file });
    await disk.write(0, new Uint8Array(CLUSTER).fill(1));
    const { guest, host } = await drawPicture(disk.node);
    assertEquals(guest.lookOf(0), "data", format);
    const sum = (space: Space) =>
      space.totals().reduce((all, { bytes }) => all + bytes, 0);
    assertEquals(sum(guest), disk.size, format);
    assertEquals(sum(host!), host!.size, format);
    assert(totals(host!).data! >= CLUSTER, format);
  }
});

Deno.test("drawPicture() shows where tables are damaged", async () => {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  await createImage("qcow2", file, { size: 64 * 1024 * KIB });
  {
    await using disk = await openImage({ driver: "qcow2", file });
    await disk.write(0, new Uint8Array(4 * CLUSTER).fill(1));
  }
  await using raw = await openImage({ driver: "raw", file });
  const numberAt = async (offset: number) =>
    parseInt((await raw.read(offset, 4)).toHex(), 16);
  const l1 = await numberAt(44);
  const l2 = await numberAt(l1 + 4);
  const entry = (high: number, low: number) => {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setUint32(0, high);
    new DataView(bytes.buffer).setUint32(4, low);
    return bytes;
  };
  await raw.write(l2 + 8, entry(2 ** 31, 2 ** 30)); // Past the end.
  await raw.write(l2 + 16, entry(2 ** 31, 0x20200)); // Not aligned.
  await raw.write(l2 + 24, entry(2 ** 31, CLUSTER)); // The refcounts.
  await using disk = await openImage({ driver: "qcow2", file }, {
    readOnly: true,
  });
  const { guest, host, notes, layout } = await drawPicture(disk.node, {
    cells: 1024,
  });
  const looks = [0, 1, 2, 3, 4].map((cell) => guest.lookOf(cell));
  const wrong = "corrupt";
  assertEquals(looks, ["data", wrong, wrong, wrong, "unallocated"]);
  assertEquals(notes.length, 1);
  assert(layout!.check.corruptions > 0);
  assertEquals(totals(host!).leaked, 3 * CLUSTER);
});

Deno.test("drawDifference() shows where two disks differ", async () => {
  await using a = await qcow2(64 * CLUSTER);
  await using b = await qcow2(80 * CLUSTER);
  const bytes = new Uint8Array(3 * CLUSTER).fill(1);
  await a.write(0, bytes);
  bytes[CLUSTER + 600] = 2; // In the second sector of a cluster.
  await b.write(0, bytes);
  await a.write(10 * CLUSTER, bytes.subarray(0, CLUSTER));
  await b.write(20 * CLUSTER, new Uint8Array(CLUSTER)); // Only zeroes.
  await b.write(79 * CLUSTER, bytes.subarray(0, 512)); // Past the end of a.
  const expected = [
    { offset: CLUSTER + 512, length: 512 },
    { offset: 10 * CLUSTER, length: CLUSTER },
    { offset: 79 * CLUSTER, length: 512 },
  ];
  for (const [first, second] of [[a, b], [b, a]]) {
    const { space, bytes, ranges } = await drawDifference(
      first.node,
      second.node,
      { cells: 80 },
    );
    assertEquals(ranges, expected);
    assertEquals(bytes, CLUSTER + 1024);
    assertEquals(space.size, 80 * CLUSTER);
    const looks = [0, 1, 2, 3, 10, 20, 79].map((cell) => space.lookOf(cell));
    const different = "different";
    assertEquals(looks, [
      "same",
      different,
      "same",
      "zero",
      different,
      "zero",
      different,
    ]);
  }
  const { bytes: none } = await drawDifference(a.node, a.node);
  assertEquals(none, 0);
});

Deno.test("drawPicture() refuses what makes no sense", async () => {
  await using disk = await qcow2(CLUSTER);
  await assertRejects(
    () => drawPicture(disk.node, { bitmap: "none" }),
    BlockError,
    "Dirty bitmap 'none' not found",
  );
  for (const cells of [0, -1, 1.5, NaN, 2 ** 30]) {
    await assertRejects(() => drawPicture(disk.node, { cells }), BlockError);
  }
  const signal = AbortSignal.abort();
  await assertRejects(() => drawPicture(disk.node, { signal }), BlockError);
});

Deno.test("pictureToSvg() writes XML whatever the image is called", async () => {
  await using disk = await qcow2(CLUSTER * 100);
  await disk.write(0, new Uint8Array(CLUSTER));
  const picture = await drawPicture(disk.node);
  const svg = pictureToSvg({
    ...picture,
    name: 'a<b>&"c"\u0001\ud800]]>',
    notes: ["<script>"],
  });
  assert(svg.startsWith('<svg xmlns="http://www.w3.org/2000/svg"'));
  assert(svg.includes('a&lt;b&gt;&amp;"c"\ufffd\ufffd]]&gt; (qcow2)'));
  assert(svg.includes("&lt;script&gt;"));
  assert(svg.includes("0x0 to 0x10000: data: 64 KiB"));
  // The many empty cells of a row share one rectangle.
  assert(svg.match(/<rect class="unallocated"/g)!.length <= 3);
});

Deno.test("pictureToPng() writes a PNG", async () => {
  await using disk = await qcow2(CLUSTER * 100);
  await disk.write(0, new Uint8Array(CLUSTER));
  const png = await pictureToPng(await drawPicture(disk.node));
  const view = new DataView(png.buffer);
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  const types: string[] = [];
  let pixels: Uint8Array | undefined;
  for (let at = 8; at < png.length;) {
    const length = view.getUint32(at);
    const type = new TextDecoder().decode(png.subarray(at + 4, at + 8));
    const content = png.subarray(at + 8, at + 8 + length);
    assertEquals(
      view.getUint32(at + 8 + length),
      crc32(png.subarray(at + 4, at + 8 + length)),
      type,
    );
    if (type === "IDAT") pixels = inflateSync(content);
    types.push(type);
    at += length + 12;
  }
  assertEquals(types, ["IHDR", "PLTE", "IDAT", "IEND"]);
  assertEquals(pixels!.length, (width + 1) * height);
});

Deno.test("pictureToText() has a letter for each cell", async () => {
  await using disk = await qcow2(CLUSTER * 66);
  await disk.write(0, new Uint8Array(CLUSTER));
  const picture = await drawPicture(disk.node);
  const lines = pictureToText(picture, false).split("\n");
  assertEquals(lines.slice(0, 3), [
    "Disk: 4.1 MiB, 64 KiB a cell",
    "D" + ".".repeat(63),
    "..",
  ]);
  const coloured = pictureToText(picture, true);
  // deno-lint-ignore no-control-regex
  assertEquals(coloured.replaceAll(/\x1b\[[\d;]*m/g, "").split("\n"), lines);
});
