/**
 * Images that other programs make and read, and what QEMU says about them.
 * @module
 */
import { assertEquals } from "@std/assert";
import { isEqual } from "../../../core/runtime.ts";
import { openImage } from "../../../mod.ts";
import { Random } from "../../model.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../../qemu.ts";
import { bytesOf } from "./golden.ts";

/** Some data, some zeroes, up to an odd sector. */
function content(): Uint8Array<ArrayBuffer> {
  const random = new Random(3);
  const bytes = new Uint8Array(2_000_000 - 2_000_000 % 512);
  for (const offset of [0, 70_000, 1_000_001]) {
    bytes.set(random.bytes(40_000), offset);
  }
  bytes.fill(7, bytes.length - 300);
  return bytes;
}

/**
 * Assert an image's probed format, and its content of these bytes and zeroes.
 */
async function assertHolds(
  image: string,
  format: string,
  plain: Uint8Array,
): Promise<void> {
  await using opened = await openImage(image, { readOnly: true });
  assertEquals(opened.format, format);
  const found = await opened.read(0, opened.size);
  assertEquals(isEqual(found.subarray(0, plain.length), plain), true);
  assertEquals(found.subarray(plain.length).some(Boolean), false);
}

qemuTest("cloop images of create_compressed_fs are read", async () => {
  await using folder = new TempDir();
  const [raw, image] = [folder.file("raw"), folder.file("image")];
  const plain = content();
  await Deno.writeFile(raw, plain);
  for (const size of ["512", "3K", "64K", "1M"]) {
    await runOk(["create_compressed_fs", "-q", "-B", size, raw, image]);
    await assertHolds(image, "cloop", plain);
    await Deno.remove(image);
  }
}, ["create_compressed_fs"]);

qemuTest("growing images of bximage are read", async () => {
  await using folder = new TempDir();
  const [raw, image] = [folder.file("raw"), folder.file("image")];
  // bximage makes disks of whole cylinders.
  const plain = new Uint8Array(4 * 16 * 63 * 512);
  plain.set(content());
  await Deno.writeFile(raw, plain);
  const how = ["-func=convert", "-imgmode=growing", "-q"];
  await runOk(["bximage", ...how, raw, image]);
  await assertHolds(image, "bochs", plain);
  await Deno.remove(image);
  await runOk(["bximage", "-func=create", "-hd=5G", ...how.slice(1), image]);
  await using empty = await openImage(image, { readOnly: true });
  const { length, zero } = await empty.node.status(0, empty.size);
  assertEquals([length > 0, zero], [true, true]);
}, ["bximage"]);

/** A program's message, without its name and what it lacks. */
async function said(command: string[]): Promise<[number, string]> {
  const { code, stdout, stderr } = await run(command, {
    env: { BDRV_QEMU_VERSION: "7.2" },
  });
  const lines = (stderr + stdout).split("\n").filter((line) =>
    !/^qemu: module|^disk size/.test(line)
  );
  return [code, lines.join("\n")];
}

/** The offset of a number in a sample, and its new value. */
const CHANGES: readonly [name: string, at: number, value: number][] = [
  ["small.cloop", 128, 513],
  ["small.cloop", 128, 0],
  ["small.cloop", 128, 0x80000000],
  ["small.cloop", 132, 0xffffffff],
  ["small.cloop", 132, 0x1ffffffe],
  ["small.cloop", 132, 63],
  ["small.cloop", 136 + 12, 0xffffffff],
  ["small.cloop", 136 + 16, 255],
  ["small.bochs", 0, 0],
  ["small.bochs", 48, 0],
  ["small.bochs", 72, 0x01001000],
  ["small.bochs", 72, 0x01000000],
  ["small.bochs", 80, 0x01000000],
  ["small.bochs", 80, 0x01100000],
  ["small.bochs", 80, 0x00000001],
  ["zlib.dmg", -512, 0],
  ["zlib.dmg", 24 - 512, 255],
  ["zlib.dmg", 40 - 512, 255],
  ["zlib.dmg", 216 - 512, 255],
  ["zlib.dmg", 228 - 512, 0],
  ["zlib.dmg", 492 - 512, 0x80000000],
  ["fork.dmg", 52 - 512, 100],
];

qemuTest("damaged images are refused in QEMU's words", async () => {
  await using folder = new TempDir();
  const image = folder.file("image");
  for (const [name, at, value] of CHANGES) {
    const bytes = await bytesOf(name);
    const place = at < 0 ? bytes.length + at : at;
    new DataView(bytes.buffer).setUint32(place, value);
    await Deno.writeFile(image, bytes);
    const info = ["info", "-f", name.split(".")[1], image];
    const theirs = await said(["qemu-img", ...info]);
    const ours = await said([...BDRV, "qemu-img", ...info]);
    assertEquals(ours, theirs, `${name}: ${value} at ${at}`);
  }
});

qemuTest("changes of read-only formats are refused as by QEMU", async () => {
  await using folder = new TempDir();
  const image = folder.file("image");
  for (const name of ["small.cloop", "small.bochs", "zlib.dmg"]) {
    await Deno.writeFile(image, await bytesOf(name));
    const format = name.split(".")[1];
    for (
      const command of [
        ["resize", "-f", format, image, "10M"],
        ["check", "-f", format, image],
        ["commit", "-f", format, image],
        ["create", "-f", format, folder.file("new"), "1M"],
      ]
    ) {
      const theirs = await said(["qemu-img", ...command]);
      const ours = await said([...BDRV, "qemu-img", ...command]);
      assertEquals(ours, theirs, `${name}: ${command[0]}`);
    }
  }
});

qemuTest("dmg2img reads the golden images as we do", async () => {
  await using folder = new TempDir();
  const [image, raw] = [folder.file("image.dmg"), folder.file("raw")];
  for (const name of ["zlib.dmg", "fork.dmg", "bzip2.dmg", "adc.dmg"]) {
    await Deno.writeFile(image, await bytesOf(name));
    await runOk(["dmg2img", "-s", image, raw]);
    await assertHolds(image, "dmg", await Deno.readFile(raw));
  }
}, ["dmg2img"]);
