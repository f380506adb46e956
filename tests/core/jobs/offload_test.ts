/** Copies made by the system, from file to file. @module */
import { assert, assertEquals } from "@std/assert";
import type { BlockNode } from "../../../core/node.ts";
import { convert, createImage, openImage, type Source } from "../../../mod.ts";
import { mustSkip, TempDir } from "../../qemu.ts";

const MiB = 1024 * 1024;
const SIZE = 5 * MiB;

/** A disk with a hole, and data that begins within a cluster. */
async function makeSource(dir: TempDir, format: string): Promise<string> {
  const path = dir.file(`source.${format}`);
  await createImage(format, path, { size: SIZE });
  await using image = await openImage(path, { format });
  await image.write(1000, new Uint8Array(700_000).fill(1));
  await image.write(3 * MiB + 512, new Uint8Array(MiB).fill(2));
  return path;
}

/** Convert to a fresh image; returns how many ranges the system copied. */
async function convertByOffload(
  source: BlockNode,
  file: Source,
  format: string,
): Promise<number> {
  await createImage(format, file, { size: SIZE });
  await using target = await openImage({ driver: format, file });
  const { node } = target;
  const copyFrom = node.copyFrom?.bind(node);
  let copied = 0;
  if (copyFrom) {
    node.copyFrom = (...args) => (copied++, copyFrom(...args));
  }
  await convert([source], node, { copyOffload: true, targetIsZero: true });
  const disk = new Uint8Array(SIZE);
  disk.fill(1, 1000, 701_000);
  disk.fill(2, 3 * MiB + 512, 4 * MiB + 512);
  assertEquals(await target.read(0, SIZE), disk);
  return copied;
}

const isLinux = Deno.build.os === "linux";

for (const from of ["raw", "qcow2"]) {
  for (const to of ["raw", "qcow2"]) {
    Deno.test({
      name: `the system copies from ${from} to ${to}`,
      ignore: mustSkip({ others: { Linux: isLinux } }),
      fn: async () => {
        await using dir = await new TempDir();
        const path = await makeSource(dir, from);
        await using source = await openImage(path, { readOnly: true });
        const file = { driver: "file", filename: dir.file("target") };
        assert(await convertByOffload(source.node, file, to) >= 2);
        await using target = await openImage({ driver: to, file });
        if (target.node.image?.check) {
          const { corruptions, leaks } = await target.check();
          assertEquals([corruptions, leaks], [0, 0]);
        }
      },
    });
  }
}

Deno.test("the system copies an overlay's data from all files of its chain", async () => {
  await using dir = await new TempDir();
  const base = await makeSource(dir, "qcow2");
  const overlay = dir.file("overlay");
  await createImage("qcow2", overlay, {
    size: SIZE,
    backing_file: base,
    backing_fmt: "qcow2",
  });
  await using source = await openImage(overlay, { readOnly: true });
  const file = { driver: "file", filename: dir.file("target") };
  const copied = await convertByOffload(source.node, file, "raw");
  assert(!isLinux || copied >= 2);
});

Deno.test("where the system cannot copy, data is copied as usual", async () => {
  await using dir = await new TempDir();
  const path = await makeSource(dir, "raw");
  const file = { driver: "file", filename: dir.file("target"), io: "deno" };
  {
    await using source = await openImage(path, {
      format: "raw",
      readOnly: true,
    });
    assertEquals(await convertByOffload(source.node, file, "raw"), 0);
  }
  {
    // A file that is being written to may change meanwhile.
    await using source = await openImage(path, { format: "raw" });
    assertEquals(
      await convertByOffload(source.node, dir.file("target"), "qcow2"),
      0,
    );
  }
  {
    const driver = "raw";
    const slow = {
      driver,
      file: { driver: "file", filename: path, io: "deno" },
    };
    await using source = await openImage(slow, { readOnly: true });
    const copied = await convertByOffload(
      source.node,
      dir.file("target"),
      "qcow2",
    );
    assert(copied <= 1, "at most one attempt");
  }
});

Deno.test("compressed data is copied as usual", async () => {
  await using dir = await new TempDir();
  const path = dir.file("source");
  await createImage("qcow2", path, { size: SIZE });
  {
    await using image = await openImage(path);
    const disk = new Uint8Array(SIZE);
    disk.fill(1, 1000, 701_000);
    disk.fill(2, 3 * MiB + 512, 4 * MiB + 512);
    await image.writeCompressed(0, disk);
  }
  await using source = await openImage(path, { readOnly: true });
  assertEquals(
    await convertByOffload(source.node, dir.file("target"), "raw"),
    0,
  );
});
