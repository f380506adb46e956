/**
 * The input images. Each is made when a workload first needs it.
 *
 * @module
 */
import { runTool } from "./measure.ts";

const MIB = 1024 * 1024;

/** Makes the image `name` in the folder; `size` is that of `mixed`. */
type Recipe = (name: string, size: number, folder: string) => Promise<void>;

const recipes: { [name: string]: Recipe } = {
  "mixed.raw": makeMixed,
  "mixed.qcow2": asQcow2("mixed.raw"),
  "mixed.luks": encrypted("luks", "mixed.raw"),
  "empty.luks": encrypted("luks"),
  "mixed-luks.qcow2": encrypted("qcow2", "mixed.raw"),
  "empty-luks.qcow2": encrypted("qcow2"),
  // QEMU compresses slowly, so this input is smaller.
  "quarter.raw": (name, size, folder) => makeMixed(name, size / 4, folder),
  "full.raw": async (name, size, folder) => {
    using file = await open(folder, name);
    for (let piece = 0; piece * 8 * MIB < size; piece++) {
      await file.write(piece % 2 === 0 ? random(MIB) : text(MIB, piece));
    }
  },
  "random.raw": async (name, size, folder) => {
    using file = await open(folder, name);
    for (let at = 0; at < size; at += MIB) await file.write(random(MIB));
  },
  "huge.qcow2": (name, _size, folder) =>
    runTool(folder, "qemu-img", ["create", "-q", "-f", "qcow2", name, "64T"]),
  "zlib.qcow2": asQcow2("quarter.raw", "-c"),
  "large.raw": (name, size, folder) => makeMixed(name, size * 4, folder),
  "large.vdi": asFormat("large.raw", "vdi"),
  "large.vhdx": asFormat("large.raw", "vhdx"),
  "large.vpc": asFormat("large.raw", "vpc", "-o", "force_size=on"),
  "large.vmdk": asFormat("large.raw", "vmdk"),
  "stream.vmdk": asFormat(
    "mixed.raw",
    "vmdk",
    "-o",
    "subformat=streamOptimized",
  ),
  "zstd.qcow2": asQcow2("quarter.raw", "-c", "-o", "compression_type=zstd"),
  // Two layers: the upper one replaces half of the random data.
  "overlay.qcow2": async (name, size, folder) => {
    await makeInput("mixed.qcow2", size, folder);
    const backing = ["-b", "mixed.qcow2", "-F", "qcow2"];
    await runTool(folder, "qemu-img", [
      ...["create", "-q", "-f", "qcow2", ...backing, name],
    ]);
    const writes = [];
    for (let at = 0; at < size; at += 8 * MIB) {
      writes.push("-c", `write -q -P 0x5a ${at} ${MIB}`);
    }
    await runTool(folder, "qemu-io", [...writes, name]);
  },
  "sparse.raw": async (name, size, folder) => {
    using file = await open(folder, name);
    await file.truncate(500 * size);
    for (let at = 0; at < 8; at++) {
      await file.seek(at * 60 * size, Deno.SeekMode.Start);
      await file.write(text(MIB, at));
    }
  },
  "preallocated.qcow2": async (name, size, folder) => {
    await runTool(folder, "qemu-img", [
      ...["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"],
      ...[name, `${256 * size}`],
    ]);
  },
};

/** Make an image, unless it exists. */
export async function makeInput(
  name: string,
  size: number,
  folder: string,
): Promise<void> {
  try {
    await Deno.stat(`${folder}/${name}`);
  } catch {
    await recipes[name](name, size, folder);
  }
}

/** Whether there is a recipe for an image. */
export function isInput(name: string): boolean {
  return Object.hasOwn(recipes, name);
}

/** A quarter random, a quarter text, half holes, alternating every MiB. */
async function makeMixed(
  name: string,
  size: number,
  folder: string,
): Promise<void> {
  using file = await open(folder, name);
  await file.truncate(size);
  for (let piece = 0; piece * MIB < size; piece += 2) {
    await file.seek(piece * MIB, Deno.SeekMode.Start);
    await file.write(piece % 4 === 0 ? random(MIB) : text(MIB, piece));
  }
}

function asFormat(input: string, format: string, ...options: string[]): Recipe {
  return async (name, size, folder) => {
    await makeInput(input, size, folder);
    await runTool(folder, "qemu-img", [
      ...["convert", "-f", "raw", "-O", format, ...options],
      ...[input, name],
    ]);
  };
}

/**
 * QEMU needs several attempts at a LUKS header when deriving keys is too fast.
 */
const ATTEMPTS = 40;

/** An encrypted image with the content of `source`, or an empty one. */
function encrypted(format: "luks" | "qcow2", source?: string): Recipe {
  const options = format === "luks"
    ? "key-secret=key,iter-time=100"
    : "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=100";
  const how = ["--object", "secret,id=key,data=bench", "-o", options];
  return async (name, size, folder) => {
    if (source) await makeInput(source, size, folder);
    const args = source
      ? ["convert", "-f", "raw", "-O", format, ...how, source, name]
      : ["create", "-q", "-f", format, ...how, name, `${size}`];
    for (let left = ATTEMPTS;; left--) {
      try {
        return await runTool(folder, "qemu-img", args);
      } catch (error) {
        const isTooFast = `${error}`.includes("accurate CPU usage");
        if (!isTooFast || left === 0) throw error;
      }
    }
  };
}

function asQcow2(source: string, ...options: string[]): Recipe {
  return async (name, size, folder) => {
    await makeInput(source, size, folder);
    await runTool(folder, "qemu-img", [
      ...["convert", "-f", "raw", "-O", "qcow2", ...options, source, name],
    ]);
  };
}

function open(folder: string, name: string): Promise<Deno.FsFile> {
  return Deno.open(`${folder}/${name}`, { create: true, write: true });
}

const WORDS = ("the block layer of a virtual machine reads and writes disk " +
  "images whose clusters are found by way of tables error warning info " +
  "2025-01-01T00:00:00Z kernel: daemon started connection from port user")
  .split(" ");

function random(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, at + 65536));
  }
  return bytes;
}

/** Words in a pseudo-random order, determined by `seed`. */
function text(length: number, seed: number): Uint8Array {
  const words: string[] = [];
  let state = seed | 1;
  for (let bytes = 0; bytes < length;) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    const word = WORDS[(state >>> 16) % WORDS.length];
    words.push(word);
    bytes += word.length + 1;
  }
  return new TextEncoder().encode(words.join(" ")).subarray(0, length);
}
