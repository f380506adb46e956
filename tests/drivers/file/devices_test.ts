import { assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  convert,
  createImage,
  openImage,
  type Source,
} from "../../../mod.ts";
import { LoopDevice, loopTest } from "../../loop.ts";
import { BDRV, run, TempDir } from "../../qemu.ts";
import { kindOf } from "../../extents.ts";

const SIZE = 4 * 1024 * 1024;

/** A device backed by a file of random bytes, in a folder of its own. */
async function onDevice(
  sectorSize: number,
  use: (device: LoopDevice, dir: TempDir, content: Uint8Array) => Promise<void>,
): Promise<void> {
  await using dir = new TempDir();
  const content = new Uint8Array(SIZE);
  for (let at = 0; at < SIZE; at += 65536) {
    crypto.getRandomValues(content.subarray(at, at + 65536));
  }
  Deno.writeFileSync(dir.file("disk"), content);
  using device = new LoopDevice(dir.file("disk"), sectorSize);
  await use(device, dir, content);
  assertEquals(device.size, SIZE);
}

async function codeOf(promise: Promise<unknown>): Promise<string> {
  return (await assertRejects(() => promise, BlockError)).code;
}

for (const sectorSize of [512, 4096]) {
  const name = `a device with sectors of ${sectorSize} bytes`;

  for (const io of ["libc", "deno"]) {
    loopTest(
      `${name} is read and written, with io=${io}`,
      () =>
        onDevice(sectorSize, async (device, _dir, content) => {
          const file = { driver: "host_device", filename: device.path, io };
          await using disk = await openImage({ driver: "raw", file });
          assertEquals(disk.size, SIZE);
          assertEquals(await disk.read(1001, 5000), content.slice(1001, 6001));
          await disk.write(4095, new Uint8Array([1, 2, 3]));
          content.set([1, 2, 3], 4095);
          await disk.writeZeroes(10_000, 100_000);
          content.fill(0, 10_000, 110_000);
          await disk.writeZeroes(200_001, 100_000, { unmap: true });
          content.fill(0, 200_001, 300_001);
          await disk.flush();
          assertEquals(await disk.read(0, SIZE), content);
          await disk.discard(1 << 20, 1 << 20);
          await disk.discard(513, 3);
          const extents = await Array.fromAsync(disk.extents());
          assertEquals(extents.map((one) => [kindOf(one), one.length]), [
            ["data", SIZE],
          ]);
        }),
    );
  }

  loopTest(
    `${name} holds qcow2, up to its end`,
    () =>
      onDevice(sectorSize, async (device) => {
        await createImage("qcow2", device.path, { size: 2 * SIZE });
        await using disk = await openImage(device.path);
        assertEquals(disk.format, "qcow2");
        assertEquals(await disk.read(0, 1000), new Uint8Array(1000));
        const data = new Uint8Array(1 << 20).fill(7);
        await disk.write(12_345, data);
        await disk.node.snapshots!.create({ name: "full" });
        assertEquals(await disk.read(12_345, data.length), data);
        assertEquals(
          await codeOf(disk.write(0, new Uint8Array(SIZE))),
          "ENOSPC",
        );
        const { corruptions } = await disk.check();
        assertEquals(corruptions, 0);
        await disk.resize(SIZE);
      }),
  );

  loopTest(
    `${name} works as a backing file, and as the target of convert`,
    () =>
      onDevice(sectorSize, async (device, dir, content) => {
        const overlay = dir.file("overlay");
        await createImage("qcow2", overlay, {
          size: SIZE,
          backing_file: device.path,
          backing_fmt: "raw",
        });
        {
          await using disk = await openImage(overlay, { gate: "allow" });
          await disk.write(100, new Uint8Array([1, 2, 3]));
          content.set([1, 2, 3], 100);
          assertEquals(await disk.read(0, SIZE), content);
          await createImage("qcow2", dir.file("copy"), { size: SIZE });
          await using copy = await openImage(dir.file("copy"));
          await convert([disk.node], copy.node, { targetIsZero: true });
        }
        await createImage("raw", device.path, { size: SIZE });
        await using copy = await openImage(dir.file("copy"));
        await using target = await openImage(device.path, { format: "raw" });
        await convert([copy.node], target.node);
        assertEquals(await target.read(0, SIZE), content);
      }),
  );

  loopTest(
    `${name} keeps its size`,
    () =>
      onDevice(sectorSize, async (device) => {
        await using disk = await openImage(device.path, { format: "raw" });
        const { node } = disk;
        await disk.resize(SIZE, { exact: true });
        await disk.resize(SIZE / 2);
        await assertRejects(
          () => disk.resize(SIZE / 2, { exact: true }),
          BlockError,
          "Cannot resize device files",
        );
        await assertRejects(
          () => disk.resize(2 * SIZE),
          BlockError,
          "Cannot grow device files",
        );
        await assertRejects(
          () => disk.resize(2 * SIZE, { preallocation: "full" }),
          BlockError,
          "Preallocation mode 'full' unsupported for this non-regular file",
        );
        const beyond = new Uint8Array(1024);
        assertEquals(await codeOf(node.writev!(SIZE, [beyond])), "ENOSPC");
        assertEquals(
          await codeOf(node.writev!(SIZE - 512, [beyond])),
          "ENOSPC",
        );
        assertEquals(await codeOf(node.writeZeroes!(SIZE, 1024)), "ENOSPC");
        assertEquals(disk.size, SIZE);
      }),
  );

  loopTest(
    `${name} takes no image larger than itself`,
    () =>
      onDevice(sectorSize, async ({ path }) => {
        await assertRejects(
          () => createImage("raw", path, { size: SIZE + 512 }),
          BlockError,
          "Cannot grow device files",
        );
        await assertRejects(
          () =>
            createImage("qcow2", path, { size: 512, preallocation: "full" }),
          BlockError,
          "Preallocation mode 'full' unsupported for this non-regular file",
        );
      }),
  );
}

loopTest(
  "a plain name may be a device; the file driver takes only files",
  () =>
    onDevice(512, async ({ path }, dir) => {
      Deno.symlinkSync(path, dir.file("link"));
      const devices: Source[] = [
        path,
        dir.file("link"),
        new URL(`file://${path}`),
        `host_device:${path}`,
        { driver: "raw", file: path },
        { driver: "raw", file: { filename: path } },
      ];
      for (const source of devices) {
        await using disk = await openImage(source, { readOnly: true });
        assertEquals(disk.node.children.file!.driver.name, "host_device");
      }
      for (
        const source of [`file:${path}`, { driver: "file", filename: path }]
      ) {
        await assertRejects(
          () => openImage(source),
          BlockError,
          `'file' driver requires '${path}' to be a regular file`,
        );
      }
      for (const driver of ["host_device", "host_cdrom"]) {
        await assertRejects(
          () => openImage(`${driver}:${dir.file("disk")}`),
          BlockError,
          `'${driver}' driver requires '${dir.file("disk")}' to be either a ` +
            "character or block device",
        );
      }
      await using drive = await openImage(`host_cdrom:${path}`);
      assertEquals(drive.size, SIZE);
    }),
);

loopTest(
  "a device made into an image does not look like its old content",
  () =>
    onDevice(512, async ({ path }) => {
      await createImage("qcow2", path, { size: 1 << 20 });
      await createImage("raw", path, { size: 1 << 20 });
      await using disk = await openImage(path, { readOnly: true });
      assertEquals(disk.format, "raw");
    }),
);

loopTest(
  "a write-protected device opens only for reading",
  async () => {
    await using dir = new TempDir();
    Deno.writeFileSync(dir.file("disk"), new Uint8Array(8192));
    using device = new LoopDevice(dir.file("disk"), 512, true);
    const stack = { driver: "raw", file: device.path };
    const message = "The device is not writable: Permission denied";
    await assertRejects(() => openImage(stack), BlockError, message);
    await assertRejects(
      () => createImage("raw", device.path, { size: 512 }),
      BlockError,
      message,
    );
    await using disk = await openImage({ ...stack, "read-only": "on" });
    assertEquals(await disk.read(0, 8192), new Uint8Array(8192));
  },
);

loopTest(
  "a device is not converted onto itself, under whatever names",
  () =>
    onDevice(512, async ({ path }, dir, content) => {
      Deno.symlinkSync(path, dir.file("link"));
      const names = [dir.file("link"), `host_device:${path}`];
      const args = ["convert", "-f", "raw", "-O", "qcow2", ...names];
      const { code, stderr } = await run([...BDRV, ...args]);
      assertEquals(code, 1);
      assertEquals(
        stderr,
        `bdrv: ${
          names[1]
        }: error while converting qcow2: it is also a source, ` +
          "and cannot be overwritten\n",
      );
      assertEquals(Deno.readFileSync(path), content);
    }),
);

Deno.test("character devices are empty disks", async () => {
  for (const name of ["null", "zero", "full", "urandom"]) {
    await using disk = await openImage(`/dev/${name}`, { format: "raw" });
    assertEquals(disk.size, 0);
    assertEquals(disk.node.children.file!.driver.name, "host_device");
    await assertRejects(
      () => createImage("raw", `/dev/${name}`, { size: 512 }),
      BlockError,
      "Cannot grow device files",
    );
  }
  // No header is found afterwards, but nothing blocks either.
  await assertRejects(
    () => createImage("qcow2", "/dev/null", { size: 512 }),
    BlockError,
  );
});

Deno.test("opening a pipe does not block", async () => {
  await using dir = new TempDir();
  const pipe = dir.file("pipe");
  new Deno.Command("mkfifo", { args: [pipe] }).outputSync();
  const message = `'file' driver requires '${pipe}' to be a regular file`;
  for (
    const use of [
      () => openImage(pipe),
      () => openImage(pipe, { format: "raw", readOnly: true }),
      () => createImage("raw", pipe, { size: 512 }),
      () => createImage("qcow2", `file:${pipe}`, { size: 512 }),
    ]
  ) await assertRejects(use, BlockError, message);
});
