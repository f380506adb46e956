import { assertEquals, assertRejects } from "@std/assert";
import { openNode } from "../../core/open.ts";
import type { OptionValues } from "../../core/options.ts";
import { BlockError, createImage, MemoryStore, openImage } from "../../mod.ts";
import { conformance } from "../conformance.ts";

const KIB = 1024;

/**
 * A quorum of qcow2 images in memory, which can also be opened on their own.
 */
async function quorumOf(
  count: number,
  options: OptionValues,
  size = 64 * KIB,
) {
  const children = [];
  for (let i = 0; i < count; i++) {
    const file = { driver: "memory", store: new MemoryStore() };
    await createImage("qcow2", file, { size });
    children.push({ driver: "qcow2", file });
  }
  return { driver: "quorum", children, ...options };
}

function text(content: string): Uint8Array {
  return new TextEncoder().encode(content);
}

conformance("quorum", {
  async open(size) {
    const source = await quorumOf(3, { "vote-threshold": 2 }, size);
    const open = () => openNode(source);
    return { node: await open(), reopen: open };
  },
});

Deno.test("quorum returns what enough of its images agree on", async () => {
  const source = await quorumOf(3, { "vote-threshold": 2 });
  await using image = await openImage(source);
  const [a, b, c] = Object.values(image.node.children);
  await image.write(0, text("same"));
  await a!.writev!(0, [text("gone")]);
  assertEquals(await image.read(0, 4), text("same"));
  await b!.writev!(0, [text("lost")]);
  const error = await assertRejects(() => image.read(0, 4), BlockError);
  assertEquals(error.code, "EIO");
  // One failing image is outvoted; two are too many, and their error is
  // reported.
  b!.readv = () => Promise.reject(new BlockError("ENOSPC"));
  await assertRejects(() => image.read(0, 4), BlockError);
  await a!.writev!(0, [text("same")]);
  assertEquals(await image.read(0, 4), text("same"));
  c!.writev = () => Promise.reject(new BlockError("ENOSPC"));
  await image.write(0, text("more"));
  a!.writev = c!.writev;
  const full = await assertRejects(() => image.write(0, text("x")), BlockError);
  assertEquals(full.code, "ENOSPC");
});

Deno.test("quorum rewrites outvoted data, where permitted", async () => {
  for (const rewrites of [false, true]) {
    const options = { "vote-threshold": 2, "rewrite-corrupted": rewrites };
    await using image = await openImage(await quorumOf(3, options));
    const [a] = Object.values(image.node.children);
    await image.write(0, text("same"));
    await a!.writev!(0, [text("gone")]);
    assertEquals(await image.read(0, 4), text("same"));
    const own = new Uint8Array(4);
    await a!.readv(0, [own]);
    assertEquals(own, text(rewrites ? "same" : "gone"));
  }
});

Deno.test("quorum with read-pattern=fifo reads the first image that works", async () => {
  const options = { "vote-threshold": 1, "read-pattern": "fifo" };
  await using image = await openImage(await quorumOf(2, options));
  const [a, b] = Object.values(image.node.children);
  await a!.writev!(0, [text("a")]);
  await b!.writev!(0, [text("b")]);
  assertEquals(await image.read(0, 1), text("a"));
  a!.readv = () => Promise.reject(new BlockError("EIO"));
  assertEquals(await image.read(0, 1), text("b"));
  b!.readv = a!.readv;
  await assertRejects(() => image.read(0, 1), BlockError);
});
