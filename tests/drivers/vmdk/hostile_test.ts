/**
 * Whatever is done to the bytes of an image, the worst result is a
 * `BlockError`, and no memory is taken that the file does not account for.
 *
 * @module
 */
import { assert } from "@std/assert";
import {
  BlockError,
  createImage,
  MemoryStore,
  openImage,
  streamImage,
} from "../../../mod.ts";
import { AbsentVerbError, UnexpectedError } from "../../../core/errors.ts";
import { Random, seedsToRun } from "../../model.ts";
import { contentOf } from "../qcow2/bytes.ts";
import { GRAIN, newImage, putLong, stackOf } from "./make.ts";

const SIZE = 40 * 1024 * 1024;

/** Values that have broken programs before. */
const VALUES = [
  ...[0n, 1n, 2n, 3n, 8n, 127n, 128n, 511n, 512n, 513n, 4096n, 65536n],
  ...[0x7fffffffn, 0x80000000n, 0xffffffffn, 0x100000000n, 1n << 40n],
  ...[(1n << 44n) - 1n, (1n << 53n) - 1n, 1n << 53n, 1n << 62n],
  ...[(1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n],
];

/** The fields of a header. */
const FIELDS = [4, 8, 12, 20, 28, 36, 44, 48, 56, 64, 73, 77];

/** Lines for descriptors. */
const LINES = [
  'RW 100 FLAT "x" 0',
  'RW 100 SPARSE "x"',
  'RW 100 SESPARSE "x"',
  "RW 99999 ZERO",
  'RW 18014398509481983 FLAT "/dev/zero" 0',
  'createType="monolithicFlat"',
  'createType="twoGbMaxExtentSparse"',
  'createType="' + "x".repeat(3000),
  "CID=zzz",
  "CID=",
  "parentCID=0",
  'parentFileNameHint="/etc/hostname"',
  'parentFileNameHint="../x"',
  'parentFileNameHint="',
  'encoding="nonsense"',
  'encoding="UTF-16LE"',
  "# " + "y".repeat(9000),
];

async function samples(): Promise<Uint8Array<ArrayBuffer>[]> {
  const made: Uint8Array<ArrayBuffer>[] = [];
  for (const options of [{}, { zeroed_grain: true }]) {
    const file = { driver: "memory", store: new MemoryStore() };
    await createImage("vmdk", file, { size: SIZE, ...options });
    await using image = await openImage({ driver: "vmdk", file });
    await image.write(3 * GRAIN - 5, new Uint8Array(GRAIN).fill(1));
    await image.write(SIZE - 600, new Uint8Array(500).fill(2));
    await image.writeZeroes(0, 2 * GRAIN);
    await image.flush();
    const bytes = contentOf(file.store);
    made.push(bytes);
    const stream = streamImage("vmdk", image.node, {
      create: { subformat: "streamOptimized" },
    });
    made.push(new Uint8Array(await new Response(stream).arrayBuffer()));
  }
  return made;
}

function damage(bytes: Uint8Array, random: Random): string {
  const kind = random.below(4);
  if (kind === 0) {
    const [at, value] = [random.pick(FIELDS), random.pick(VALUES)];
    // Two fields may share these eight bytes; then both change.
    putLong(bytes, at, value);
    return `field ${at} = ${value}`;
  }
  if (kind === 1) {
    const text = new TextEncoder().encode(`${random.pick(LINES)}\n`);
    const at = 512 + random.below(400);
    bytes.set(text.subarray(0, bytes.length - at), at);
    return `text at ${at}`;
  }
  if (kind === 2) {
    // Entries of tables: in front, or in a stream at the end.
    const from = random.pick([512 * 21, 65536, bytes.length - 20_000]);
    const at = from - from % 4 + 4 * random.below(2000);
    if (at < 0 || at + 8 > bytes.length) return "nothing";
    putLong(bytes, at, random.pick(VALUES));
    return `entry at ${at}`;
  }
  const at = random.below(bytes.length);
  bytes[at] ^= 1 << random.below(8);
  return `byte ${at}`;
}

/** Whether an error was thrown on purpose. */
function isExpected(error: unknown): boolean {
  return error instanceof BlockError && !(error instanceof UnexpectedError) &&
    !(error instanceof AbsentVerbError);
}

async function useAll(bytes: Uint8Array, random: Random): Promise<void> {
  const stack = stackOf(bytes);
  for (const readOnly of [true, false]) {
    await using image = await openImage(stack, { readOnly });
    await image.node.info!();
    const attempts = [
      () => image.check(),
      () => image.read(0, Math.min(image.size, 2 * 1024 * 1024)),
      () =>
        image.read(Math.max(0, image.size - 5000), Math.min(image.size, 5000)),
      async () => {
        let count = 0;
        for await (const _ of image.extents()) if (++count > 500) break;
      },
      ...readOnly || image.readOnly ? [] : [
        () => image.write(random.below(SIZE), new Uint8Array(70_000)),
        () => image.writeZeroes(0, GRAIN),
        () => image.flush(),
      ],
    ];
    for (const attempt of attempts) {
      try {
        await attempt();
      } catch (error) {
        if (!isExpected(error)) throw error;
      }
    }
  }
}

Deno.test("hostile images do no harm", async () => {
  const good = await samples();
  for (const seed of seedsToRun(400)) {
    const random = new Random(seed);
    const bytes = random.pick(good).slice();
    const steps: string[] = [];
    for (let left = 1 + random.below(3); left > 0; left--) {
      steps.push(damage(bytes, random));
    }
    const before = Deno.memoryUsage().external;
    try {
      await useAll(bytes, random);
    } catch (error) {
      if (!isExpected(error)) {
        throw new Error(`seed ${seed}: ${steps.join("; ")}`, { cause: error });
      }
    }
    const taken = Deno.memoryUsage().external - before;
    assert(taken < 300 * 1024 ** 2, `seed ${seed}: ${taken} bytes`);
  }
});

Deno.test("hostile descriptors do no harm", async () => {
  const whole = (await newImage()).subarray(512, 21 * 512);
  const text = new TextDecoder().decode(whole).replace(/\0/g, "");
  for (const seed of seedsToRun(300)) {
    const random = new Random(seed);
    const lines = text.split("\n");
    for (let left = 1 + random.below(5); left > 0; left--) {
      const at = random.below(lines.length + 1);
      lines.splice(at, random.below(2), random.pick(LINES));
    }
    const bytes = new TextEncoder().encode(lines.join("\n"));
    try {
      await useAll(bytes, random);
    } catch (error) {
      if (!isExpected(error)) {
        throw new Error(`seed ${seed}`, { cause: error });
      }
    }
  }
});
