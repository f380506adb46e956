/** Images of read-only formats read as other programs say. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { allocate } from "../../../core/bytes.ts";
import { openNode } from "../../../core/open.ts";
import { isEqual } from "../../../core/runtime.ts";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
} from "../../../mod.ts";
import { Random } from "../../model.ts";
import { contentOf, storeOf } from "../qcow2/bytes.ts";
import { bytesOf, GOLDEN } from "./golden.ts";

async function fileOf(name: string) {
  return { driver: "memory", store: storeOf(await bytesOf(name)) };
}

for (const { name, format, size, sha256 } of GOLDEN) {
  Deno.test(`golden ${name} reads as other programs say`, async () => {
    const file = await fileOf(name);
    // Found by probing.
    await using image = await openImage({ file }, { readOnly: true });
    assertEquals([image.format, image.size], [format, size]);
    const content = new Uint8Array(await image.read(0, size));
    const sum = await crypto.subtle.digest("SHA-256", content);
    assertEquals(new Uint8Array(sum).toHex(), sha256);
  });

  Deno.test(`golden ${name} reads correctly in any pieces`, async () => {
    const file = await fileOf(name);
    await using image = await openImage({ file }, { readOnly: true });
    const content = new Uint8Array(await image.read(0, size));
    const random = new Random(7);
    const reads = Array.from({ length: 60 }, async () => {
      const offset = random.below(size);
      const length = 1 + random.below(Math.min(size - offset, 300_000));
      const cut = random.below(length + 1);
      const target = allocate(length).fill(0xee);
      await image.readv(offset, [
        target.subarray(0, cut),
        target.subarray(cut),
      ]);
      return isEqual(target, content.subarray(offset, offset + length));
    });
    assertEquals((await Promise.all(reads)).every(Boolean), true);
    const pieces = image.readable({ offset: 1, chunkSize: 7777 });
    const bytes = await new Response(pieces as ReadableStream).bytes();
    assertEquals(isEqual(bytes, content.subarray(1)), true);
    await assertRejects(() => image.read(size - 1, 2), BlockError);
  });

  Deno.test(`golden ${name} reports what its ranges hold`, async () => {
    const file = await fileOf(name);
    await using image = await openImage({ file }, { readOnly: true });
    const content = await image.read(0, size);
    let next = 0;
    for (let offset = 0; offset < size;) {
      const extent = await image.node.status(offset, size - offset);
      const { length, zero, allocated, file, hostOffset } = extent;
      assert(length >= 1 && offset + length <= size);
      assert(allocated, `not allocated at ${offset}`);
      const part = content.subarray(offset, offset + length);
      if (zero) assert(part.every((byte) => byte === 0), `zero at ${offset}`);
      if (file) {
        const stored = allocate(length);
        await file.readv(hostOffset!, [stored]);
        assertEquals(isEqual(stored, part), true);
      }
      offset += length;
      next = offset;
    }
    assertEquals(next, size);
  });
}

Deno.test("read-only formats cannot be opened for writing", async () => {
  for (const { name, format } of GOLDEN) {
    const file = await fileOf(name);
    const before = await bytesOf(name);
    const error = await assertRejects(
      () => openImage({ driver: format, file }),
      BlockError,
    );
    assertEquals([error.code, error.message.endsWith("Image is read-only")], [
      "EACCES",
      true,
    ]);
    await using image = await openImage({
      driver: format,
      file,
      "auto-read-only": true,
    });
    assertEquals(image.readOnly, true);
    await assertRejects(() => image.write(0, new Uint8Array(1)), BlockError);
    await assertRejects(() => image.check(), BlockError);
    assertEquals(isEqual(contentOf(file.store), before), true);
    const target = { driver: "memory", store: new MemoryStore() };
    const creating = await assertRejects(
      () => createImage(format, target, { size: 1024 }),
      BlockError,
    );
    assertEquals(
      creating.message,
      `Format driver '${format}' does not support image creation`,
    );
  }
});

Deno.test("an image of a read-only format can be a backing file", async () => {
  for (const { name, format, size } of GOLDEN) {
    const backing = { driver: format, file: await fileOf(name) };
    const file = { driver: "memory", store: new MemoryStore() };
    await createImage("qcow2", file, { size });
    await using image = await openImage({ driver: "qcow2", file, backing });
    await using plain = await openImage(backing, { readOnly: true });
    const content = await plain.read(0, size);
    await image.write(9999, new Uint8Array(5).fill(3));
    content.fill(3, 9999, 10004);
    assertEquals(isEqual(await image.read(0, size), content), true);
  }
});

Deno.test("a chunk is decoded once for concurrent readers", async () => {
  const store = storeOf(await bytesOf("lzma.dmg"));
  const node = await openNode({
    driver: "dmg",
    "read-only": true,
    file: { driver: "memory", store },
  });
  let reads = 0;
  const { file } = node.children;
  node.replaceChild!(
    "file",
    new Proxy(file!, {
      get(target, key) {
        if (key === "readv") reads++;
        const value = Reflect.get(target, key, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    }),
  );
  const parts = Array.from({ length: 20 }, () => allocate(100));
  await Promise.all(parts.map((part, i) => node.readv(i * 100, [part])));
  assertEquals(reads, 1);
  await node.close();
});
