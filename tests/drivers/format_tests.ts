/**
 * What the tests of several image formats have in common: power cuts, hostile
 * images, and images exchanged with QEMU in both directions.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { AbsentVerbError, UnexpectedError } from "../../core/errors.ts";
import { isEqual } from "../../core/runtime.ts";
import {
  BlockError,
  convert,
  createImage,
  type Image,
  MemoryStore,
  openImage,
  type StackObject,
} from "../../mod.ts";
import { Random } from "../model.ts";
import { PowerLog } from "../power_log.ts";
import { run, runOk, type TempDir } from "../qemu.ts";
import { contentOf, storeOf } from "./qcow2/bytes.ts";

/** The bytes of a new image. */
export async function newImage(
  driver: string,
  options: Record<string, unknown>,
): Promise<Uint8Array<ArrayBuffer>> {
  const store = new MemoryStore();
  await createImage(driver, { driver: "memory", store }, options);
  return contentOf(store);
}

/** A description of an image that consists of the bytes. */
export function stackOf(driver: string, bytes: Uint8Array): StackObject {
  return { driver, file: { driver: "memory", store: storeOf(bytes) } };
}

/** An image to be used until the power fails. */
export interface PowerSubject {
  readonly driver: string;
  /** Options of `create`, including `size`. */
  readonly options: Record<string, unknown> & { readonly size: number };
  /** Whether there is a backing file with some content. */
  readonly isOverlay?: boolean;
  /** A change; a write of random bytes by default. */
  change?(image: Image, disk: Uint8Array, random: Random): Promise<void>;
  /** What else must hold for an image after a cut. */
  examine?(file: Uint8Array, backing: StackObject | null): Promise<void>;
}

async function write(image: Image, disk: Uint8Array, random: Random) {
  const bytes = random.bytes(1 + random.below(150_000));
  const offset = random.below(disk.length - bytes.length);
  disk.set(bytes, offset);
  await image.write(offset, bytes);
}

/**
 * Cut the power at random moments: flushed data must survive, and data that was
 * not flushed must be old or new.
 */
export async function surviveCuts(
  { driver, options, isOverlay, change = write, examine }: PowerSubject,
  seed: number,
): Promise<void> {
  const { size } = options;
  const random = new Random(seed);
  const log = new PowerLog(await newImage(driver, options));
  const start = isOverlay ? random.bytes(size) : new Uint8Array(size);
  const below = { driver: "memory", store: storeOf(start) };
  const backing = isOverlay ? { driver: "raw", file: below } : null;
  const link = isOverlay && { backing };
  const disk = start.slice();
  const flushed: { moment: number; disk: Uint8Array }[] = [];
  {
    await using image = await openImage({ driver, file: log, ...link });
    for (let i = 0; i < 12; i++) {
      await change(image, disk, random);
      await image.flush();
      flushed.push({ moment: log.now, disk: disk.slice() });
    }
  }
  const moments = Array.from({ length: 15 }, () => random.below(log.now + 1))
    .sort((a, b) => a - b);
  for (const { moment, file } of log.cuts(moments, random)) {
    const done = flushed.filter((one) => one.moment <= moment);
    const before = done.at(-1)?.disk ?? start;
    const after = flushed[done.length]?.disk ?? disk;
    await examine?.(file, backing);
    await using image = await openImage({ ...stackOf(driver, file), ...link });
    const found = await image.read(0, size);
    for (let at = 0; at < size; at++) {
      if (found[at] === before[at] || found[at] === after[at]) continue;
      throw new Error(`seed ${seed}, cut at ${moment}: byte ${at}`);
    }
    // The next write does not overwrite anything else.
    const fresh = random.bytes(100);
    const offset = random.below(size - 100);
    await image.write(offset, fresh);
    found.set(fresh, offset);
    assertEquals(isEqual(await image.read(0, size), found), true);
  }
}

/** Values that have broken programs before. */
const VALUES = [
  ...[0n, 1n, 2n, 3n, 8n, 63n, 127n, 511n, 512n, 513n, 4095n, 4096n, 65536n],
  ...[1n << 20n, 0x7fffffffn, 0x80000000n, 0xffffffffn, 1n << 32n, 1n << 40n],
  ...[(1n << 44n) - 1n, (1n << 53n) - 1n, 1n << 53n, 1n << 62n],
  ...[(1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n, (1n << 64n) - 4096n],
];

/** A field's offset and length. */
export type Field = readonly [at: number, length: number];

/** Images to be damaged. */
export interface HostileSubject {
  readonly driver: string;
  readonly images: readonly Uint8Array[];
  readonly fields: readonly Field[];
  /** Offsets and lengths of tables whose entries have 4 or 8 bytes. */
  readonly tables: readonly Field[];
  readonly isLittleEndian: boolean;
}

/** Damage an image in one place; returns what was done. */
function damage(
  bytes: Uint8Array,
  { fields, tables, isLittleEndian }: HostileSubject,
  random: Random,
): string {
  const put = (at: number, length: number): string => {
    const value = random.pick(VALUES) +
      (random.oneIn(8) ? BigInt(random.below(1 << 16)) : 0n);
    for (let i = 0; i < length && at + i < bytes.length; i++) {
      const shift = isLittleEndian ? i : length - 1 - i;
      bytes[at + i] = Number(value >> BigInt(8 * shift) & 0xffn);
    }
    return `${length} bytes at ${at} = 0x${value.toString(16)}`;
  };
  switch (random.below(4)) {
    case 0:
    case 1:
      return put(...random.pick(fields));
    case 2: {
      const [start, length] = random.pick(tables);
      const at = start + 4 * random.below(length / 4);
      if (random.oneIn(3)) {
        // The same entry twice.
        const from = start + 8 * random.below(length / 8);
        const to = start + 8 * random.below(length / 8);
        bytes.copyWithin(to, from, from + 8);
        return `8 bytes at ${to} as at ${from}`;
      }
      return put(at, random.pick([4, 8]));
    }
  }
  const at = random.below(bytes.length);
  bytes[at] ^= 1 << random.below(8);
  return `byte ${at}`;
}

/** Whether an error was thrown on purpose. */
function isExpected(error: unknown): boolean {
  if (error instanceof SuppressedError) {
    return isExpected(error.error) && isExpected(error.suppressed);
  }
  return error instanceof BlockError && !(error instanceof UnexpectedError);
}

/** Do everything that can be done with an image, whatever it contains. */
async function useAll(stack: StackObject, random: Random): Promise<void> {
  for (const how of ["read", "write", "check"]) {
    const readOnly = how === "read";
    const purpose = how === "check" ? "check" : "io";
    await using image = await openImage(stack, { readOnly, purpose });
    const { node, size } = image;
    const near = (length: number) => Math.min(size, length);
    const places = [0, random.below(Math.min(size, 2 ** 24) + 1), size];
    const attempts: (() => unknown)[] = [
      () => node.info?.(),
      () => image.check(),
      async () => {
        let count = 0;
        for await (const _ of image.extents()) if (++count > 500) break;
      },
      ...places.map((at) => () => {
        const start = Math.max(0, Math.min(at, size - 300_000));
        return image.read(start, near(300_000));
      }),
    ];
    if (how === "write") {
      attempts.push(
        ...places.map((at) => () => {
          const start = Math.max(0, Math.min(at, size - 30_000));
          return image.write(start, new Uint8Array(near(30_000)).fill(7));
        }),
        () => image.writeZeroes(0, near(200_000)),
        () => image.discard(0, near(200_000)),
        () => image.flush(),
        () => image.writeCompressed(0, new Uint8Array(near(4096)).fill(1)),
        () => image.resize(size + 65536),
        () => node.image?.makeEmpty?.(),
      );
    } else if (how === "check") {
      const repair = { leaks: true, corruptions: true };
      attempts.push(() => image.check({ repair }), () => image.check());
    } else if (size < 2 ** 25) {
      attempts.push(async () => {
        const file = { driver: "memory", store: new MemoryStore() };
        await createImage("raw", file, { size });
        await using target = await openImage({ driver: "raw", file });
        await convert([node], target.node);
      });
    }
    for (const attempt of attempts) {
      try {
        await attempt();
      } catch (error) {
        const isFine = isExpected(error) || error instanceof AbsentVerbError;
        if (!isFine) throw error;
      }
    }
  }
}

/** The time that any image may take, in milliseconds. */
const LONGEST = 60_000;

/** Damage images in many ways, and use them. */
export async function surviveDamage(
  subject: HostileSubject,
  seeds: Iterable<number>,
): Promise<void> {
  for (const seed of seeds) {
    const random = new Random(seed);
    const bytes = random.pick(subject.images).slice();
    const steps: string[] = [];
    for (let left = 1 + random.below(3); left > 0; left--) {
      steps.push(damage(bytes, subject, random));
    }
    const what = `seed ${seed}: ${steps.join("; ")}`;
    const before = Deno.memoryUsage().external;
    const start = performance.now();
    try {
      await useAll(stackOf(subject.driver, bytes), random);
    } catch (error) {
      if (!isExpected(error)) throw new Error(what, { cause: error });
    }
    assert(performance.now() - start < LONGEST, what);
    const taken = Deno.memoryUsage().external - before;
    assert(taken < 300 * 1024 ** 2, `${what}: ${taken} bytes`);
  }
}

const MIB = 1024 * 1024;

/** Disks: their size, and the ranges with data. */
const DISKS: readonly [
  what: string,
  size: number,
  ...data: (readonly [at: number, length: number])[],
][] = [
  ["empty", 3 * MIB],
  ["sparse", 20 * MIB, [100, 70_000], [5 * MIB - 50, 9000], [19 * MIB, MIB]],
  ["full", 3 * MIB, [0, 3 * MIB]],
  ["of an odd size", 2 * MIB + 51_200 + 512, [2 * MIB, 51_712]],
  [
    "beyond 4 GiB",
    5 * 1024 * MIB + 512,
    [4 * 1024 * MIB - 3000, 6000],
    [5 * 1024 * MIB, 512],
  ],
];

/**
 * Have QEMU make an image of each disk, and read it; make one, and have QEMU
 * read and check it.
 *
 * @param ways Options of `convert`, for each way.
 */
export async function exchange(
  driver: string,
  ways: readonly (readonly string[])[],
  folder: TempDir,
  bdrv: readonly string[],
): Promise<void> {
  const random = new Random(7);
  const [raw, ours, theirs] = ["raw", "ours", "theirs"].map((name) =>
    folder.file(name)
  );
  for (const [what, size, ...data] of DISKS) {
    await Deno.writeFile(raw, new Uint8Array());
    await Deno.truncate(raw, size);
    {
      using file = await Deno.open(raw, { write: true });
      for (const [at, length] of data) {
        await file.seek(at, Deno.SeekMode.Start);
        await file.write(random.bytes(length));
      }
    }
    for (const options of ways) {
      const note = `${what}, ${options.join(" ")}`;
      const convert = ["convert", "-f", "raw", "-O", driver, ...options, raw];
      // QEMU does compress to qcow, but exits with an error and no message.
      await run(["qemu-img", ...convert, theirs]);
      await runOk([...bdrv, "qemu-img", ...convert, ours]);
      const compare = ["compare", "-f", "raw", "-F", driver, raw];
      await runOk([...bdrv, "qemu-img", ...compare, theirs]);
      await runOk(["qemu-img", ...compare, ours]);
      const check = await run(["qemu-img", "check", "-f", driver, ours]);
      // 63: the format has no checks.
      assert([0, 63].includes(check.code), `${note}: ${check.stdout}`);
      for (const file of [ours, theirs]) await Deno.remove(file);
    }
  }
}
