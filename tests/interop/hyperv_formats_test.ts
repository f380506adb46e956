/**
 * VHD and VHDX images exchanged with QEMU in both directions: each subformat
 * with each kind of content.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import {
  compare,
  convert,
  createImage,
  openImage,
  type OptionValues,
} from "../../mod.ts";
import { qemuTest, run, runOk, TempDir } from "../qemu.ts";

const MIB = 1024 * 1024;

/** A disk: its name, its bytes, and the ranges with data. */
type Disk = readonly [
  name: string,
  size: number,
  data: readonly (readonly [offset: number, length: number])[],
];

const DISKS: readonly Disk[] = [
  ["empty", 8 * MIB, []],
  ["sparse", 40 * MIB, [[0, 512], [3 * MIB - 700, 1500], [39 * MIB, MIB]]],
  ["full", 9 * MIB, [[0, 9 * MIB]]],
  ["odd size", 5 * MIB + 512, [[100, 70_000], [5 * MIB, 512]]],
];

const LARGE: Disk = [
  "past 4 GiB",
  4098 * MIB,
  [[0, 10], [4096 * MIB - 9, 5000], [4098 * MIB - 512, 512]],
];

const SUBFORMATS: readonly [format: string, options: OptionValues][] = [
  ["vpc", { subformat: "dynamic" }],
  ["vpc", { subformat: "dynamic", force_size: "on" }],
  ["vpc", { subformat: "fixed" }],
  ["vpc", { subformat: "fixed", force_size: "on" }],
  ["vhdx", { subformat: "dynamic" }],
  ["vhdx", { subformat: "dynamic", block_size: "1M" }],
  ["vhdx", { subformat: "dynamic", block_state_zero: "off" }],
  ["vhdx", { subformat: "fixed", log_size: "2M" }],
  ["vhdx", { subformat: "fixed", block_state_zero: "off" }],
];

/** Write the raw disk to a file. */
async function writeRaw(filename: string, [, size, data]: Disk) {
  using file = await Deno.open(filename, { write: true, create: true });
  await file.truncate(size);
  for (const [offset, length] of data) {
    await file.seek(offset, Deno.SeekMode.Start);
    await file.write(new Uint8Array(length).map((_, i) => i % 251 + 1));
  }
}

/** Make an image here with the content of a raw disk. */
async function makeOurs(
  raw: string,
  filename: string,
  format: string,
  options: OptionValues,
): Promise<void> {
  await using source = await openImage(raw, { format: "raw", readOnly: true });
  await createImage(format, filename, { ...options, size: source.size });
  await using target = await openImage(filename, { format });
  await convert([source.node], target.node, { targetIsZero: true });
}

/** Check the content of an image made by QEMU, and of one made here. */
async function goBothWays(
  folder: TempDir,
  format: string,
  options: OptionValues,
): Promise<void> {
  const [raw, ours, theirs] = ["raw", "ours", "theirs"].map((name) =>
    folder.file(name)
  );
  const how = Object.entries(options).map(([name, value]) =>
    `${name}=${value}`
  );
  const qemuImg = ["qemu-img", "convert", "-t", "unsafe", "-f", "raw", raw];
  await runOk([...qemuImg, "-O", format, "-o", how.join(), theirs]);
  await makeOurs(raw, ours, format, options);
  {
    await using one = await openImage(raw, { format: "raw", readOnly: true });
    await using other = await openImage(theirs, { format, readOnly: true });
    assertEquals((await compare(one.node, other.node)).outcome, "identical");
  }
  const { size } = await Deno.stat(raw);
  // QEMU does not report unallocated ranges of VHDX, and reads them all.
  if (format !== "vhdx" || size < 100 * MIB) {
    const same = ["qemu-img", "compare", "-f", "raw", "-F", format, raw, ours];
    assert((await runOk(same)).includes("identical"));
  } else {
    const last = `read -P 1 ${size - 512} 1`;
    const found = await runOk(["qemu-io", "-f", format, "-c", last, ours]);
    assert(!found.includes("failed"), found);
  }
  for (const file of [ours, theirs]) {
    {
      await using image = await openImage(file, { format });
      await image.write(MIB + 5, new Uint8Array(3000).fill(7));
    }
    const { size } = await Deno.stat(file);
    const reading = [
      "qemu-io",
      "-f",
      format,
      "-c",
      `read -P 7 ${MIB + 5} 3000`,
    ];
    const writing = ["-c", "write -P 8 1M 512"];
    const found = await runOk([...reading, ...writing, file]);
    assert(!found.includes("failed"), found);
    assertEquals((await Deno.stat(file)).size, size);
    await using image = await openImage(file, { format });
    assertEquals(await image.read(MIB, 512), new Uint8Array(512).fill(8));
    if (format !== "vhdx") continue;
    assertEquals((await image.check()).corruptions, 0);
    await image.close();
    const check = await run(["qemu-img", "check", file]);
    assertEquals([check.code, check.stderr], [0, ""]);
  }
}

for (const disk of [...DISKS, LARGE]) {
  qemuTest(`VHD and VHDX in both directions: ${disk[0]}`, async () => {
    await using folder = new TempDir();
    await writeRaw(folder.file("raw"), disk);
    for (const [format, options] of SUBFORMATS) {
      const isPlain = Object.keys(options).length === 1 &&
        options.subformat === "dynamic";
      if (disk === LARGE && !isPlain) continue;
      await goBothWays(folder, format, options);
    }
  }, ["qemu-img", "qemu-io"]);
}

/** What `vhdiinfo` says about an image. */
const FACTS: readonly [format: string, options: OptionValues, fact: RegExp][] =
  [
    ["vpc", {}, /Disk type\s*: Dynamic/],
    ["vpc", { subformat: "fixed" }, /Disk type\s*: Fixed/],
    ["vhdx", {}, /Disk type\s*: Dynamic/],
    ["vhdx", { subformat: "fixed" }, /Disk type\s*: Fixed/],
  ];

qemuTest("libvhdi reads our images", async () => {
  await using folder = new TempDir();
  for (const [format, options, fact] of FACTS) {
    const file = folder.file(`image.${format}`);
    const size = 20 * MIB;
    const exact = format === "vpc" ? { force_size: true } : {};
    await createImage(format, file, { ...options, ...exact, size });
    const said = await runOk(["vhdiinfo", file]);
    assert(fact.test(said) && said.includes(`(${size} bytes)`), said);
  }
}, ["vhdiinfo"]);
