import { assertEquals } from "@std/assert";
import { Buffers } from "../../../drivers/nbd/buffers.ts";

const KIB = 1024;

/** Take and return so many buffers of a size at once. */
function use(buffers: Buffers, length: number, count: number): Set<unknown> {
  const taken = Array.from({ length: count }, () => buffers.take(length));
  for (const bytes of taken) buffers.give(bytes);
  return new Set(taken.map(({ buffer }) => buffer));
}

/** How many of the buffers that are used twice are the same. */
function reused(buffers: Buffers, length: number, count: number): number {
  const before = use(buffers, length, count);
  const after = use(buffers, length, count);
  return after.intersection(before).size;
}

Deno.test("buffers are used again, whatever sizes earlier clients have used", () => {
  const buffers = new Buffers();
  for (const kib of [256, 1024, 4, 64, 2048, 256]) {
    const length = kib * KIB + 28;
    // As many as the pool has room for.
    use(buffers, length, Math.ceil(40 * KIB / kib));
    assertEquals(reused(buffers, length, 8), 8, `${kib} KiB`);
  }
});

Deno.test("clients with requests of different sizes share the pool", () => {
  const buffers = new Buffers();
  use(buffers, 256 * KIB, 200);
  for (let round = 0; round < 3; round++) {
    use(buffers, 1024 * KIB, 4);
    assertEquals(reused(buffers, 64 * KIB, 16), 16);
  }
  assertEquals(reused(buffers, 1024 * KIB, 4), 4);
});

Deno.test("a buffer has the requested length, and is nobody else's", () => {
  const buffers = new Buffers();
  const lengths = [1, 2047, 2048, 4096, 65_500, 65_536, 4_194_304, 5_000_000];
  for (const length of [...lengths, ...lengths]) {
    const [one, other] = [buffers.take(length), buffers.take(length)];
    assertEquals([one.length, other.length], [length, length]);
    assertEquals(one.buffer === other.buffer, false);
    buffers.give(one);
    buffers.give(other);
  }
});
