import { assertEquals, assertRejects } from "@std/assert";
import { createImage } from "../../core/create.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import { openImage } from "../../core/image.ts";
import { openNode } from "../../core/open.ts";
import { registerDriver } from "../../core/registry.ts";
import { MemoryStore } from "../../core/memory_store.ts";
import { memoryDriver } from "../../drivers/memory.ts";
import { rawDriver } from "../../drivers/raw.ts";
import { conformance } from "../conformance.ts";
import { kindOf } from "../extents.ts";

registerDriver(memoryDriver);
registerDriver(rawDriver);

/** A format whose images begin with `FMT!`, as another result of probing. */
const markedDriver: BlockDriver = {
  name: "test-marked",
  role: "format",
  probe: (head) =>
    String.fromCharCode(...head.subarray(0, 4)) === "FMT!" ? 100 : 0,
  open: (_options, context) => context.openChild("file"),
};
registerDriver(markedDriver);

function memory(store: MemoryStore) {
  return { driver: "memory", store };
}

const text = (value: string) => new TextEncoder().encode(value);

conformance("raw", {
  async open(size) {
    const file = memory(new MemoryStore(size));
    const open = () => openNode({ driver: "raw", file });
    return { node: await open(), reopen: open };
  },
});

conformance("raw, at an offset", {
  async open(size) {
    const store = new MemoryStore(size + 1536);
    store.write(0, new Uint8Array(1000).fill(0xcc));
    const open = () =>
      openNode({ driver: "raw", offset: 1536, file: memory(store) });
    return { node: await open(), reopen: open };
  },
});

conformance("raw, in a window", {
  fixedSize: true,
  async open(size) {
    const store = new MemoryStore(size + 5000);
    store.write(0, new Uint8Array(1000).fill(0xcc));
    store.write(size + 1000, new Uint8Array(4000).fill(0xcc));
    const source = { driver: "raw", offset: 1000, size, file: memory(store) };
    const open = () => openNode(source);
    return { node: await open(), reopen: open };
  },
});

conformance("raw, found by probing", {
  async open(size) {
    const file = memory(new MemoryStore(size));
    const open = () => openNode({ file });
    return { node: await open(), reopen: open };
  },
});

Deno.test("raw ends with the file, rounded up to sectors", async () => {
  const cases = [
    [0, 0, 0],
    [1, 0, 512],
    [512, 0, 512],
    [1000, 513, 512], // As in QEMU: the file counts 1049600 bytes, of which 1048600 are left.
    [1049576, 1000, 1049088],
  ];
  for (const [fileSize, offset, size] of cases) {
    await using image = await openImage({
      driver: "raw",
      offset,
      file: memory(new MemoryStore(fileSize)),
    });
    assertEquals(image.size, size, `${fileSize} from ${offset}`);
  }
});

Deno.test("raw gives access to all of an odd file's last sector", async () => {
  const store = new MemoryStore();
  store.write(0, text("abc"));
  await using image = await openImage({ driver: "raw", file: memory(store) });
  assertEquals(await image.read(1, 4), new Uint8Array([98, 99, 0, 0]));
  await image.write(500, text("tail"));
  assertEquals([store.size, image.size], [504, 512]);
});

Deno.test("raw does not leave its window", async () => {
  const store = new MemoryStore(4096);
  store.write(0, new Uint8Array(4096).fill(9));
  const source = {
    driver: "raw",
    offset: 512,
    size: 1024,
    file: memory(store),
  };
  await using image = await openImage(source);
  assertEquals(image.size, 1024);
  await image.writeZeroes(0, 1024);
  await assertRejects(() => image.write(1023, text("xy")), BlockError);
  const past = await assertRejects(
    () => image.node.writev!(1023, [text("xy")]),
    BlockError,
  );
  assertEquals(past.code, "ENOSPC");
  const read = await assertRejects(
    () => image.node.readv(1024, [new Uint8Array(1)]),
    BlockError,
  );
  assertEquals(read.code, "EINVAL");
  const resize = await assertRejects(
    () => image.resize(2048),
    BlockError,
    "Cannot resize fixed-size raw disks",
  );
  assertEquals(resize.code, "ENOTSUP");
  const bytes = new Uint8Array(4096);
  store.read(0, bytes);
  assertEquals(bytes.indexOf(0), 512);
  assertEquals(bytes.lastIndexOf(0), 1535);
});

Deno.test("raw refuses windows that do not fit, as QEMU does", async () => {
  const file = memory(new MemoryStore(2048));
  const cases: [{ offset?: number; size?: number }, string][] = [
    [
      { offset: 4096 },
      "Offset (4096) cannot be greater than size of the containing file (2048)",
    ],
    [
      { offset: 1024, size: 2048 },
      "The sum of offset (1024) and size (2048) has to be smaller or equal " +
      "to the  actual size of the containing file (2048)",
    ],
    [{ size: 1000 }, "Specified size is not multiple of 512"],
  ];
  for (const [options, message] of cases) {
    const error = await assertRejects(
      () => openNode({ driver: "raw", ...options, file }),
      BlockError,
      message,
    );
    assertEquals([error.code, error.message], ["EINVAL", message]);
  }
});

Deno.test("raw shifts its file's extents", async () => {
  const store = new MemoryStore(1 << 20);
  store.write(65536, new Uint8Array(65536).fill(1));
  const source = { driver: "raw", offset: 32768, file: memory(store) };
  const node = await openNode(source);
  const first = await node.status(0, node.size);
  assertEquals(
    [kindOf(first), first.length, first.hostOffset, first.file],
    ["zero", 32768, 32768, node.children.file],
  );
  const second = await node.status(32768, node.size - 32768);
  assertEquals(
    [kindOf(second), second.length, second.hostOffset],
    ["data", 65536, 65536],
  );
  await node.close();
});

Deno.test("raw found by probing stays raw", async () => {
  const store = new MemoryStore(4096);
  const warnings: string[] = [];
  await using image = await openImage({ file: memory(store) }, {
    report: (line) => warnings.push(line),
  });
  assertEquals(image.format, "raw");
  assertEquals(warnings.length, 1);
  const attempts = [
    () => image.write(0, text("FMT!")),
    () => image.writev(0, [text("F"), text("MT"), text("!rest")]),
    // Two concurrent writes that are harmless alone.
    () => Promise.all([image.write(0, text("FM")), image.write(2, text("T!"))]),
  ];
  for (const attempt of attempts) {
    const error = await assertRejects(attempt, BlockError);
    assertEquals(error.code, "EPERM");
  }
  await image.write(0, text("fine"));
  await image.write(1024, text("FMT!"));
  await image.write(2000, new Uint8Array(1000).fill(3));
  assertEquals(await image.read(0, 4), text("fine"));
  const back = new Uint8Array(1000);
  store.read(2000, back);
  assertEquals(back, new Uint8Array(1000).fill(3));
});

Deno.test("raw, named explicitly, takes any content", async () => {
  const store = new MemoryStore(4096);
  await using image = await openImage({ driver: "raw", file: memory(store) });
  await image.write(0, text("FMT!"));
  assertEquals(await image.read(0, 4), text("FMT!"));
});

Deno.test("raw needs a size to be created, and rounds it up", async () => {
  const store = new MemoryStore();
  const error = await assertRejects(
    () => createImage("raw", memory(store)),
    BlockError,
    "Image creation needs a size parameter",
  );
  assertEquals(error.code, "EINVAL");
  await createImage("raw", memory(store), { size: 1000 });
  assertEquals(store.size, 1024);
});
