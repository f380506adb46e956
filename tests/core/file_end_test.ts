import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../core/errors.ts";
import { FileEnd } from "../../core/file_end.ts";
import type { BlockNode } from "../../core/node.ts";
import { openNode } from "../../core/open.ts";
import { MemoryStore } from "../../mod.ts";

/** A file in memory, and the sizes that it was given. */
async function open(
  truncate?: (size: number, before: number) => void,
): Promise<{ file: BlockNode; sizes: number[] }> {
  const file = await openNode({ driver: "memory", store: new MemoryStore() });
  const sizes: number[] = [];
  const resize = file.truncate!.bind(file);
  file.truncate = async (size) => {
    truncate?.(size, file.size);
    sizes.push(size);
    await resize(size);
  };
  return { file, sizes };
}

Deno.test("FileEnd grows a file in a few steps, and trims the excess", async () => {
  const { file, sizes } = await open();
  const end = new FileEnd(file, 512);
  for (let i = 0; i < 1000; i++) {
    assertEquals(await end.take(1024), 512 + i * 1024);
    assert(file.size >= 512 + (i + 1) * 1024);
  }
  assert(sizes.length < 12, `${sizes}`);
  await end.trim();
  assertEquals(file.size, 512 + 1000 * 1024);
});

Deno.test("FileEnd makes a file no longer than a single piece needs", async () => {
  const { file, sizes } = await open();
  const end = new FileEnd(file, 0);
  for (const size of [100, 200, 300]) {
    await end.take(100);
    await end.trim();
    assertEquals(file.size, size);
  }
  assertEquals(sizes, [100, 200, 300]);
});

Deno.test("FileEnd puts a tail behind what was taken, and later reuses its space", async () => {
  const { file } = await open();
  const end = new FileEnd(file, 0);
  await end.trim(new Uint8Array(4).fill(7));
  assertEquals(file.size, 0);
  for (const size of [10, 50]) {
    while (end.next < size) await end.take(10);
    await end.trim(new Uint8Array(4).fill(7));
    assertEquals(file.size, size + 4);
    const tail = new Uint8Array(4);
    await file.readv(size, [tail]);
    assertEquals(tail, new Uint8Array(4).fill(7));
  }
});

Deno.test("FileEnd takes no space where the file cannot grow", async () => {
  const { file } = await open((size) => {
    if (size > 1000) throw new BlockError("ENOSPC");
  });
  const end = new FileEnd(file, 0);
  for (let i = 0; i < 10; i++) await end.take(100);
  await assertRejects(() => end.take(100), BlockError);
  assertEquals(end.next, 1000);
  const limited = new FileEnd(file, 0, 500);
  await limited.take(500);
  const error = await assertRejects(() => limited.take(1), BlockError);
  assertEquals(error.code, "EFBIG");
  assertEquals(limited.next, 500);
});

Deno.test("FileEnd leaves a file that cannot shrink at its length", async () => {
  const { file } = await open((size, before) => {
    if (size < before) throw new BlockError("ENOTSUP");
  });
  const end = new FileEnd(file, 0);
  for (let i = 0; i < 10; i++) await end.take(100);
  await end.trim();
  assert(file.size > 1000);
  assertEquals(await end.take(100), 1000);
});

Deno.test("FileEnd hands out space in the order of the requests", async () => {
  const { file } = await open();
  const end = new FileEnd(file, 0);
  const pieces = [100, 200, 300, 400].map((length) => end.take(length));
  const trimmed = end.trim();
  const last = end.take(50);
  assertEquals(await Promise.all(pieces), [0, 100, 300, 600]);
  await trimmed;
  assertEquals(await last, 1000);
  assert(file.size >= 1050);
});

Deno.test("FileEnd knows from which offset on new space reads as zeroes", async () => {
  const { file } = await open();
  await file.truncate!(100);
  const end = new FileEnd(file, 60);
  assert(!end.isZeroFrom(await end.take(10)));
  assert(end.isZeroFrom(100));
  // Trimming discards the old content, but the tail is no zeroes either.
  await end.trim(new Uint8Array(4).fill(7));
  assertEquals(file.size, 74);
  assert(!end.isZeroFrom(70));
  assert(end.isZeroFrom(74));
  // A copy of the file may be longer.
  const copy = (await open()).file;
  await copy.truncate!(200);
  end.useFile(copy);
  assert(!end.isZeroFrom(74));
  assert(end.isZeroFrom(200));
});
