import { assert, assertEquals } from "@std/assert";
import { alignRequests } from "../../core/alignment.ts";
import { type IoVector, vectorLength } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { openNode } from "../../core/open.ts";
import { MemoryStore } from "../../core/memory_store.ts";
import "../../mod.ts";
import { conformance } from "../conformance.ts";

/**
 * A disk in memory that takes whole units only, and whose requests take a
 * while, so that they interleave.
 */
async function strictNode(
  unit: number,
  store: MemoryStore,
): Promise<{ node: BlockNode; log: string[] }> {
  const below = await openNode({
    driver: "raw",
    file: { driver: "memory", store },
  });
  const log: string[] = [];
  const check = async (what: string, offset: number, length: number) => {
    assert(offset % unit === 0, `${what} at ${offset}`);
    assert(length % unit === 0, `${what} of ${length} bytes`);
    log.push(`${what} ${offset} ${length}`);
    for (let i = 0; i < 3; i++) await Promise.resolve();
  };
  const node: BlockNode = {
    driver: below.driver,
    filename: below.filename,
    get size() {
      return below.size;
    },
    readOnly: false,
    children: below.children,
    limits: { requestAlignment: unit },
    async readv(offset: number, iov: IoVector) {
      await check("read", offset, vectorLength(iov));
      await below.readv(offset, iov);
    },
    async writev(offset: number, iov: IoVector) {
      await check("write", offset, vectorLength(iov));
      const copy = iov.map((part) => part.slice());
      await Promise.resolve();
      await below.writev!(offset, copy);
    },
    async writeZeroes(offset, length, flags) {
      await check("zero", offset, length);
      await below.writeZeroes!(offset, length, flags);
    },
    async discard(offset, length) {
      await check("discard", offset, length);
      await below.discard!(offset, length);
    },
    status: (offset, length, flags) => below.status(offset, length, flags),
    close: () => below.close(),
  };
  return { node: alignRequests(node), log };
}

for (const unit of [512, 4096, 65536]) {
  conformance(`alignRequests() to ${unit} bytes`, {
    async open(size) {
      const store = new MemoryStore(size);
      return {
        node: (await strictNode(unit, store)).node,
        reopen: async () => (await strictNode(unit, store)).node,
      };
    },
  });
}

const cases: readonly [
  what: string,
  offset: number,
  length: number,
  log: string[],
][] = [
  ["a whole unit", 512, 512, ["write 512 512"]],
  ["part of a unit", 515, 3, ["read 512 512", "write 512 512"]],
  ["the start of a unit", 512, 3, ["read 512 512", "write 512 512"]],
  ["the end of a unit", 1000, 24, ["read 512 512", "write 512 512"]],
  ["a whole unit and the start of the next", 512, 600, [
    "read 1024 512",
    "write 512 1024",
  ]],
  ["parts of two", 1000, 100, [
    "read 512 1024",
    "write 512 1024",
  ]],
];

for (const [what, offset, length, expected] of cases) {
  Deno.test(`alignRequests() writes ${what} with no needless request`, async () => {
    const { node, log } = await strictNode(512, new MemoryStore(4096));
    await node.writev!(offset, [new Uint8Array(length).fill(7)]);
    assertEquals(log, expected);
    const all = new Uint8Array(4096);
    await node.readv(0, [all]);
    assertEquals(
      all,
      new Uint8Array(4096).fill(7, offset, offset + length),
    );
  });
}

Deno.test("alignRequests() restricts zeroes and discards to whole units", async () => {
  const { node, log } = await strictNode(512, new MemoryStore(4096));
  await node.discard!(100, 800);
  assertEquals(log, []);
  await node.discard!(100, 1000);
  assertEquals(log, ["discard 512 512"]);
  log.length = 0;
  await node.writeZeroes!(500, 1036);
  assertEquals(log, ["read 0 512", "write 0 512", "zero 512 1024"]);
});

Deno.test("alignRequests() leaves nodes alone that take any request", async () => {
  const file = { driver: "memory", store: new MemoryStore(512) };
  const node = await openNode({ driver: "raw", file });
  const { readv } = node;
  assertEquals(alignRequests(node).readv, readv);
});
