import { assertEquals, assertRejects } from "@std/assert";
import {
  BlockError,
  createImage,
  type Image,
  MemoryStore,
  openImage,
} from "../../mod.ts";
import { kindOf } from "../extents.ts";

const CLUSTER = 65536;

/** An image of two clusters of data, opened with options. */
async function opened(options: Record<string, unknown>): Promise<Image> {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: 16 * CLUSTER });
  {
    await using image = await openImage({ driver: "qcow2", file });
    await image.write(0, new Uint8Array(2 * CLUSTER).fill(7));
  }
  return await openImage({ driver: "qcow2", file, ...options });
}

/** The kind of each extent, and whether it has space in the file. */
async function kinds(image: Image): Promise<string[]> {
  const found: string[] = [];
  for await (const extent of image.extents(0, 3 * CLUSTER)) {
    const kind = kindOf(extent);
    found.push(extent.hostOffset === undefined ? kind : `${kind} placed`);
  }
  return found;
}

const CASES: [options: Record<string, unknown>, expected: string[]][] = [
  [{}, ["data placed", "zero"]],
  [{ "detect-zeroes": "off" }, ["data placed", "zero"]],
  [{ "detect-zeroes": "on" }, ["zero placed", "data placed", "zero"]],
  [{ "detect-zeroes": "unmap" }, ["zero", "data placed", "zero"]],
  [
    { "detect-zeroes": "on", discard: "off" },
    ["zero placed", "data placed", "zero"],
  ],
];

for (const [options, expected] of CASES) {
  Deno.test(`${JSON.stringify(options)}: writing zeroes as data`, async () => {
    await using image = await opened(options);
    await image.node.writev!(0, [
      new Uint8Array(1000),
      new Uint8Array(CLUSTER - 1000),
    ]);
    await image.write(
      CLUSTER,
      new Uint8Array(CLUSTER).fill(0, 5).fill(9, 0, 5),
    );
    assertEquals(await kinds(image), expected);
    assertEquals(
      await image.read(0, CLUSTER),
      new Uint8Array(CLUSTER),
    );
    assertEquals((await image.read(CLUSTER, 6)).join(), "9,9,9,9,9,0");
  });
}

Deno.test("discard=off keeps the space of zeroes that are written", async () => {
  for (const [discard, kind] of [["off", "zero placed"], ["on", "zero"]]) {
    await using image = await opened({ discard });
    await image.writeZeroes(0, CLUSTER, { unmap: true });
    assertEquals((await kinds(image))[0], kind);
  }
});

Deno.test("detect-zeroes: zeroes are written as data where a node cannot zero", async () => {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage("qcow2", file, { size: CLUSTER });
  await using image = await openImage({ driver: "qcow2", file });
  image.node.writeZeroes = () => {
    throw new BlockError("ENOTSUP");
  };
  await image.write(0, new Uint8Array(CLUSTER).fill(1));
  const raw = { driver: "raw", file: image.node, "detect-zeroes": "on" };
  const above = await openImage(raw);
  await above.write(0, new Uint8Array(CLUSTER));
  assertEquals((await image.read(0, 1))[0], 0);
});

Deno.test("detect-zeroes refuses what QEMU refuses", async () => {
  await assertRejects(
    () => opened({ "detect-zeroes": "maybe" }),
    BlockError,
    "invalid parameter value: maybe",
  );
  await assertRejects(
    () => opened({ "detect-zeroes": "unmap", discard: "off" }),
    BlockError,
    "setting detect-zeroes to unmap is not allowed without setting discard " +
      "operation to unmap",
  );
});
