/** Images as streams. @module */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { setPortable } from "../../platforms.ts";
import {
  BlockError,
  convertStream,
  createImage,
  type Image,
  MemoryStore,
  openImage,
  streamImage,
  type StreamImageOptions,
} from "../../../mod.ts";

const SIZE = 3 * 1024 * 1024 + 512;

/** A disk in memory, with some data. */
async function makeDisk(): Promise<Image> {
  const file = { driver: "memory", store: new MemoryStore(SIZE) };
  const disk = await openImage({ driver: "raw", file });
  await disk.write(0, new Uint8Array(10).fill(1));
  await disk.write(200_000, new Uint8Array(500_000).fill(2));
  await disk.write(SIZE - 1, new Uint8Array(1).fill(3));
  return disk;
}

async function streamed(
  disk: Image,
  options: StreamImageOptions = {},
): Promise<Uint8Array<ArrayBuffer>> {
  return await new Response(streamImage("qcow2", disk.node, options)).bytes();
}

async function open(bytes: Uint8Array<ArrayBuffer>): Promise<Image> {
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  const image = await openImage({ driver: "raw", file });
  await image.resize(bytes.length);
  await image.write(0, bytes);
  return await openImage({ driver: "qcow2", file });
}

for (
  const create of [
    {},
    { cluster_size: 512 },
    { cluster_size: 512, refcount_bits: 64 },
    { cluster_size: 2 * 1024 * 1024, refcount_bits: 1 },
    { compat: "0.10", cluster_size: 4096 },
  ]
) {
  Deno.test(`streamImage() makes a sound image: ${JSON.stringify(create)}`, async () => {
    await using disk = await makeDisk();
    await using image = await open(await streamed(disk, { create }));
    assertEquals(await image.read(0, SIZE), await disk.read(0, SIZE));
    const { corruptions, leaks, checkErrors } = await image.check();
    assertEquals([corruptions, leaks, checkErrors], [0, 0, 0]);
    // The image can be used like any other.
    await image.write(1_500_000, new Uint8Array(100_000).fill(9));
    assertEquals((await image.check()).corruptions, 0);
  });
}

Deno.test("streamImage() makes the same without a runtime's help", async () => {
  await using disk = await makeDisk();
  const expected = await streamed(disk);
  setPortable(true);
  try {
    assertEquals(await streamed(disk), expected);
  } finally {
    setPortable(false);
  }
});

Deno.test("streamImage() does not store holes, unless told to", async () => {
  await using disk = await makeDisk();
  const sparse = await streamed(disk);
  const full = await streamed(disk, { fill: true });
  assert(sparse.length < SIZE / 2 && full.length > SIZE);
  await using image = await open(full);
  assertEquals(await image.read(0, SIZE), await disk.read(0, SIZE));
});

Deno.test("streamImage() never modifies chunks it has handed out", async () => {
  await using disk = await makeDisk();
  const chunks: Uint8Array[] = [];
  for await (const chunk of streamImage("raw", disk.node)) chunks.push(chunk);
  assertEquals(
    await new Blob(chunks as BlobPart[]).bytes(),
    await disk.read(0, SIZE) as Uint8Array<ArrayBuffer>,
  );
});

Deno.test("streamImage() ends when its reader cancels, and when aborted", async () => {
  await using disk = await makeDisk();
  let reads = 0;
  const readv = disk.node.readv.bind(disk.node);
  disk.node.readv = (offset, iov) => (reads++, readv(offset, iov));
  const reader = streamImage("raw", disk.node).getReader();
  await reader.read();
  await reader.cancel();
  assert(reads <= 2);
  const controller = new AbortController();
  controller.abort();
  const error = await assertRejects(
    () => streamed(disk, { signal: controller.signal, rateLimit: 1000 }),
    BlockError,
  );
  assertEquals(error.code, "ECANCELED");
});

Deno.test("streamImage() reports its progress", async () => {
  await using disk = await makeDisk();
  const seen: number[] = [];
  await streamed(disk, {
    progress: (done, total) => seen.push(done / total),
  });
  assertEquals(seen.at(-1), 1);
});

Deno.test("streamImage() refuses what cannot be written front to back", async () => {
  await using disk = await makeDisk();
  const cases: [object, string][] = [
    [{ preallocation: "full" }, "Preallocation is not possible in a stream"],
    [{ encryption: true }, "Encryption is not possible in a stream"],
    [{ cluster_size: 3 }, "Cluster size must be a power of two"],
    [{ nothing: 1 }, "Invalid parameter 'nothing'"],
  ];
  for (const [create, message] of cases) {
    await assertRejects(
      () => streamed(disk, { create: { ...create } }),
      BlockError,
      message,
    );
  }
  await assertRejects(
    () => new Response(streamImage("nothing", disk.node)).bytes(),
    BlockError,
    "Unknown file format 'nothing'",
  );
});

/** Chunks of many lengths. */
async function* chopped(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let at = 0, length = 1; at < bytes.length; at += length, length *= 3) {
    await Promise.resolve();
    yield bytes.subarray(at, at + length);
  }
}

Deno.test("convertStream() fills an image that grows with it", async () => {
  await using disk = await makeDisk();
  const bytes = await disk.read(0, SIZE);
  for (const compressed of [false, true]) {
    for (const length of [0, 1, 65536, SIZE]) {
      const file = { driver: "memory", store: new MemoryStore() };
      await createImage("qcow2", file, { size: 0 });
      await using image = await openImage({ driver: "qcow2", file });
      const part = bytes.subarray(0, length);
      const options = { compressed, resize: true, targetIsZero: true };
      const count = await convertStream(chopped(part), image.node, options);
      assertEquals(count, length);
      assertEquals(image.size, Math.ceil(length / 512) * 512);
      assertEquals((await image.read(0, image.size)).subarray(0, length), part);
      const { corruptions, leaks } = await image.check();
      assertEquals([corruptions, leaks], [0, 0]);
    }
  }
});

Deno.test("convertStream() overwrites old data with zeroes", async () => {
  await using disk = await makeDisk();
  const bytes = await disk.read(0, SIZE);
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: SIZE + 512 });
  await using image = await openImage({ driver: "qcow2", file });
  await image.write(0, new Uint8Array(image.size).fill(5));
  await convertStream(chopped(bytes), image.node);
  assertEquals(await image.read(0, SIZE), bytes);
  assertEquals(await image.read(SIZE, 1), new Uint8Array([5]));
});

Deno.test("convertStream() refuses what does not fit, and passes on errors", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: 512 });
  await using image = await openImage({ driver: "qcow2", file });
  await assertRejects(
    () => convertStream(chopped(new Uint8Array(513).fill(1)), image.node),
    BlockError,
    "output file is smaller than input file",
  );
  // deno-lint-ignore require-yield
  const broken = async function* (): AsyncGenerator<Uint8Array> {
    await Promise.resolve();
    throw new TypeError("the connection broke");
  };
  await assertRejects(() => convertStream(broken(), image.node), TypeError);
});
