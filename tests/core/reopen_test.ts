/** Reopening an image while it is in use. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  type BlockNode,
  createImage,
  findDriver,
  insertFilter,
  MemoryStore,
  openImage,
  registerDriver,
  ThrottleGroup,
} from "../../mod.ts";
import { isLibcAvailable } from "../platforms.ts";
import { qemuTest, run, TempDir } from "../qemu.ts";

const SIZE = 1 << 20;

/** Called whenever a node of the driver below opens or closes. */
let onStep: (what: string) => Promise<void> = () => Promise.resolve();

function stepDriver(): string {
  const name = "reopen-test-step";
  if (!findDriver(name)) {
    registerDriver({
      name,
      role: "filter",
      async open(_options, context) {
        const file = await context.openChild("file");
        await onStep("open");
        const node: BlockNode = {
          driver: findDriver(name)!,
          filename: file.filename,
          readOnly: context.readOnly,
          get size() {
            return file.size;
          },
          children: { file },
          readv: (offset, iov) => file.readv(offset, iov),
          writev: (offset, iov, flags) => file.writev!(offset, iov, flags),
          truncate: (size) => file.truncate!(size),
          flush: () => file.flush!(),
          status: (offset, length) => file.status(offset, length),
          close: () => onStep("close"),
        };
        return node;
      },
    });
  }
  return name;
}

async function fails(
  code: string,
  attempt: () => Promise<unknown>,
): Promise<string> {
  const error = await assertRejects(attempt, BlockError);
  assertEquals(error.code, code, error.message);
  return error.message;
}

async function memoryImage(): Promise<{ driver: string; store: MemoryStore }> {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: SIZE });
  return file;
}

Deno.test("reopen() switches to read-only, and back to writing", async () => {
  const file = await memoryImage();
  const sources = [
    { driver: "qcow2", file },
    { file },
    { driver: "qcow2", file: { driver: "blkdebug", image: file } },
    { driver: "qcow2", file: { driver: "raw", file } },
  ];
  for (const source of sources) {
    await using image = await openImage(source);
    await image.write(0, new Uint8Array([1, 2]));
    await image.reopen({ readOnly: true });
    assertEquals([image.readOnly, image.node.children.file!.readOnly], [
      true,
      true,
    ]);
    await fails("EACCES", () => image.write(0, new Uint8Array(1)));
    assertEquals(await image.read(0, 2), new Uint8Array([1, 2]));
    await image.reopen({ readOnly: false });
    await image.write(1, new Uint8Array([3]));
    assertEquals(await image.read(0, 2), new Uint8Array([1, 3]));
    const { corruptions, leaks } = await image.check();
    assertEquals([corruptions, leaks], [0, 0]);
  }
});

Deno.test("a failed reopen() leaves the image as it was", async () => {
  await using image = await openImage({
    driver: "qcow2",
    file: await memoryImage(),
  });
  await image.write(0, new Uint8Array([1]));
  await fails(
    "EINVAL",
    () => image.reopen({ readOnly: true, options: { nonsense: 1 } }),
  );
  assertEquals(image.readOnly, false);
  await image.write(1, new Uint8Array([2]));
  assertEquals(await image.read(0, 2), new Uint8Array([1, 2]));
  await fails("EINVAL", () => image.reopen({ options: { driver: "raw" } }));
  await fails("EINVAL", () => image.reopen({ readOnly: 1 as never }));
});

Deno.test("an image that cannot be opened again is closed", async () => {
  const file = await memoryImage();
  const image = await openImage({
    driver: "qcow2",
    file: { driver: stepDriver(), file },
  });
  onStep = (what) =>
    what === "open" ? Promise.reject(new BlockError("EIO")) : Promise.resolve();
  const message = await fails("EIO", () => image.reopen({ readOnly: true }));
  onStep = () => Promise.resolve();
  assert(message.includes("closed"), message);
  await fails("EBADF", () => image.read(0, 1));
  await image.close();
});

Deno.test("requests wait while an image is reopened", async () => {
  await using image = await openImage({
    driver: "qcow2",
    file: { driver: stepDriver(), file: await memoryImage() },
  });
  await using beside = await openImage(image.node);
  const requests: Promise<unknown>[] = [];
  onStep = () => {
    requests.push(beside.write(requests.length, new Uint8Array([7])));
    return Promise.resolve();
  };
  const before = image.write(SIZE - 1, new Uint8Array([9]));
  await image.reopen({ options: { "file.read-only": false } });
  onStep = () => Promise.resolve();
  await Promise.all([before, ...requests]);
  assertEquals(requests.length, 2);
  assertEquals(await image.read(0, 3), new Uint8Array([7, 7, 0]));
  assertEquals(await image.read(SIZE - 1, 1), new Uint8Array([9]));
  assertEquals(beside.node, image.node);
});

Deno.test("a node's own options change without reopening it", async () => {
  let steps = 0;
  await using image = await openImage({
    driver: "qcow2",
    file: { driver: stepDriver(), file: await memoryImage() },
  });
  onStep = () => Promise.resolve(void steps++);
  const { node } = image;
  await image.reopen({ options: { "l2-cache-size": 1 << 16 } });
  assertEquals([image.node, steps], [node, 0]);
  await image.reopen({ readOnly: true });
  assertEquals(steps, 2);
  onStep = () => Promise.resolve();
});

Deno.test("reopen() keeps filters inserted above, and the user's own nodes", async () => {
  const base = await openImage({
    driver: "qcow2",
    file: await memoryImage(),
  });
  await using image = await openImage({
    driver: "qcow2",
    file: await memoryImage(),
    backing: base.node,
  });
  const group = new ThrottleGroup({});
  const throttle = { driver: "throttle", "throttle-group": group };
  const filter = await insertFilter(image.node, throttle);
  await image.reopen({ readOnly: true });
  assertEquals([image.node, image.readOnly], [filter, true]);
  // A backing file of another image remains that.
  await base.reopen({ readOnly: true });
  await fails("EACCES", () => base.write(0, new Uint8Array(1)));
  await base.reopen({ readOnly: false });
  await base.write(0, new Uint8Array([4]));
  assertEquals(await image.read(0, 1), new Uint8Array([4]));
  await base.close();
  assertEquals(await image.read(0, 1), new Uint8Array([4]));
});

Deno.test("raw stays raw, whatever has been written to it", async () => {
  const store = new MemoryStore(SIZE);
  const file = { driver: "memory", store };
  await using image = await openImage({ file });
  const { store: other } = await memoryImage();
  const head = new Uint8Array(512);
  other.read(0, head);
  await fails("EPERM", () => image.write(0, head));
  store.write(0, head);
  await image.reopen({ readOnly: true });
  assertEquals(image.format, "raw");
});

if (isLibcAvailable()) {
  qemuTest("locks are held while an image is reopened", async () => {
    await using dir = new TempDir();
    const filename = dir.file("disk.qcow2");
    await createImage("qcow2", filename, { size: SIZE });
    await using image = await openImage({
      driver: "qcow2",
      file: { driver: stepDriver(), file: { driver: "file", filename } },
    });
    let steps = 0;
    onStep = async () => {
      steps++;
      // Neither this process nor another program gets in between.
      await fails("EAGAIN", () => openImage(filename));
      const { code, stderr } = await run(["qemu-io", "-c", "quit", filename]);
      assertEquals([code, stderr.includes("Failed to get")], [1, true], stderr);
    };
    for (const readOnly of [true, false, true]) {
      await image.reopen({ readOnly });
    }
    onStep = () => Promise.resolve();
    assertEquals(steps, 6);
    // A reader lets others read.
    await using _reader = await openImage(filename, { readOnly: true });
    await fails("EAGAIN", () => image.reopen({ readOnly: false }));
    assertEquals(image.readOnly, true);
    await image.read(0, 1);
  }, ["qemu-io"]);
}
