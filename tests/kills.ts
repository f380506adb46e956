/**
 * Kills programs while they change images. They must leave sound images, at
 * worst with leaked clusters, that have the old or the new content. By hand:
 * `deno run -A tests/kills.ts 1000`.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { isEqual } from "../core/runtime.ts";
import { createImage, type Image, openImage } from "../mod.ts";
import { Random } from "./model.ts";
import { BDRV, isInstalled, run, runOk, TempDir } from "./qemu.ts";

const MIB = 1024 ** 2;
const SIZE = 12 * MIB;

/** The kind of a `top.qcow2`. */
interface Kind {
  readonly clusterSize: number;
  readonly compat: string;
  /** Further creation options. */
  readonly options: { readonly [name: string]: string | boolean | number };
  readonly isEncrypted?: boolean;
  readonly hasDataFile?: boolean;
}

/** A command that changes images, and their permitted content afterwards. */
export interface Work {
  /** The program's arguments; the images are in its working folder. */
  readonly command: readonly string[];
  /** Further preparation. */
  prepare?(folder: TempDir, kind: Kind): Promise<unknown>;
  /** Whether it works on images of a kind. Default: all. */
  suits?(kind: Kind): boolean;
  /** The possible sizes of the disk. */
  readonly sizes?: readonly number[];
  /** Run after a kill: it must succeed, and leave the content unchanged. */
  readonly again?: readonly string[];
  /** Whether `check` may find errors: there are some before. */
  readonly isDamaged?: boolean;
  /** Whether it writes, so that bitmap `b` has to cover the ranges. */
  readonly writes?: boolean;
}

/** The arguments with which a command opens an image of a kind. */
function argsFor({ isEncrypted }: Kind, args: readonly string[]): string[] {
  if (!isEncrypted) return [...args];
  const opened = "driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=key";
  const options = ["--object", "secret,id=key,data=sesame", "--image-opts"];
  const [command, ...rest] = args.map((arg) =>
    arg === "top.qcow2" ? opened : arg
  );
  return [command, ...options, ...rest];
}

const bdrv = (folder: TempDir, kind: Kind, ...args: string[]) =>
  runOk([...BDRV, ...argsFor(kind, args)], { cwd: folder.path });

const takeSnapshot = (folder: TempDir, kind: Kind) =>
  bdrv(folder, kind, "snapshot", "-c", "s", "top.qcow2");

const addBitmap = (folder: TempDir, kind: Kind) =>
  bdrv(folder, kind, "bitmap", "--add", "-g", "64k", "top.qcow2", "b");

const withoutDataFile = ({ hasDataFile }: Kind) => !hasDataFile;
const isVersion3 = ({ compat }: Kind) => compat === "1.1";

/** Writes of `qemu-io`, scattered over the disk. */
const SCATTERED = Array.from(
  { length: 300 },
  (_, i) => ["-c", `write -P ${i % 255} ${(i * 37 % 187) * 64}k 20k`],
).flat();

/** The commands to kill, by name. */
export const WORKS: { readonly [name: string]: Work } = {
  "commit": {
    command: ["commit", "top.qcow2"],
    again: ["commit", "top.qcow2"],
  },
  "commit with a snapshot": {
    command: ["commit", "top.qcow2"],
    prepare: takeSnapshot,
    suits: withoutDataFile,
    again: ["commit", "top.qcow2"],
  },
  "convert": {
    command: ["convert", "-O", "qcow2", "top.qcow2", "other.qcow2"],
  },
  "convert -c": {
    command: ["convert", "-c", "-O", "qcow2", "top.qcow2", "other.qcow2"],
  },
  "snapshot -c": {
    command: ["snapshot", "-c", "s", "top.qcow2"],
    suits: withoutDataFile,
  },
  "snapshot -a": {
    command: ["snapshot", "-a", "s", "top.qcow2"],
    prepare: takeSnapshot,
    suits: withoutDataFile,
  },
  "snapshot -d": {
    command: ["snapshot", "-d", "s", "top.qcow2"],
    prepare: takeSnapshot,
    suits: withoutDataFile,
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
  "amend to version 3": {
    command: ["amend", "-o", "compat=1.1", "top.qcow2"],
    suits: ({ compat }) => compat === "0.10",
    again: ["amend", "-o", "compat=1.1", "top.qcow2"],
  },
  "amend to version 2": {
    command: ["amend", "-o", "compat=0.10", "top.qcow2"],
    suits: (kind) =>
      isVersion3(kind) && !kind.hasDataFile && !kind.isEncrypted &&
      !kind.options.extended_l2,
    again: ["amend", "-o", "compat=0.10", "top.qcow2"],
  },
  "amend the refcount width": {
    command: ["amend", "-o", "refcount_bits=64", "top.qcow2"],
    prepare: (folder, kind) =>
      kind.hasDataFile ? Promise.resolve() : takeSnapshot(folder, kind),
    suits: isVersion3,
    again: ["amend", "-o", "refcount_bits=64", "top.qcow2"],
  },
  "bitmap --add": {
    command: ["bitmap", "--add", "-g", "512", "top.qcow2", "a"],
    prepare: addBitmap,
    suits: isVersion3,
  },
  "bitmap --merge": {
    command: ["bitmap", "--merge", "b", "top.qcow2", "a"],
    prepare: async (folder, kind) => {
      await bdrv(folder, kind, "bitmap", "--add", "top.qcow2", "a");
      await addBitmap(folder, kind);
    },
    suits: isVersion3,
  },
  "write with a bitmap": {
    command: ["qemu-io", ...SCATTERED, "top.qcow2"],
    prepare: addBitmap,
    suits: (kind) => isVersion3(kind) && !kind.isEncrypted,
    writes: true,
  },
  "check -r all": {
    command: ["check", "-q", "-r", "all", "top.qcow2"],
    prepare: damageRefcounts,
    again: ["check", "-q", "-r", "all", "top.qcow2"],
    isDamaged: true,
  },
};

/** Change the second half of the first refcount block: errors and leaks. */
async function damageRefcounts(folder: TempDir): Promise<void> {
  const name = folder.file("top.qcow2");
  const bytes = await Deno.readFile(name);
  const view = new DataView(bytes.buffer);
  const clusterSize = 2 ** view.getUint32(20);
  const block = Number(view.getBigUint64(Number(view.getBigUint64(48))));
  const half = block + clusterSize / 2;
  for (let i = half; i < block + clusterSize; i += 2) {
    view.setUint16(i, (i / 2) % 3);
  }
  await Deno.writeFile(name, bytes);
}

function randomKind(random: Random): Kind {
  const clusterSize = random.pick([512, 4096, 65536]);
  const compat = random.pick(["0.10", "1.1"]);
  const options = { cluster_size: clusterSize, compat };
  const plain = { clusterSize, compat, options };
  if (compat === "0.10") return plain;
  switch (random.below(6)) {
    case 0:
      return {
        ...plain,
        clusterSize: 65536,
        options: { compat, cluster_size: 65536, extended_l2: true },
      };
    case 1:
      return {
        ...plain,
        options: { ...options, data_file: "top.data" },
        hasDataFile: true,
      };
    case 2:
      return {
        ...plain,
        options: {
          ...options,
          "encrypt.format": "luks",
          "encrypt.key-secret": "key",
          "encrypt.iter-time": 0,
          "encrypt.cipher-alg": "aes-128",
        },
        isEncrypted: true,
      };
    default:
      return plain;
  }
}

const SECRETS = { secrets: { key: "sesame" } };

function openTop(folder: TempDir, { isEncrypted }: Kind, readOnly = false) {
  const file = folder.file("top.qcow2");
  return openImage(
    isEncrypted ? { driver: "qcow2", file, "encrypt.key-secret": "key" } : file,
    { readOnly, ...(isEncrypted && SECRETS) },
  );
}

/** Create `base.qcow2` and its overlay `top.qcow2`; returns the content. */
async function makeImages(
  folder: TempDir,
  random: Random,
  kind: Kind,
): Promise<Uint8Array> {
  const { clusterSize, compat } = kind;
  const options = { cluster_size: clusterSize, compat, size: SIZE };
  await createImage("qcow2", folder.file("base.qcow2"), options);
  await using base = await openImage(folder.file("base.qcow2"));
  await scribble(base, random, true);
  await base.close();
  await createImage("qcow2", folder.file("top.qcow2"), {
    ...kind.options,
    ...(kind.hasDataFile && { data_file: folder.file("top.data") }),
    size: SIZE,
    backing_file: "base.qcow2",
    backing_fmt: "qcow2",
  }, kind.isEncrypted ? SECRETS : {});
  await using top = await openTop(folder, kind);
  await scribble(top, random, !kind.hasDataFile && !kind.isEncrypted);
  await top.close();
  return await contentOf(folder, kind);
}

async function scribble(
  image: Image,
  random: Random,
  compresses: boolean,
): Promise<void> {
  for (let i = 0; i < 40; i++) {
    const bytes = random.bytes(1 + random.below(200_000));
    await image.write(random.below(SIZE - bytes.length), bytes);
    // Compressed clusters share sectors with their neighbours.
    const unit = 65536;
    const at = random.below(SIZE / unit) * unit;
    if (compresses && random.oneIn(2)) {
      const text = new Uint8Array(unit).fill(i);
      text.set(random.bytes(700), 9);
      // Compressed writes cannot replace allocated clusters.
      await image.writeCompressed(at, text).catch(() => {});
    } else if (random.oneIn(3)) {
      await image.discard(at, unit);
    }
  }
}

async function contentOf(folder: TempDir, kind: Kind): Promise<Uint8Array> {
  // Opening it for writing repairs a dirty image.
  await using image = await openTop(folder, kind);
  return await image.read(0, image.size);
}

/**
 * Start a program, and kill it after some time; returns whether it was still
 * running.
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
 * Assert that the image is sound except for leaks, according to QEMU too if
 * installed.
 */
async function assertSound(
  folder: TempDir,
  name: string,
  kind: Kind,
): Promise<void> {
  const check = argsFor(kind, ["check", "-q", name]);
  const programs = [[...BDRV, ...check]];
  if (isInstalled("qemu-img")) programs.push(["qemu-img", ...check]);
  for (const program of programs) {
    const { code, stderr } = await run(program, { cwd: folder.path });
    // 3 means leaked clusters only.
    if (code === 0 || code === 3) continue;
    // Version 2 cannot mark a snapshot that is only half taken.
    const isMidway = kind.compat === "0.10" &&
      stderr.split("\n").every((line) =>
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
  kind: Kind,
  full: number,
): Promise<boolean> {
  await using folder = new TempDir();
  const before = await makeImages(folder, random, kind);
  await work.prepare?.(folder, kind);
  const delay = full * (0.3 + 0.75 * random.below(1000) / 1000);
  const command = argsFor(kind, work.command);
  const isKilled = await killAfter(folder, command, delay);
  if (work.writes) {
    await assertRecorded(folder, kind, before);
    await assertSound(folder, "top.qcow2", kind);
    return isKilled;
  }
  const found = await contentOf(folder, kind);
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
  if (!work.isDamaged) await assertSound(folder, "top.qcow2", kind);
  if (work.command[0] === "commit") {
    await assertSound(folder, "base.qcow2", { ...kind, isEncrypted: false });
  }
  if (work.again) {
    await bdrv(folder, kind, ...work.again);
    const then = await contentOf(folder, kind);
    assertEquals(isEqual(then, before), true, "changed by the repetition");
    await assertSound(folder, "top.qcow2", kind);
  }
  return isKilled;
}

/** Assert that bitmap `b` covers all changes, or is marked as in use. */
async function assertRecorded(
  folder: TempDir,
  kind: Kind,
  before: Uint8Array,
): Promise<void> {
  await using image = await openTop(folder, kind, true);
  const [bitmap] = await image.bitmaps.list();
  if (bitmap.flags.includes("in-use")) return;
  const after = await image.read(0, image.size);
  for await (const { offset, length } of image.bitmaps.dirty("b")) {
    after.set(before.subarray(offset, offset + length), offset);
  }
  assertEquals(isEqual(after, before), true, "bitmap 'b' lacks writes");
}

/** How long a command takes, including its start, in milliseconds. */
async function measure(
  work: Work,
  random: Random,
  kind: Kind,
): Promise<number> {
  await using folder = new TempDir();
  await makeImages(folder, random, kind);
  await work.prepare?.(folder, kind);
  const start = performance.now();
  await killAfter(folder, argsFor(kind, work.command), 1e6);
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
    let kind = randomKind(random);
    while (work.suits?.(kind) === false) kind = randomKind(random);
    // The time depends mostly on the number of clusters.
    const key = `${name} ${kind.clusterSize}`;
    try {
      if (!times.has(key)) times.set(key, await measure(work, random, kind));
      const isKilled = await killOnce(work, random, kind, times.get(key)!);
      killed[name] = (killed[name] ?? 0) + Number(isKilled);
    } catch (error) {
      const about = `${name}, seed ${seed + i}, ${
        JSON.stringify(kind.options)
      }`;
      throw new Error(`${about}: ${error}`, { cause: error });
    }
  }
  return killed;
}

if (import.meta.main) {
  const [count = "100", seed = "1", prefix] = Deno.args;
  console.log(await kill(Number(count), Number(seed), prefix));
}
