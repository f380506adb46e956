import { assertEquals } from "@std/assert";
import { applyLimits } from "../../core/limits.ts";
import type { BlockNode } from "../../core/node.ts";
import { openNode } from "../../core/open.ts";
import { BlockError, MemoryStore } from "../../mod.ts";

Deno.test("zeroes written as data do not wait behind a request that waits for them", async () => {
  const file = { driver: "memory", store: new MemoryStore(8192) };
  const below = await openNode({ driver: "raw", file });
  const begun = Promise.withResolvers<void>();
  const resume = Promise.withResolvers<void>();
  const node: BlockNode = {
    driver: below.driver,
    filename: "disk",
    size: 8192,
    readOnly: false,
    children: {},
    limits: { requestAlignment: 512, writeZeroesAlignment: 4096 },
    readv: (offset, iov) => below.readv(offset, iov),
    writev: (offset, iov) => below.writev!(offset, iov),
    async writeZeroes() {
      begun.resolve();
      await resume.promise;
      throw new BlockError("ENOTSUP");
    },
    status: (offset, length) => below.status(offset, length),
    close: () => below.close(),
  };
  const limited = await applyLimits(node);
  await limited.writev!(0, [new Uint8Array(8192).fill(1)]);
  const zeroing = limited.writeZeroes!(512, 2048);
  await begun.promise;
  // It covers only part of a unit, so it needs the unit exclusively.
  const writing = limited.writev!(1000, [new Uint8Array(100).fill(2)]);
  resume.resolve();
  await Promise.all([zeroing, writing]);
  const bytes = new Uint8Array(8192);
  await limited.readv(0, [bytes]);
  const at = (offset: number) => bytes[offset];
  assertEquals([511, 512, 1000, 1099, 1100, 2560].map(at), [1, 0, 2, 2, 0, 1]);
  await limited.close();
});
