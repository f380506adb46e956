/**
 * Kills programs while they change images, and looks at what they leave: sound
 * images (at worst with leaked clusters) that hold what they held before, or
 * what they were to hold then. By hand: `deno run -A tests/kills.ts 1000`.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { isEqual } from "../core/runtime.ts";
import { createImage, openImage } from "../mod.ts";
import { Random } from "./model.ts";
import { BDRV, isInstalled, run, runOk, TempDir } from "./qemu.ts";

const MIB = 1024 ** 2;
const SIZE = 12 * MIB;

/** Something that changes images, and what they may read as afterwards. */
export interface Work {
  /** The arguments of the program; the images are in its working folder. */
  readonly command: readonly string[];
  /** More that is to be done before. */
  prepare?(folder: TempDir): Promise<unknown>;
  /** Sizes that the disk may have. */
  readonly sizes?: readonly number[];
  /** Run after a kill: it must succeed, and leave the content as it was. */
  readonly again?: readonly string[];
}

const bdrv = (folder: TempDir, ...args: string[]) =>
  runOk([...BDRV, ...args], { cwd: folder.path });

/** What is killed, by name. */
export const WORKS: { readonly [name: string]: Work } = {
  "commit": {
    command: ["commit", "top.qcow2"],
    again: ["commit", "top.qcow2"],
  },
  "commit with a snapshot": {
    command: ["commit", "top.qcow2"],
    prepare: (folder) => bdrv(folder, "snapshot", "-c", "s", "top.qcow2"),
    again: ["commit", "top.qcow2"],
  },
  "convert": {
    command: ["convert", "-O", "qcow2", "top.qcow2", "other.qcow2"],
  },
  "convert -c": {
    command: ["convert", "-c", "-O", "qcow2", "top.qcow2", "other.qcow2"],
  },
  "snapshot -c": { command: ["snapshot", "-c", "s", "top.qcow2"] },
  "snapshot -a": {
    command: ["snapshot", "-a", "s", "top.qcow2"],
    prepare: (folder) => bdrv(folder, "snapshot", "-c", "s", "top.qcow2"),
  },
  "snapshot -d": {
    command: ["snapshot", "-d", "s", "top.qcow2"],
    prepare: (folder) => bdrv(folder, "snapshot", "-c", "s", "top.qcow2"),
  },
  "resize": {
    command: ["resize", "top.qcow2", "64M"],
    sizes: [SIZE, 64 * MIB],
  },
  "resize --shrink": {
    command: ["resize", "--shrink", "top.qcow2", "5M"],
    sizes: [SIZE, 5 * MIB],
  },
  "rebase": {
    command: ["rebase", "-b", "", "top.qcow2"],
    again: ["rebase", "-b", "", "top.qcow2"],
  },
};

/** Make `base.qcow2` and, on top of it, `top.qcow2`; answers what it holds. */
async function makeImages(
  folder: TempDir,
  random: Random,
): Promise<Uint8Array> {
  const options = {
    cluster_size: random.pick([512, 4096, 65536]),
    compat: random.pick(["0.10", "1.1"]),
    size: SIZE,
  };
  await createImage("qcow2", folder.file("base.qcow2"), options);
  await scribble(folder.file("base.qcow2"), random);
  await createImage("qcow2", folder.file("top.qcow2"), {
    ...options,
    backing_file: "base.qcow2",
    backing_fmt: "qcow2",
  });
  await scribble(folder.file("top.qcow2"), random);
  return await contentOf(folder);
}

async function scribble(name: string, random: Random): Promise<void> {
  await using image = await openImage(name);
  for (let i = 0; i < 40; i++) {
    const bytes = random.bytes(1 + random.below(200_000));
    await image.write(random.below(SIZE - bytes.length), bytes);
  }
}

async function contentOf(folder: TempDir): Promise<Uint8Array> {
  // Read-only would do, but images that are marked as dirty are repaired so.
  await using image = await openImage(folder.file("top.qcow2"));
  return await image.read(0, image.size);
}

/** Start a program and kill it after some time; whether it was still there. */
async function killAfter(
  folder: TempDir,
  args: readonly string[],
  milliseconds: number,
): Promise<boolean> {
  const [program, ...before] = BDRV;
  const child = new Deno.Command(program, {
    args: [...before, ...args],
    cwd: folder.path,
    stdin: "null",
    stdout: "null",
    stderr: "null",
  }).spawn();
  const timer = setTimeout(() => {
    try {
      child.kill("SIGKILL");
    } catch {
      // It has just ended by itself.
    }
  }, milliseconds);
  const { signal } = await child.status;
  clearTimeout(timer);
  return signal === "SIGKILL";
}

/** The image is sound but for leaks; for QEMU too, where it is installed. */
async function assertSound(folder: TempDir, name: string): Promise<void> {
  const check = ["check", "-q", name];
  const programs = [[...BDRV, ...check]];
  if (isInstalled("qemu-img")) programs.push(["qemu-img", ...check]);
  for (const program of programs) {
    const { code, stderr } = await run(program, { cwd: folder.path });
    // 3: leaked clusters only.
    if (code === 0 || code === 3) continue;
    // Version 2 has no mark for a snapshot of which some flags are not set yet.
    const isMidway = stderr.split("\n").every((line) =>
      /^$|^Leaked cluster |OFLAG_COPIED/.test(line)
    );
    if (!isMidway) throw new Error(`${program}: ${stderr}`);
  }
}

/**
 * Do a work, be killed, and look at what is left.
 *
 * @returns whether there was anything to kill.
 */
async function killOnce(
  work: Work,
  random: Random,
  full: number,
): Promise<boolean> {
  await using folder = new TempDir();
  const before = await makeImages(folder, random);
  await work.prepare?.(folder);
  const delay = full * (0.3 + 0.75 * random.below(1000) / 1000);
  const isKilled = await killAfter(folder, work.command, delay);
  const found = await contentOf(folder);
  const sizes = work.sizes ?? [SIZE];
  assertEquals(sizes.includes(found.length), true, `size ${found.length}`);
  const common = Math.min(found.length, before.length);
  // What a shrinking disk loses may be gone before its size changes.
  const kept = Math.min(common, ...sizes);
  assertEquals(
    isEqual(found.subarray(0, kept), before.subarray(0, kept)),
    true,
    "the content has changed",
  );
  await assertSound(folder, "top.qcow2");
  if (work.command[0] === "commit") await assertSound(folder, "base.qcow2");
  if (work.again) {
    await bdrv(folder, ...work.again);
    const then = await contentOf(folder);
    assertEquals(isEqual(then, before), true, "changed by the second time");
  }
  return isKilled;
}

/** How long a work takes, in milliseconds, start and all. */
async function measure(work: Work, random: Random): Promise<number> {
  await using folder = new TempDir();
  await makeImages(folder, random);
  await work.prepare?.(folder);
  const start = performance.now();
  await killAfter(folder, work.command, 1e6);
  return performance.now() - start;
}

/**
 * Kill each work, or those whose names begin with `prefix`, in turn, `count`
 * times in all.
 *
 * @returns how many were still at work then.
 */
export async function kill(count: number, seed: number, prefix = "") {
  const works = Object.entries(WORKS).filter(([name]) =>
    name.startsWith(prefix)
  );
  const killed: { [name: string]: number } = {};
  const times = new Map<string, number>();
  for (let i = 0; i < count; i++) {
    const [name, work] = works[i % works.length];
    const random = new Random(seed + i);
    if (!times.has(name)) times.set(name, await measure(work, random));
    try {
      const isKilled = await killOnce(work, random, times.get(name)!);
      killed[name] = (killed[name] ?? 0) + Number(isKilled);
    } catch (error) {
      throw new Error(`${name}, seed ${seed + i}: ${error}`, { cause: error });
    }
  }
  return killed;
}

if (import.meta.main) {
  const [count = "100", seed = "1", prefix] = Deno.args;
  console.log(await kill(Number(count), Number(seed), prefix));
}
