/**
 * A file system with real files, converted to qcow2 and back.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import type { OptionValues } from "../../core/options.ts";
import { convert, createImage, openImage } from "../../mod.ts";
import { qemuTest, run, runOk, TempDir } from "../qemu.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const SIZE = 32 * 1024 * 1024;

/** Make an ext4 file system that contains this project's own files. */
async function makeFileSystem(folder: TempDir): Promise<string> {
  const tree = folder.file("tree");
  await Deno.mkdir(tree);
  for (const name of ["core", "drivers", "cli", "tests/fixtures"]) {
    await runOk(["cp", "-a", `${ROOT}${name}`, tree]);
  }
  // And one large file of random bytes.
  const noise = new Uint8Array(3_000_000);
  for (let at = 0; at < noise.length; at += 65536) {
    crypto.getRandomValues(noise.subarray(at, at + 65536));
  }
  await Deno.writeFile(`${tree}/noise`, noise);
  const disk = folder.file("disk.raw");
  await runOk(["mke2fs", "-q", "-t", "ext4", "-d", tree, disk, "32M"]);
  return disk;
}

async function copy(
  from: string,
  fromFormat: string,
  to: string,
  toFormat: string,
  options: OptionValues = {},
  compressed = false,
): Promise<void> {
  await createImage(toFormat, to, { size: SIZE, ...options });
  await using source = await openImage(from, {
    format: fromFormat,
    readOnly: true,
  });
  await using target = await openImage(to, { format: toFormat });
  await convert([source.node], target.node, { targetIsZero: true, compressed });
}

interface Variant {
  name: string;
  options: OptionValues;
  compressed?: boolean;
}

const VARIANTS: readonly Variant[] = [
  { name: "default options", options: {} },
  {
    name: "version 2, 512-byte clusters",
    options: { compat: "v2", cluster_size: 512 },
  },
  { name: "2 MiB clusters", options: { cluster_size: "2M" } },
  { name: "preallocated", options: { preallocation: "metadata" } },
  { name: "compressed", options: {}, compressed: true },
  {
    name: "compressed with zstd",
    options: { compression_type: "zstd" },
    compressed: true,
  },
];

for (const { name, options, compressed } of VARIANTS) {
  qemuTest(`ext4, raw to qcow2 (${name}) to raw`, async () => {
    await using folder = new TempDir();
    const disk = await makeFileSystem(folder);
    const image = folder.file("disk.qcow2");
    await copy(disk, "raw", image, "qcow2", options, compressed);
    await runOk(["qemu-img", "check", "-f", "qcow2", image]);
    const verdict = await runOk(
      ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", disk, image],
    );
    assertEquals(verdict, "Images are identical.\n");

    const back = folder.file("back.raw");
    await copy(image, "qcow2", back, "raw");
    assertEquals((await run(["cmp", disk, back])).code, 0);
    await runOk(["e2fsck", "-fn", back]);
  }, ["qemu-img", "mke2fs"]);
}
