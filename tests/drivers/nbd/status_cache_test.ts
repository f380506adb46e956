/**
 * Block status that a server sent in advance saves round trips, and is never
 * stale.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { chainExtents } from "../../../core/extents.ts";
import { openNode } from "../../../core/open.ts";
import type { BlockNode, Image } from "../../../mod.ts";
import { serveNbd } from "../../../mod.ts";
import { memoryImage } from "./peers.ts";
import { streamPair } from "./streams.ts";

const UNIT = 65536;
const COUNT = 64;

/** A disk of which every other cluster is written. */
async function striped(): Promise<Image> {
  const image = await memoryImage(COUNT * UNIT);
  for (let i = 0; i < COUNT; i += 2) {
    await image.write(i * UNIT, new Uint8Array(UNIT).fill(1));
  }
  return image;
}

/** A client's node for a disk, and a counter of the messages it has sent. */
async function clientOf(image: Image): Promise<[BlockNode, () => number]> {
  let count = 0;
  const connect = async () => {
    const [ours, theirs] = streamPair();
    await serveNbd(image, theirs, { writable: true });
    return {
      ...ours,
      write(bytes: Uint8Array) {
        count++;
        return ours.write(bytes);
      },
    };
  };
  return [await openNode({ driver: "nbd", connect }), () => count];
}

Deno.test("walking over a disk takes two queries", async () => {
  await using image = await striped();
  const [node, sent] = await clientOf(image);
  const before = sent();
  const found = await Array.fromAsync(chainExtents(node));
  assertEquals(sent() - before, 2);
  assertEquals(found.length, COUNT);
  for (const [i, { length, zero }] of found.entries()) {
    assertEquals([length, zero], [UNIT, i % 2 === 1]);
  }
  await node.close();
});

Deno.test("ranges may be cut short, and queried in any order", async () => {
  await using image = await striped();
  const [node] = await clientOf(image);
  const isZero = async (offset: number, length: number) => {
    const extent = await node.status(offset, length);
    assert(extent.length <= length);
    return [extent.length, extent.zero];
  };
  const half = UNIT / 2;
  for (let i = 0; i < COUNT; i++) {
    assertEquals(await isZero(i * UNIT, half), [half, i % 2 === 1]);
    assertEquals(await isZero(i * UNIT + half, 9 * UNIT), [half, i % 2 === 1]);
  }
  assertEquals(await isZero(UNIT, 2 * UNIT), [UNIT, true]);
  assertEquals(await isZero(2 * UNIT, 2 * UNIT), [UNIT, false]);
  assertEquals(await isZero(0, UNIT), [UNIT, false]);
  assertEquals(await isZero(3 * UNIT, 2 * UNIT), [UNIT, true]);
  await node.close();
});

Deno.test("no status is older than a change", async () => {
  const bytes = new Uint8Array(UNIT).fill(7);
  const changes: ((node: BlockNode, at: number) => Promise<void>)[] = [
    (node, at) => node.writev!(at, [bytes]),
    (node, at) => node.writeZeroes!(at, UNIT),
    (node, at) => node.discard!(at, UNIT),
  ];
  for (const change of changes) {
    await using image = await striped();
    const [node] = await clientOf(image);
    await node.status(0, COUNT * UNIT);
    // From here on, everything that follows is cached.
    await node.status(UNIT, COUNT * UNIT);
    await node.status(2 * UNIT, COUNT * UNIT);
    const at = change === changes[0] ? 3 * UNIT : 4 * UNIT;
    const changing = change(node, at);
    // A query that overlaps with a change is not cached.
    const walk = (async () => {
      for (let i = 3; i < COUNT; i++) await node.status(i * UNIT, 40 * UNIT);
    })();
    await changing;
    const { zero } = await node.status(at, UNIT);
    assertEquals(zero, change !== changes[0]);
    await walk;
    await node.status(at - UNIT, UNIT);
    assertEquals((await node.status(at, UNIT)).zero, zero);
    await node.close();
  }
});

Deno.test("writes of others are seen before long", async () => {
  await using image = await striped();
  const [node] = await clientOf(image);
  await node.status(0, COUNT * UNIT);
  await node.status(UNIT, COUNT * UNIT);
  await image.write(3 * UNIT, new Uint8Array(UNIT).fill(1));
  await new Promise((resolve) => setTimeout(resolve, 1100));
  await node.status(2 * UNIT, UNIT);
  assertEquals((await node.status(3 * UNIT, UNIT)).zero, false);
  await node.close();
});
