/**
 * Kills programs while they change images. They must leave sound images, at
 * worst with leaked clusters, that have the old or the new content. By hand:
 * `deno run -A tests/kills.ts 1000`.
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

/** A command that changes images, and their permitted content afterwards. */
export interface Work {
  /** The program's arguments; the images are in its working folder. */
  readonly command: readonly string[];
  /** Further preparation. */
  prepare?(folder: TempDir): Promise<unknown>;
  /** The possible sizes of the disk. */
  readonly sizes?: readonly number[];
  /** Run after a kill: it must succeed, and leave the content unchanged. */
  readonly again?: readonly string[];
}

const bdrv = (folder: TempDir, ...args: string[]) =>
  runOk([...BDRV, ...args], { cwd: folder.path });

/** The commands to kill, by name. */
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

/** Create `base.qcow2` and its overlay `top.qcow2`; returns the content. */
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
  // Opened for writing, so that a dirty image is repaired.
  await using image = await openImage(folder.file("top.qcow2"));
  return await image.read(0, image.size);
}

/**
 * Start a program and kill it after some time; whether it was still running.
 */
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
      // It has just ended.
    }
  }, milliseconds);
  const { signal } = await child.status;
  clearTimeout(timer);
  return signal === "SIGKILL";
}

/**
 * Assert that the image is sound except for leaks, also for QEMU if installed.
 */
async function assertSound(folder: TempDir, name: string): Promise<void> {
  const check = ["check", "-q", name];
  const programs = [[...BDRV, ...check]];
  if (isInstalled("qemu-img")) programs.push(["qemu-img", ...check]);
  for (const program of programs) {
    const { code, stderr } = await run(program, { cwd: folder.path });
    // 3: leaked clusters only.
    if (code === 0 || code === 3) continue;
    // Version 2 cannot mark a snapshot that is only half taken.
    const isMidway = stderr.split("\n").every((line) =>
      /^$|^Leaked cluster |OFLAG_COPIED/.test(line)
    );
    if (!isMidway) throw new Error(`${program}: ${stderr}`);
  }
}

/**
 * Run a command, kill it, and check the result.
 *
 * @returns whether it was still running.
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
  // A shrinking disk may lose data before its size changes.
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

/** How long a command takes, including its start, in milliseconds. */
async function measure(work: Work, random: Random): Promise<number> {
  await using folder = new TempDir();
  await makeImages(folder, random);
  await work.prepare?.(folder);
  const start = performance.now();
  await killAfter(folder, work.command, 1e6);
  return performance.now() - start;
}

/**
 * Kill each command, or those whose names begin with `prefix`, in turn, `count`
 * times in all.
 *
 * @returns how many were still running.
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
