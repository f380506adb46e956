/** The programs of `examples/`, run as their comments say. @module */
import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { androidSparseDriver } from "../../examples/android_sparse.ts";
import { BlockError, createImage, openImage } from "../../mod.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

const MIB = 1024 * 1024;
const ROOT = new URL("../../", import.meta.url).pathname;

function program(name: string): string[] {
  return [...BDRV.slice(0, -1), `${ROOT}examples/${name}.ts`];
}

function example(name: string, ...args: string[]): Promise<string> {
  return runOk([...program(name), ...args]);
}

/** An image of 4 MiB, with an ext file system's magic. */
async function newDisk(dir: TempDir): Promise<string> {
  const name = dir.file("disk.qcow2");
  await createImage("qcow2", name, { size: 4 * MIB });
  await using disk = await openImage({ driver: "qcow2", file: name });
  await disk.write(1080, new Uint8Array([0x53, 0xef]));
  await disk.write(2 * MIB, new Uint8Array(100_000).fill(7));
  return name;
}

Deno.test("every example is run here", async () => {
  const text = await Deno.readTextFile(new URL(import.meta.url));
  for await (const { name } of Deno.readDir(`${ROOT}examples`)) {
    const stem = name.replace(/\.ts$/, "");
    assert(new RegExp(`(example|program)\\("${stem}"`).test(text), name);
  }
});

Deno.test("example: magic", async () => {
  await using dir = await new TempDir();
  const disk = await newDisk(dir);
  assertEquals(
    await example("magic", disk),
    `${disk}: qcow2, 4194304 bytes, holds ext2, ext3 or ext4\n`,
  );
});

Deno.test("example: convert", async () => {
  await using dir = await new TempDir();
  const disk = await newDisk(dir);
  const said = await example("convert", disk, dir.file("t.qcow2"));
  assertMatch(said, /\n100 % of \d+ bytes\nThe two are identical\.\n$/);
});

Deno.test("example: overlay", async () => {
  await using dir = await new TempDir();
  const said = await example("overlay", await newDisk(dir), dir.file("o"));
  assertMatch(said, /^0 … 65536: the overlay\n65536 … 2097152: zeroes\n/);
  assertMatch(said, /\n2097152 … \d+: the base\n/);
});

Deno.test("example: backup", async () => {
  await using dir = await new TempDir();
  const [name, backup] = [await newDisk(dir), dir.file("backup.img")];
  assertEquals(
    await example("backup", name, backup),
    "All 4194304 bytes are copied\n",
  );
  assertEquals(await example("backup", name, backup), "0 bytes have changed\n");
  {
    await using disk = await openImage({ driver: "qcow2", file: name });
    await disk.write(3 * MIB, new Uint8Array(1).fill(9));
  }
  assertEquals(
    await example("backup", name, backup),
    "65536 bytes have changed\n",
  );
  await runOk([...BDRV, "compare", "-f", "qcow2", "-F", "raw", name, backup]);
});

Deno.test("example: serve", async () => {
  await using dir = await new TempDir();
  const disk = await newDisk(dir);
  const [command, ...args] = [...program("serve"), disk];
  const child = new Deno.Command(command, { args, stdout: "piped" }).spawn();
  const reader = child.stdout.getReader();
  const { value } = await reader.read();
  const [, uri] = /is at (nbd:\S+)/.exec(new TextDecoder().decode(value))!;
  {
    await using client = await openImage(uri, { format: "raw" });
    assertEquals([...await client.read(1080, 2)], [0x53, 0xef]);
    await client.write(0, new Uint8Array(512).fill(1));
    assertEquals((await client.read(0, 1))[0], 1);
  }
  child.kill("SIGINT");
  await reader.cancel();
  assertEquals((await child.status).code, 0);
  await using after = await openImage(disk, { readOnly: true });
  assertEquals((await after.read(0, 1))[0], 0);
});

/** A sparse image of 12 KiB: data, four repeated bytes, nothing. */
function sparseImage(): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(28 + 12 + 4096 + 16 + 12 + 16);
  const view = new DataView(bytes.buffer);
  const put = (at: number, ...fields: [bytes: number, value: number][]) => {
    for (const [size, value] of fields) {
      if (size === 2) view.setUint16(at, value, true);
      else view.setUint32(at, value, true);
      at += size;
    }
  };
  put(0, [4, 0xed26ff3a], [2, 1], [2, 0], [2, 28], [2, 12], [4, 4096]);
  put(16, [4, 3], [4, 4], [4, 0]);
  put(28, [2, 0xcac1], [2, 0], [4, 1], [4, 12 + 4096]);
  bytes.fill(5, 40, 40 + 4096);
  put(4136, [2, 0xcac2], [2, 0], [4, 1], [4, 16], [4, 0x04030201]);
  put(4152, [2, 0xcac3], [2, 0], [4, 1], [4, 12]);
  put(4164, [2, 0xcac4], [2, 0], [4, 0], [4, 16], [4, 0]);
  return bytes;
}

Deno.test("example: android_sparse", async () => {
  await using dir = await new TempDir();
  const [file, target] = [dir.file("a.simg"), dir.file("a.qcow2")];
  await Deno.writeFile(file, sparseImage());
  assertEquals(
    await example("android_sparse", file, target),
    `${file}: ${androidSparseDriver.name}, 12288 bytes\n`,
  );
  await using disk = await openImage(target, { readOnly: true });
  assertEquals([...await disk.read(4095, 6)], [5, 1, 2, 3, 4, 1]);
  assertEquals([...await disk.read(8190, 4)], [3, 4, 0, 0]);
});

Deno.test("example: android_sparse refuses damage in one line", async () => {
  await using dir = await new TempDir();
  const file = dir.file("a.simg");
  const sound = sparseImage();
  for (let at = 0; at < sound.length; at = at === 40 ? 4136 : at + 1) {
    for (const value of [0, 0x7f, 0xff]) {
      const bytes = sound.slice();
      bytes[at] = value;
      await Deno.writeFile(file, bytes);
      const stack = { driver: "android-sparse", file };
      try {
        await using disk = await openImage(stack, { readOnly: true });
        await disk.read(0, Math.min(disk.size, MIB));
      } catch (error) {
        assert(error instanceof BlockError, String(error));
      }
    }
  }
  for (let size = 0; size < sound.length; size += 97) {
    await Deno.writeFile(file, sound.subarray(0, size));
    const open = () => openImage({ driver: "android-sparse", file });
    await assertRejects(open, BlockError, "The sparse image is damaged");
  }
});

qemuTest("example: android_sparse reads what img2simg makes", async () => {
  await using dir = await new TempDir();
  const [raw, sparse] = [dir.file("a.img"), dir.file("a.simg")];
  const bytes = new Uint8Array(8 * MIB);
  crypto.getRandomValues(bytes.subarray(12_288, 12_288 + 65_536));
  bytes.fill(3, 5 * MIB, 6 * MIB);
  await Deno.writeFile(raw, bytes);
  await runOk(["img2simg", raw, sparse]);
  await example("android_sparse", sparse, dir.file("a.qcow2"));
  const compared = await run(["qemu-img", "compare", raw, dir.file("a.qcow2")]);
  assertEquals(compared.stdout, "Images are identical.\n");
}, ["qemu-img", "img2simg"]);
