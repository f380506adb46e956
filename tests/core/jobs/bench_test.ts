/** Which requests `bench()` sends, and when. @module */
import { assertEquals, assertRejects } from "@std/assert";
import { filterNode } from "../../../core/filter.ts";
import {
  bench,
  BlockError,
  type BlockNode,
  getDriver,
  MemoryStore,
  openImage,
} from "../../../mod.ts";

/** A disk that records its requests, and answers them later. */
async function slowDisk(size: number) {
  const store = new MemoryStore();
  store.write(0, new Uint8Array(size));
  const { node: below } = await openImage({ driver: "memory", store });
  const log: string[] = [];
  let inFlight = 0;
  let most = 0;
  const request = async (what: string, run: () => Promise<void>) => {
    log.push(what);
    most = Math.max(most, ++inFlight);
    await new Promise((resolve) => setTimeout(resolve, 0));
    await run();
    inFlight--;
  };
  const node: BlockNode = filterNode(getDriver("memory"), below, {
    readv: (offset, iov) =>
      request(`r${offset}`, () => below.readv(offset, iov)),
    writev: (offset, iov) =>
      request(`w${offset}`, () => below.writev!(offset, iov)),
    flush: () => request(`f while ${inFlight}`, async () => {}),
  });
  return { node, store, log, most: () => most };
}

Deno.test("bench() walks through the disk, and wraps around", async () => {
  const { node, log, most } = await slowDisk(1000);
  await bench(node, {
    count: 6,
    depth: 2,
    length: 100,
    step: 400,
    offset: 100,
  });
  assertEquals(log, ["r100", "r500", "r900", "r300", "r700", "r100"]);
  assertEquals(most(), 2);
});

Deno.test("bench() keeps as many requests in flight as it is asked to", async () => {
  const { node, most } = await slowDisk(100_000);
  await bench(node, { count: 100, depth: 17, length: 100 });
  assertEquals(most(), 17);
});

Deno.test("bench() writes the pattern", async () => {
  const { node, store } = await slowDisk(1000);
  const options = { write: true, count: 5, length: 200, pattern: 7 };
  await bench(node, options);
  const bytes = new Uint8Array(1000);
  store.read(0, bytes);
  assertEquals(bytes, new Uint8Array(1000).fill(7));
});

Deno.test("bench() flushes with nothing else in flight, unless told otherwise", async () => {
  const options = {
    write: true,
    count: 20,
    depth: 4,
    length: 10,
    flushInterval: 5,
  };
  const drained = await slowDisk(1000);
  await bench(drained.node, options);
  const flushes = drained.log.filter((what) => what.startsWith("f"));
  assertEquals(flushes, Array(4).fill("f while 0"));
  const other = await slowDisk(1000);
  await bench(other.node, { ...options, drain: false });
  const busy = other.log.filter((what) => /^f while [^0]/.test(what));
  assertEquals(busy.length > 0, true);
});

Deno.test("bench() reports the first error", async () => {
  const { node } = await slowDisk(1000);
  await assertRejects(
    () => bench(node, { count: 10, length: 300 }),
    BlockError,
    "Input/output error",
  );
});
