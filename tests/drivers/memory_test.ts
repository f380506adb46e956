import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../core/errors.ts";
import { createImage } from "../../core/create.ts";
import { openProtocol } from "../../core/open.ts";
import { registerDriver } from "../../core/registry.ts";
import { MemoryStore } from "../../core/memory_store.ts";
import { memoryDriver } from "../../drivers/memory.ts";
import { rawDriver } from "../../drivers/raw.ts";
import { conformance } from "../conformance.ts";
import { kindOf } from "../extents.ts";

registerDriver(memoryDriver);
registerDriver(rawDriver);

conformance("memory", {
  async open(size) {
    const store = new MemoryStore(size);
    const open = () => openProtocol({ driver: "memory", store });
    return { node: await open(), reopen: open };
  },
});

Deno.test("memory takes only as much space as was written", async () => {
  const store = new MemoryStore(8 * 1024 ** 4);
  await using node = disposable(
    await openProtocol({ driver: "memory", store }),
  );
  assertEquals(node.size, 8 * 1024 ** 4);
  await node.writev!(5 * 1024 ** 4, [new Uint8Array([1])]);
  assertEquals(store.allocated, 65536);
  const hole = await node.status(0, node.size);
  assertEquals([kindOf(hole), hole.length], ["zero", 5 * 1024 ** 4]);
  const data = await node.status(5 * 1024 ** 4, 1 << 20);
  assertEquals([kindOf(data), data.length], ["data", 65536]);
  await node.writeZeroes!(0, node.size);
  assertEquals(store.allocated, 0);
  await node.truncate!(2 ** 53 - 512);
  assertEquals(node.size, 2 ** 53 - 512);
});

Deno.test("memory forgets what truncation cut off", () => {
  const store = new MemoryStore();
  store.write(0, new Uint8Array(100_000).fill(1));
  store.truncate(70_000);
  store.truncate(100_000);
  const bytes = new Uint8Array(40_000);
  store.read(60_000, bytes);
  assert(bytes.subarray(0, 10_000).every((byte) => byte === 1));
  assert(bytes.subarray(10_000).every((byte) => byte === 0));
});

Deno.test("memory without a store has one of its own", async () => {
  const node = await openProtocol({ driver: "memory", size: "64k" });
  assertEquals(node.size, 65536);
  await node.close();
});

Deno.test("memory refuses options that do not fit", async () => {
  const store = new MemoryStore();
  const attempts: [() => Promise<unknown>, string][] = [
    [
      () => openProtocol({ driver: "memory", store, size: 1 }),
      "'size' is for a new store",
    ],
    [
      () => openProtocol({ driver: "memory", store: {} }),
      "expects a MemoryStore",
    ],
    [
      () => openProtocol({ driver: "memory", filename: "x" }),
      "Block protocol 'memory' doesn't support the option 'filename'",
    ],
    [
      () => createImage("raw", { driver: "memory" }, { size: 512 }),
      "without a 'store'",
    ],
  ];
  for (const [attempt, message] of attempts) {
    const error = await assertRejects(attempt, BlockError, message);
    assertEquals(error.code, "EINVAL");
  }
});

Deno.test("createImage() empties the store it is given", async () => {
  const store = new MemoryStore();
  store.write(0, new Uint8Array(100_000).fill(1));
  await createImage("raw", { driver: "memory", store }, { size: "1M" });
  assertEquals([store.size, store.allocated], [1 << 20, 0]);
});

function disposable<T extends { close(): Promise<void> }>(
  node: T,
): T & AsyncDisposable {
  return Object.assign(node, { [Symbol.asyncDispose]: () => node.close() });
}
