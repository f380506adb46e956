import { assert, assertEquals, assertRejects } from "@std/assert";
import { BlockError } from "../../../core/errors.ts";
import { filterNode } from "../../../core/filter.ts";
import { convert } from "../../../core/jobs/convert.ts";
import type { BlockNode, Extent, WriteFlags } from "../../../core/node.ts";
import {
  createImage,
  getDriver,
  MemoryStore,
  openImage,
} from "../../../mod.ts";

const MiB = 1024 * 1024;

/** A node on an array that records its requests. */
class ArrayNode implements BlockNode {
  readonly driver = getDriver("raw");
  readonly filename = "array";
  readonly readOnly = false;
  readonly children = {};
  readonly calls: string[] = [];
  /** Requests in flight, and their peak. */
  inFlight = 0;
  mostInFlight = 0;
  /** The duration of each request, in milliseconds. */
  delay = 0;
  /** The offset at which requests fail. */
  failAt = Infinity;

  constructor(
    readonly bytes: Uint8Array,
    /** Ends of extents, data and holes alternating. */
    readonly extents: readonly number[] = [bytes.length],
  ) {}

  get size(): number {
    return this.bytes.length;
  }

  async readv(offset: number, iov: readonly Uint8Array[]): Promise<void> {
    await this.#perform("read", offset, iov[0].length);
    iov[0].set(this.bytes.subarray(offset, offset + iov[0].length));
  }

  async writev(
    offset: number,
    iov: readonly Uint8Array[],
    flags?: WriteFlags,
  ): Promise<void> {
    flags?.placed?.();
    const copy = iov[0].slice();
    await this.#perform("write", offset, copy.length);
    this.bytes.set(copy, offset);
  }

  async writeZeroes(offset: number, length: number): Promise<void> {
    await this.#perform("zero", offset, length);
    this.bytes.fill(0, offset, offset + length);
  }

  status(offset: number, length: number): Promise<Extent> {
    const index = this.extents.findIndex((end) => offset < end);
    return Promise.resolve({
      length: Math.min(length, this.extents[index] - offset),
      allocated: true,
      zero: index % 2 !== 0,
    });
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  async #perform(verb: string, offset: number, length: number) {
    this.calls.push(`${verb} ${offset} ${length}`);
    if (offset <= this.failAt && this.failAt < offset + length) {
      throw new BlockError("ENOSPC");
    }
    if (this.delay === 0) return;
    this.mostInFlight = Math.max(this.mostInFlight, ++this.inFlight);
    await new Promise((resolve) => setTimeout(resolve, this.delay));
    this.inFlight--;
  }

  offsets(verb: string): number[] {
    return this.calls.filter((call) => call.startsWith(verb))
      .map((call) => Number(call.split(" ")[1]));
  }
}

function filled(size: number): Uint8Array {
  return new Uint8Array(size).fill(7);
}

Deno.test("convert() reads no holes and writes none to a fresh target", async () => {
  const bytes = filled(8 * MiB);
  bytes.fill(0, MiB, 7 * MiB);
  const source = new ArrayNode(bytes, [MiB, 7 * MiB, 8 * MiB]);
  const target = new ArrayNode(new Uint8Array(8 * MiB));
  await convert([source], target, { targetIsZero: true });
  assertEquals(target.bytes, bytes);
  assertEquals(source.offsets("read"), [0, 7 * MiB]);
  assertEquals(target.offsets("write"), [0, 7 * MiB]);
  assertEquals(target.offsets("zero"), []);
});

Deno.test("convert() looks for holes in the file below sparse data", async () => {
  const bytes = filled(8 * MiB);
  bytes.fill(0, MiB, 7 * MiB);
  const file = new ArrayNode(bytes, [MiB, 7 * MiB, 8 * MiB]);
  for (const sparse of [true, false]) {
    const source = new ArrayNode(bytes, [8 * MiB]);
    const status = source.status.bind(source);
    source.status = async (offset, length) => ({
      ...await status(offset, length),
      ...{ file, hostOffset: offset, sparse },
    });
    const target = new ArrayNode(new Uint8Array(8 * MiB));
    await convert([source], target, { targetIsZero: true });
    assertEquals(target.bytes, bytes);
    const reads = sparse ? [0, 7 * MiB] : [0, 2 * MiB, 4 * MiB, 6 * MiB];
    assertEquals(source.offsets("read"), reads);
  }
});

Deno.test("convert() zeroes holes where the target may hold data", async () => {
  const bytes = filled(2 * MiB);
  bytes.fill(0, MiB);
  const source = new ArrayNode(bytes, [MiB, 2 * MiB]);
  const target = new ArrayNode(filled(2 * MiB));
  await convert([source], target);
  assertEquals(target.bytes, bytes);
  assertEquals(target.calls.at(-1), `zero ${MiB} ${MiB}`);
});

Deno.test("convert() detects zeroes in data", async () => {
  const bytes = filled(MiB);
  bytes.fill(0, 100_000, 200_000);
  const target = new ArrayNode(new Uint8Array(MiB));
  await convert([new ArrayNode(bytes)], target, { targetIsZero: true });
  assertEquals(target.bytes, bytes);
  assertEquals(target.calls, [
    "write 0 102400",
    `write 196608 ${MiB - 196608}`,
  ]);
});

Deno.test("convert() with sparseSize 0 writes everything", async () => {
  const source = new ArrayNode(new Uint8Array(3 * MiB), [0, 3 * MiB]);
  const target = new ArrayNode(filled(3 * MiB));
  await convert([source], target, { targetIsZero: true, sparseSize: 0 });
  assertEquals(target.bytes, new Uint8Array(3 * MiB));
  assertEquals(target.offsets("zero"), []);
  assertEquals(source.calls, []);
});

Deno.test("convert() concatenates sources, each in whole sectors", async () => {
  const target = new ArrayNode(filled(2048));
  const sources = [new ArrayNode(filled(1000)), new ArrayNode(filled(700))];
  await convert(sources, target);
  const expected = filled(2048);
  expected.fill(0, 1000, 1024);
  expected.fill(0, 1724);
  assertEquals(target.bytes, expected);
});

Deno.test("convert() joins data in many extents into large requests", async () => {
  const ends = Array.from({ length: 32 }, (_, i) => (i >> 1) * 65536 + 65536);
  const source = new ArrayNode(filled(MiB), ends);
  const target = new ArrayNode(new Uint8Array(MiB));
  await convert([source], target, { targetIsZero: true });
  assertEquals(source.calls, [`read 0 ${MiB}`]);
});

Deno.test("convert() keeps several requests in flight if they take time", async () => {
  const source = new ArrayNode(filled(32 * MiB));
  const target = new ArrayNode(new Uint8Array(32 * MiB));
  source.delay = target.delay = 2;
  await convert([source], target, { targetIsZero: true, parallel: 4 });
  assertEquals(target.bytes, source.bytes);
  for (const { mostInFlight } of [source, target]) {
    assert(mostInFlight > 1 && mostInFlight <= 4);
  }
  // They still begin in this order.
  assertEquals(
    target.offsets("write"),
    target.offsets("write").toSorted(
      (a, b) => a - b,
    ),
  );
});

Deno.test("convert() reorders writes where permitted", async () => {
  const source = new ArrayNode(filled(32 * MiB));
  const target = new ArrayNode(new Uint8Array(32 * MiB));
  source.delay = target.delay = 2;
  await convert([source], target, { targetIsZero: true, outOfOrder: true });
  assertEquals(target.bytes, source.bytes);
  assert(target.mostInFlight > 1 && target.mostInFlight <= 8);
});

Deno.test("convert() reports where it failed, and starts no further requests", async () => {
  for (const delay of [0, 1]) {
    const source = new ArrayNode(filled(32 * MiB));
    const target = new ArrayNode(new Uint8Array(32 * MiB));
    source.delay = target.delay = delay;
    target.failAt = 7 * MiB + 5;
    const error = await assertRejects(
      () => convert([source], target, { targetIsZero: true }),
      BlockError,
      `error while writing at byte ${6 * MiB}: No space left on device`,
    );
    assertEquals(error.code, "ENOSPC");
    assert(source.offsets("read").length < 16);
    source.failAt = 0;
    await assertRejects(
      () => convert([source], target),
      BlockError,
      "error while reading at byte 0: No space left on device",
    );
  }
});

Deno.test("convert() refuses a target that is too small", async () => {
  const [source, target] = [1024, 512].map((n) => new ArrayNode(filled(n)));
  await assertRejects(
    () => convert([source], target),
    BlockError,
    "output file is smaller than input file",
  );
});

Deno.test("convert() refuses to compress where the target cannot", async () => {
  const [source, target] = [512, 512].map((n) => new ArrayNode(filled(n)));
  const error = await assertRejects(
    () => convert([source], target, { compressed: true }),
    BlockError,
  );
  assertEquals(error.code, "ENOTSUP");
});

Deno.test("convert() compresses whole clusters whose end is a hole", async () => {
  const disk = filled(4 * 65536);
  disk.fill(0, 65536 + 4096, 2 * 65536);
  const source = new ArrayNode(disk, [65536 + 4096, 2 * 65536, 4 * 65536]);
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: disk.length });
  await using target = await openImage({ driver: "qcow2", file });
  await convert([source], target.node, { compressed: true });
  assertEquals(await target.read(0, disk.length), disk);
});

Deno.test("a compressing convert() ends only after all its writes", async () => {
  const disk = filled(8 * 65536);
  for (let i = 1; i < 8; i += 2) disk.fill(0, i * 65536, (i + 1) * 65536);
  const source = new ArrayNode(disk);
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: disk.length });
  await using image = await openImage({ driver: "qcow2", file });
  let inFlight = 0;
  const target = filterNode(getDriver("throttle"), image.node, {
    async writeCompressed(offset, iov) {
      inFlight++;
      await new Promise((resolve) => setTimeout(resolve, 10));
      await image.node.writeCompressed!(offset, iov);
      inFlight--;
    },
    // deno-lint-ignore require-await
    async writeZeroes() {
      throw new BlockError("ENOSPC");
    },
  });
  const error = await assertRejects(
    () => convert([source], target, { compressed: true }),
    BlockError,
  );
  assertEquals([error.code, inFlight], ["ENOSPC", 0]);
});

Deno.test("an aborted convert() ends", async () => {
  const source = new ArrayNode(filled(32 * MiB));
  const target = new ArrayNode(new Uint8Array(32 * MiB));
  source.delay = 20;
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 50);
  const error = await assertRejects(
    () => convert([source], target, { signal: controller.signal, parallel: 1 }),
    BlockError,
  );
  assertEquals(error.code, "ECANCELED");
});

Deno.test("convert() reports its progress", async () => {
  // Only data counts; holes take no time.
  const source = new ArrayNode(filled(24 * MiB), [6 * MiB, 22 * MiB, 24 * MiB]);
  const target = new ArrayNode(new Uint8Array(24 * MiB));
  const seen: number[] = [];
  await convert([source], target, {
    progress: (done, total) => seen.push(done / total),
  });
  assertEquals(seen, [0.25, 0.5, 0.75, 1]);
});

Deno.test("convert() with salvage puts zeroes where it cannot read", async () => {
  const source = new ArrayNode(filled(MiB));
  const target = new ArrayNode(new Uint8Array(MiB));
  source.failAt = 70_000;
  const warnings: string[] = [];
  await convert([source], target, {
    salvage: true,
    warn: (message) => warnings.push(message),
  });
  const expected = filled(MiB);
  expected.fill(0, 136 * 512, 137 * 512);
  assertEquals(target.bytes, expected);
  assertEquals(warnings, [
    "error while reading offset 69632: No space left on device",
  ]);
});

Deno.test("convert() with salvage reads ranges whose block status fails", async () => {
  const source = new ArrayNode(filled(MiB));
  const target = new ArrayNode(new Uint8Array(MiB));
  const status = source.status.bind(source);
  source.status = (offset, length) =>
    offset <= 4096 && 4096 < offset + length
      ? Promise.reject(new BlockError("EIO"))
      : status(offset, length);
  await assertRejects(
    () => convert([source], target),
    BlockError,
    "error while reading block status at offset 0: Input/output error",
  );
  const warnings: string[] = [];
  await convert([source], target, {
    salvage: true,
    warn: (message) => warnings.push(message),
  });
  assertEquals(target.bytes, source.bytes);
  // Once to add up the allocated size, once to copy.
  const warning =
    "error while reading block status at offset 4096: Input/output error";
  assertEquals(warnings, [warning, warning]);
});

Deno.test("convert() respects a limit of bytes a second", async () => {
  const source = new ArrayNode(filled(3 * MiB));
  const target = new ArrayNode(new Uint8Array(3 * MiB));
  const start = performance.now();
  await convert([source], target, { rateLimit: 8 * MiB });
  const seconds = (performance.now() - start) / 1000;
  assert(seconds > 0.15 && seconds < 3, `${seconds} s`);
  assertEquals(target.bytes, source.bytes);
});

Deno.test("convert() has no more than 16 requests in flight, or as few as one", async () => {
  for (const parallel of [0, 17, NaN]) {
    await assertRejects(
      () => convert([], new ArrayNode(filled(512)), { parallel }),
      BlockError,
      "requests in flight",
    );
  }
  for (const parallel of [1, 16]) {
    const source = new ArrayNode(filled(80 * MiB));
    const target = new ArrayNode(new Uint8Array(80 * MiB));
    source.delay = 5;
    await convert([source], target, { parallel });
    assertEquals(source.mostInFlight, parallel);
  }
});

Deno.test("convert() needs requests only in proportion to allocated data", async () => {
  const MANY = 64;
  const requests: number[] = [];
  for (const scale of [1, 4, 16]) {
    // Clusters far apart: the disk grows much faster than its data.
    const from = { driver: "memory", store: new MemoryStore() };
    const size = scale * scale * 1024 ** 3;
    await createImage("qcow2", from, { size });
    await using source = await openImage({ driver: "qcow2", file: from });
    const step = size / (MANY * scale);
    for (let at = 0; at < size; at += step) {
      await source.write(at, new Uint8Array(65536).fill(1));
    }
    const to = { driver: "memory", store: new MemoryStore() };
    await createImage("qcow2", to, { size });
    await using target = await openImage({ driver: "qcow2", file: to });
    let count = 0;
    const counted = (node: BlockNode, verb: "status" | "readv" | "writev") => {
      const method = node[verb]!.bind(node) as (...args: unknown[]) => unknown;
      Object.assign(node, {
        [verb]: (...args: unknown[]) => (count++, method(...args)),
      });
    };
    counted(source.node, "status");
    counted(source.node, "readv");
    counted(target.node, "writev");
    await convert([source.node], target.node, { targetIsZero: true });
    assertEquals(
      await target.read(size - step, 65536),
      new Uint8Array(65536).fill(1),
    );
    requests.push(count);
  }
  const [one, four, sixteen] = requests;
  assert(four <= 4.2 * one && sixteen <= 4.2 * four, `${requests}`);
});
