import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { openNode, openProtocol } from "../../core/open.ts";
import type { OptionValues } from "../../core/options.ts";
import type { StackObject } from "../../core/spec.ts";
import { defineThrottleGroup } from "../../core/throttle_group.ts";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
  ThrottleGroup,
  type ThrottleLimits,
} from "../../mod.ts";
import { conformance } from "../conformance.ts";
import { faultyNode } from "../fault_disk.ts";
import { TempDir } from "../qemu.ts";
import { kindOf } from "../extents.ts";

const KIB = 1024;
const MIB = 1024 * KIB;

function memory(store = new MemoryStore()) {
  return { driver: "memory", store };
}

async function qcow2(size: number, options: OptionValues = {}) {
  const file = memory();
  await createImage("qcow2", file, { size, ...options });
  return { driver: "qcow2", file };
}

conformance("copy-on-read", {
  async open(size) {
    const file = await qcow2(size);
    const open = () => openNode({ driver: "copy-on-read", file });
    return { node: await open(), reopen: open };
  },
});

conformance("throttle", {
  async open(size) {
    const group = new ThrottleGroup({ "bps-total": 1e13, "iops-total": 1e9 });
    const file = memory(new MemoryStore(size));
    const source = { driver: "throttle", "throttle-group": group, file };
    const open = () => openNode(source);
    return { node: await open(), reopen: open };
  },
});

conformance("compress", {
  async open(size) {
    const file = await qcow2(size);
    const open = () => openNode({ driver: "compress", file });
    return { node: await open(), reopen: open };
  },
});

conformance("preallocate", {
  async open(size) {
    const file = memory(new MemoryStore(size));
    const source = { driver: "preallocate", "prealloc-size": "64k", file };
    const open = () => openNode(source);
    return { node: await open(), reopen: open };
  },
});

conformance("qcow2 over preallocate", {
  async open(size) {
    const image = memory();
    await createImage("qcow2", image, { size });
    const file = { driver: "preallocate", "prealloc-align": "4k", file: image };
    const open = () => openNode({ driver: "qcow2", file });
    return { node: await open(), reopen: open };
  },
});

async function refused(source: StackObject | string, message: string) {
  const error = await assertRejects(() => openNode(source), BlockError);
  assertEquals(error.message, message);
}

Deno.test("null-co takes everything and keeps nothing", async () => {
  for (const name of ["null-co", "null-aio"]) {
    await using image = await openImage({ driver: "raw", file: `${name}://` });
    assertEquals(image.size, 1024 ** 3);
    await image.write(MIB, new Uint8Array([1, 2, 3]));
    await image.flush();
    const untouched = new Uint8Array(3).fill(7);
    assertEquals(await image.read(MIB, untouched), new Uint8Array([7, 7, 7]));
  }
  const file = { driver: "null-co", size: "1M", "read-zeroes": "on" };
  await using zeroes = await openImage({ driver: "raw", file });
  assertEquals(zeroes.size, MIB);
  const buffer = new Uint8Array(3).fill(7);
  assertEquals(await zeroes.read(0, buffer), new Uint8Array(3));
  const [extent] = await Array.fromAsync(zeroes.extents());
  assertEquals([kindOf(extent), extent.length], ["zero", MIB]);
  await refused(
    "null-co:",
    "The only allowed filename for this driver is 'null-co://'",
  );
});

Deno.test("null-co takes the latency that it is given", async () => {
  const file = { driver: "null-co", "latency-ns": 30_000_000 };
  await using image = await openImage({ driver: "raw", file });
  const start = performance.now();
  await image.read(0, 512);
  assert(performance.now() - start >= 25);
});

Deno.test("copy-on-read keeps what it reads from a backing file", async () => {
  await using dir = new TempDir();
  const base = dir.file("base.qcow2");
  const top = dir.file("top.qcow2");
  await createImage("qcow2", base, { size: MIB });
  {
    await using image = await openImage(base);
    await image.write(0, new Uint8Array(300 * KIB).fill(5));
  }
  await createImage("qcow2", top, {
    size: MIB,
    backing_file: "base.qcow2",
    backing_fmt: "qcow2",
  });
  {
    // Below a filter, the format is probed as anywhere.
    const source = { driver: "copy-on-read", file: { filename: top } };
    await using image = await openImage(source);
    assertEquals(await image.read(70_000, 3), new Uint8Array(3).fill(5));
    assertEquals(
      await image.read(250 * KIB, 100 * KIB).then(sum),
      5 * 50 * KIB,
    );
    assertEquals(await image.read(520 * KIB, 100).then(sum), 0);
    await Promise.all([
      image.read(128 * KIB, 10),
      image.write(128 * KIB + 5, new Uint8Array(10).fill(9)),
      image.read(128 * KIB, 64 * KIB),
    ]);
  }
  await using image = await openImage(top);
  const kinds: string[] = [];
  for await (const extent of image.extents()) {
    for (let at = 0; at < extent.length; at += 64 * KIB) {
      kinds.push(`${kindOf(extent)} ${extent.depth}`);
    }
  }
  const kept = ["data 0", "data 0", "data 0", "data 0", "data 0"];
  assertEquals(kinds.slice(0, 6), ["data 1", ...kept]);
  assertEquals(kinds.slice(6, 10), ["zero 1", "zero 1", "zero 0", "zero 1"]);
  assertEquals(
    [...await image.read(128 * KIB, 16)],
    [5, 5, 5, 5, 5, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 5],
  );
  await image.close();
  await assertRejects(
    () => openNode({ driver: "copy-on-read", file: top }, { readOnly: true }),
    BlockError,
    "Block node is read-only",
  );
});

function sum(bytes: Uint8Array): number {
  return bytes.reduce((total, byte) => total + byte, 0);
}

Deno.test("compress makes writes with FUA durable", async () => {
  const { driver, file } = await qcow2(MIB);
  const { node, counts } = faultyNode(await openProtocol(file));
  await using image = await openImage({
    driver: "compress",
    file: { driver, file: node },
  });
  const data = [new Uint8Array(64 * KIB).fill(1)];
  await image.writev(0, data);
  const before = counts.flush;
  await image.writev(64 * KIB, data, { fua: true });
  assert(counts.flush > before);
});

Deno.test("compress stores what is written compressed", async () => {
  const file = await qcow2(MIB + 1024);
  {
    await using image = await openImage({ driver: "compress", file });
    await image.write(1000, new Uint8Array(200 * KIB).fill(3));
    await image.write(MIB, new Uint8Array(1024).fill(4));
  }
  await using image = await openImage(file);
  const extents = await Array.fromAsync(image.extents());
  assertEquals(
    extents.map(kindOf),
    ["compressed", "zero", "compressed"],
  );
  assertEquals(await image.read(999, 2), new Uint8Array([0, 3]));
  assertEquals(await image.read(MIB + 1023, 1), new Uint8Array([4]));
  await refused(
    { driver: "compress", file: { driver: "raw", file: memory() } },
    "Compression is not supported for underlying format: raw",
  );
});

Deno.test("preallocate grows a file in steps, and trims it in the end", async () => {
  await using dir = new TempDir();
  const filename = dir.file("a");
  await Deno.writeFile(filename, new Uint8Array(512));
  const node = await openNode({
    driver: "raw",
    file: {
      driver: "preallocate",
      "prealloc-size": "1M",
      "prealloc-align": "64k",
      file: { driver: "file", filename },
    },
  });
  await node.children.file!.writev!(512, [new Uint8Array(100).fill(1)]);
  const { size } = await Deno.stat(filename);
  // Where the file cannot reserve space, the filter does not grow it.
  assert(size === MIB + 64 * KIB || size === 612, `${size} bytes`);
  assertEquals(node.children.file!.size, 612);
  await node.children.file!.writev!(5000, [new Uint8Array(100).fill(1)]);
  await node.close();
  assertEquals((await Deno.stat(filename)).size, 5100);
  await refused(
    { driver: "preallocate", "prealloc-align": 100, file: memory() },
    "prealloc-align parameter of preallocate filter is not aligned to 512",
  );
});

/** How long writing `count` times `size` bytes takes, in seconds. */
async function timeOf(limits: ThrottleLimits, count: number, size: number) {
  const group = new ThrottleGroup(limits);
  const file = memory(new MemoryStore(MIB));
  const source = { driver: "throttle", "throttle-group": group, file };
  await using image = await openImage(source);
  const bytes = new Uint8Array(size);
  const start = performance.now();
  await Promise.all(
    Array.from({ length: count }, (_, i) => image.write(i * size, bytes)),
  );
  return (performance.now() - start) / 1000;
}

Deno.test("throttle keeps to bytes and requests per second", async () => {
  const [bytes, requests, reads, burst, large] = await Promise.all([
    // A tenth of a second's worth, and the request that exceeds it, pass at
    // once.
    timeOf({ "bps-total": 100 * KIB }, 10, 4 * KIB),
    timeOf({ "iops-write": 50 }, 21, 512),
    timeOf({ "iops-read": 1 }, 21, 512),
    timeOf({ "iops-total": 50, "iops-total-max": 100 }, 90, 512),
    timeOf({ "iops-total": 50, "iops-size": 512 }, 7, 2048),
  ]);
  assert(bytes >= 0.2 && bytes < 2, `${bytes} s for bytes`);
  assert(requests >= 0.25 && requests < 2, `${requests} s for requests`);
  assert(reads < 0.2, `${reads} s for writes without a limit`);
  assert(burst < 0.3, `${burst} s for a burst`);
  assert(large >= 0.3 && large < 2, `${large} s for large requests`);
});

Deno.test("throttle finds its group by name", async () => {
  defineThrottleGroup("test-group", new ThrottleGroup({ "bps-read": 1e9 }));
  const file = memory(new MemoryStore(512));
  const named = { driver: "throttle", "throttle-group": "test-group", file };
  await (await openNode(named)).close();
  await refused(
    { driver: "throttle", file },
    "Please specify a throttle group",
  );
  await refused(
    { driver: "throttle", "throttle-group": "none", file },
    "Throttle group 'none' does not exist",
  );
});

Deno.test("new ThrottleGroup() refuses limits that make no sense", () => {
  const cases: [ThrottleLimits, string][] = [
    [
      { "bps-total": 1, "bps-read": 1 },
      "bps/iops/max total values and read/write values cannot be used at the same time",
    ],
    [{ "iops-size": 1 }, "iops size requires an iops value to be set"],
    [
      { "bps-total": 2e15 },
      "bps/iops/max values must be within [0, 1000000000000000]",
    ],
    [
      { "bps-total-max": 20 },
      "bps_max/iops_max require corresponding bps/iops values",
    ],
    [
      { "iops-read": 20, "iops-read-max": 10 },
      "bps_max/iops_max cannot be lower than bps/iops",
    ],
    [
      { "iops-read": 20, "iops-read-max-length": 10 },
      "burst length set without burst rate",
    ],
    [
      { "iops-read": 20, "iops-read-max-length": 0 },
      "the burst length cannot be 0",
    ],
  ];
  for (const [limits, message] of cases) {
    const error = assertThrows(() => new ThrottleGroup(limits), BlockError);
    assertEquals(error.message, message);
  }
});
