/**
 * On a file that responds slowly, a cold read waits for as few reads as its
 * format permits: one for a table, and one for the data. Tables at the top are
 * read when the image is opened.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { openProtocol } from "../../core/open.ts";
import { isEqual } from "../../core/runtime.ts";
import {
  createImage,
  type Image,
  MemoryStore,
  openImage,
  type OptionValues,
  type StackObject,
} from "../../mod.ts";
import { Random } from "../model.ts";
import { Rounds } from "../rounds.ts";

const READS = 16;
const MIB = 1024 * 1024;
const secrets = { s0: "a passphrase" };

/** A format in which an image is made, and how it is read. */
interface Case {
  readonly format: string;
  readonly create?: OptionValues;
  /** Bytes from one read to the next, each of which needs another table. */
  readonly step: number;
  /** Rounds of the reads. */
  readonly rounds: number;
}

const CASES: { readonly [name: string]: Case } = {
  raw: { format: "raw", step: MIB, rounds: 1 },
  qcow2: { format: "qcow2", step: 512 * MIB, rounds: 2 },
  "qcow2 with subclusters": {
    format: "qcow2",
    create: { extended_l2: true },
    step: 512 * MIB,
    rounds: 2,
  },
  qcow: { format: "qcow", step: 2 * MIB, rounds: 2 },
  "qcow with a large L1 table": {
    format: "qcow",
    step: 5 * 1024 * MIB,
    rounds: 2,
  },
  qed: { format: "qed", step: 2048 * MIB, rounds: 2 },
  vdi: { format: "vdi", step: 16384 * MIB, rounds: 2 },
  // These examine their tables when opened.
  vhdx: {
    format: "vhdx",
    create: { block_size: MIB },
    step: 8192 * MIB,
    rounds: 1,
  },
  "vhdx, fixed": {
    format: "vhdx",
    create: { subformat: "fixed", block_size: MIB },
    step: MIB,
    rounds: 1,
  },
  // A table, and the bitmap of each block.
  vpc: { format: "vpc", step: 32768 * MIB, rounds: 2 },
  "vpc, fixed": {
    format: "vpc",
    create: { subformat: "fixed" },
    step: MIB,
    rounds: 1,
  },
  parallels: { format: "parallels", step: 16384 * MIB, rounds: 2 },
  vmdk: { format: "vmdk", step: 33 * MIB, rounds: 2 },
  "vmdk with a large directory": {
    format: "vmdk",
    step: 127 * 1024 * MIB,
    rounds: 2,
  },
  "vmdk, streamOptimized": {
    format: "vmdk",
    create: { subformat: "streamOptimized" },
    step: 33 * MIB,
    rounds: 2,
  },
};

/** What is written at the start of the part with this number. */
function contentOf(number: number): Uint8Array {
  return new Random(number + 1).bytes(65536);
}

async function makeImage(
  { format, create, step }: Case,
  size = READS * step,
): Promise<StackObject> {
  const file = { driver: "memory", store: new MemoryStore() };
  await createImage(format, file, { size, ...create });
  await using image = await openImage({ driver: format, file });
  for (let i = 0; i < READS; i++) {
    await image.node.writev!(i * step, [contentOf(i)]);
  }
  return file;
}

async function openSlowly(
  file: StackObject,
  stack: (file: unknown) => StackObject,
): Promise<{ rounds: Rounds; image: Image }> {
  const rounds = new Rounds(await openProtocol(file));
  const how = { readOnly: true, secrets };
  return { rounds, image: await openImage(stack(rounds.node), how) };
}

/** Read the start of each part at once. */
async function readAll(image: Image, step: number): Promise<void> {
  await Promise.all(Array.from({ length: READS }, async (_, i) => {
    const found = await image.read(i * step, 512);
    assertEquals(found, contentOf(i).subarray(0, 512));
  }));
}

for (const [name, one] of Object.entries(CASES)) {
  const { format, step, rounds: expected } = one;
  Deno.test(`${name}: reads under different tables wait together`, async () => {
    const file = await makeImage(one);
    const { rounds, image } = await openSlowly(
      file,
      (file) => ({ driver: format, file }) as StackObject,
    );
    assertEquals(await rounds.of(() => readAll(image, step)), expected);
    await image.close();
  });
}

/** Images of formats that are only read: rounds of reading all over the disk. */
const READ_ONLY = {
  "small.bochs": 2, // The bitmap of each extent.
  "small.cloop": 2,
  "zlib.dmg": 1, // Its tables are read when it is opened.
  "small.asif": 2,
  "sectors.asif": 3, // Entries, the states of sectors, and the data.
};

for (const [name, expected] of Object.entries(READ_ONLY)) {
  Deno.test(`${name}: reads wait together`, async () => {
    const url = new URL(`../fixtures/read-only/${name}.gz`, import.meta.url);
    const packed = new Blob([await Deno.readFile(url)]).stream();
    const stream = packed.pipeThrough(new DecompressionStream("gzip"));
    const store = new MemoryStore();
    store.write(0, await new Response(stream).bytes());
    const driver = name.replace(/.*\./, "");
    const { rounds, image } = await openSlowly(
      { driver: "memory", store },
      (file) => ({ driver, file }) as StackObject,
    );
    const step = image.size / READS - image.size / READS % 512;
    const count = await rounds.of(() =>
      Promise.all(
        Array.from({ length: READS }, (_, i) => image.read(i * step, 512)),
      )
    );
    assertEquals(count, expected);
    await image.close();
  });
}

Deno.test("LUKS over qcow2: reads under different tables wait together", async () => {
  const step = 512 * MIB;
  const store = new MemoryStore();
  const file = { driver: "memory", store };
  const key = { "key-secret": "s0" };
  const header = new MemoryStore();
  const create = { size: 0, ...key, "iter-time": 0 };
  const target = { driver: "memory", store: header };
  await createImage("luks", target, create, { secrets });
  const bytes = new Uint8Array(header.size);
  header.read(0, bytes);
  await createImage("qcow2", file, { size: READS * step + bytes.length });
  {
    await using image = await openImage({ driver: "qcow2", file });
    await image.write(0, bytes);
  }
  const stack = (file: unknown) =>
    ({
      driver: "luks",
      ...key,
      file: { driver: "qcow2", file },
    }) as StackObject;
  {
    await using image = await openImage(stack(file), { secrets });
    for (let i = 0; i < READS; i++) await image.write(i * step, contentOf(i));
  }
  const { rounds, image } = await openSlowly(file, stack);
  assertEquals(await rounds.of(() => readAll(image, step)), 2);
  await image.close();
});

/** Formats that scatter clusters: `step` is the size of one. */
const SCATTERED: { readonly [name: string]: Case } = {
  qcow: { format: "qcow", step: 4096, rounds: 2 },
  "qcow, compressed": { format: "qcow", step: 4096, rounds: 2 },
  qed: { format: "qed", step: 65536, rounds: 2 },
  vmdk: { format: "vmdk", step: 65536, rounds: 2 },
  "vmdk, streamOptimized": {
    format: "vmdk",
    create: { subformat: "streamOptimized" },
    step: 65536,
    rounds: 2,
  },
  parallels: {
    format: "parallels",
    create: { cluster_size: 65536 },
    step: 65536,
    rounds: 2,
  },
};

for (const [name, one] of Object.entries(SCATTERED)) {
  const { format, create, step, rounds: expected } = one;
  Deno.test(`${name}: a read of scattered clusters waits for all of them at once`, async () => {
    const file = { driver: "memory", store: new MemoryStore() };
    await createImage(format, file, { size: READS * step, ...create });
    {
      await using image = await openImage({ driver: format, file });
      const random = new Random(3);
      const rest = Array.from({ length: READS }, (_, i) => i);
      while (rest.length > 0) {
        const [i] = rest.splice(random.below(rest.length), 1);
        const content = [contentOf(i).subarray(0, step)];
        await (name.endsWith("compressed")
          ? image.node.writeCompressed!(i * step, content)
          : image.node.writev!(i * step, content));
      }
    }
    const { rounds, image } = await openSlowly(
      file,
      (file) => ({ driver: format, file }) as StackObject,
    );
    const found = new Uint8Array(READS * step);
    const count = await rounds.of(() => image.read(0, found));
    assert(count <= expected, `${count} rounds`);
    for (let i = 0; i < READS; i++) {
      const part = found.subarray(i * step, (i + 1) * step);
      assert(isEqual(part, contentOf(i).subarray(0, step)));
    }
    await image.close();
  });
}
