import { assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { compare, CompareError } from "../../../core/jobs/compare.ts";
import type { BlockNode } from "../../../core/node.ts";
import { openNode } from "../../../core/open.ts";
import { createImage, MemoryStore } from "../../../mod.ts";

const MiB = 1024 * 1024;

async function disk(format: string, size = 4 * MiB): Promise<BlockNode> {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage(format, file, { size });
  return await openNode({ driver: format, file });
}

Deno.test("compare() finds disks of different formats identical", async () => {
  const [a, b] = [await disk("raw"), await disk("qcow2")];
  const data = new Uint8Array(100_000).fill(3);
  for (const node of [a, b]) await node.writev!(MiB + 100, [data]);
  assertEquals(await compare(a, b), { outcome: "identical" });
});

Deno.test("compare() names the first sector that differs", async () => {
  const [a, b] = [await disk("raw"), await disk("qcow2")];
  const data = new Uint8Array(2 * MiB).fill(3);
  for (const node of [a, b]) await node.writev!(MiB, [data]);
  await b.writev!(2 * MiB + 1700, [new Uint8Array([9])]);
  const expected = { outcome: "content" as const, offset: 2 * MiB + 1536 };
  assertEquals(await compare(a, b), expected);
  assertEquals(await compare(b, a), expected);
});

Deno.test("compare() treats written zeroes and holes alike", async () => {
  const [a, b] = [await disk("qcow2"), await disk("qcow2")];
  await a.writev!(MiB, [new Uint8Array(100_000)]);
  assertEquals(await compare(a, b), { outcome: "identical" });
  assertEquals(await compare(a, b, { strict: true }), {
    outcome: "status",
    offset: 0,
  });
});

Deno.test("compare() looks past the shorter disk's end", async () => {
  const [a, b] = [await disk("qcow2"), await disk("qcow2", 6 * MiB)];
  assertEquals(await compare(a, b), { outcome: "identical" });
  assertEquals(await compare(a, b, { strict: true }), { outcome: "size" });
  await b.writev!(5 * MiB, [new Uint8Array([1])]);
  const expected = { outcome: "content" as const, offset: 5 * MiB };
  assertEquals(await compare(a, b), expected);
  assertEquals(await compare(b, a), expected);
});

Deno.test("compare() says whether the block status or a read failed", async () => {
  const [a, b] = [await disk("qcow2"), await disk("qcow2")];
  await a.writev!(0, [new Uint8Array(512).fill(1)]);
  a.readv = () => Promise.reject(new BlockError("EIO"));
  const reading = await assertRejects(() => compare(a, b), CompareError);
  assertEquals(reading.stage, "read");
  a.status = () => Promise.reject(new BlockError("EIO"));
  const looking = await assertRejects(() => compare(a, b), CompareError);
  assertEquals(looking.stage, "status");
});
