/**
 * Images that are written here, read by libvmdk and libvhdi, which share no code
 * with QEMU.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { Random } from "../model.ts";
import { BDRV, mustSkip, runOk, TempDir } from "../qemu.ts";

const PYTHON = "/usr/bin/python3";
const SCRIPT = new URL("../libyal.py", import.meta.url).pathname;

function hasLibraries(): boolean {
  try {
    return new Deno.Command(PYTHON, {
      args: ["-c", "import pyvhdi, pyvmdk"],
      stderr: "null",
    }).outputSync().success;
  } catch {
    return false;
  }
}

const MIB = 1024 * 1024;

/** Disks by name: their size, and the ranges that have data. */
const DISKS: {
  readonly [name: string]: [size: number, ...data: [at: number, end: number][]];
} = {
  empty: [10 * MIB],
  sector: [512, [0, 512]],
  odd: [
    70 * MIB + 1536,
    [0, 512],
    [5 * MIB - 100, 5 * MIB + 70_000],
    [33 * MIB, 33 * MIB + 200_000],
    [70 * MIB + 1024, 70 * MIB + 1536],
  ],
};

const KINDS = [
  ..."monolithicSparse monolithicFlat twoGbMaxExtentSparse twoGbMaxExtentFlat"
    .split(" ").map((kind) => ["vmdk", `subformat=${kind}`]),
  ["vmdk", "subformat=streamOptimized"],
  ["vmdk", "zeroed_grain=on"],
  ["vpc", "force_size=on"],
  ["vpc", "subformat=fixed,force_size=on"],
  ["vhdx", "block_size=1M"],
  ["vhdx", "subformat=fixed"],
  ["vhdx", "block_state_zero=off"],
];

Deno.test({
  name: "libvmdk and libvhdi read what we write",
  ignore: mustSkip({
    others: { "python3-libvmdk and python3-libvhdi": hasLibraries() },
  }),
  async fn() {
    await using folder = new TempDir();
    const random = new Random(1);
    const images: string[] = [];
    const expected: string[] = [];
    for (const [name, [size, ...data]] of Object.entries(DISKS)) {
      const disk = new Uint8Array(size);
      for (const [at, end] of data) disk.set(random.bytes(end - at), at);
      const raw = folder.file(`${name}.raw`);
      await Deno.writeFile(raw, disk);
      const digest = createHash("sha256").update(disk).digest("hex");
      for (const [index, [format, options]] of KINDS.entries()) {
        const image = folder.file(`${name} ${index}.${format}`);
        await runOk([
          ...[...BDRV, "convert", "-f", "raw", "-O", format],
          ...["-o", options, raw, image],
        ]);
        images.push(image);
        expected.push(`${size} ${digest}`);
      }
    }
    const lines = (await runOk([PYTHON, SCRIPT, ...images])).trim().split("\n");
    const named = (facts: readonly string[]) =>
      Object.fromEntries(images.map((image, i) => [image, facts[i]]));
    assertEquals(named(lines), named(expected));
  },
});
