/**
 * A chain of overlays to which QEMU and we write in turn reads the same to
 * both.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { isEqual } from "../../core/runtime.ts";
import { createImage, openImage } from "../../mod.ts";
import { Random } from "../model.ts";
import { qemuTest, runOk, TempDir } from "../qemu.ts";

const MIB = 1024 * 1024;

/** Layers from the base up, of smaller and larger sizes. */
const LAYERS = [
  { name: "base.qcow2", size: 3 * MIB + 512, clusterSize: 65536, compat: "v2" },
  { name: "one.qcow2", size: 2 * MIB, clusterSize: 4096, compat: "v3" },
  { name: "two.qcow2", size: 4 * MIB, clusterSize: 512, compat: "v3" },
  {
    name: "three.qcow2",
    size: 4 * MIB - 1536,
    clusterSize: 65536,
    compat: "v3",
  },
];

/** Requests as qemu-io commands. */
function requests(random: Random, size: number): string[] {
  return Array.from({ length: 25 }, () => {
    const offset = random.below(size - 1);
    const length = Math.min(size - offset, 1 + random.below(150_000));
    const aligned = offset - offset % 512;
    return random.pick([
      `write -P ${1 + random.below(255)} ${offset} ${length}`,
      `write -P ${1 + random.below(255)} ${offset} ${length}`,
      `write -z ${offset} ${length}`,
      `write -z -u ${offset} ${length}`,
      `discard ${aligned} ${Math.min(size - aligned, 512 * 300)}`,
    ]);
  });
}

/** Do what a qemu-io command does, through our own handle. */
async function perform(filename: string, words: string[]): Promise<void> {
  await using image = await openImage(filename);
  await Promise.all(words.map(async (line) => {
    const numbers = line.match(/\b\d+\b/g)!.map(Number);
    const [offset, length] = numbers.slice(-2);
    if (line.startsWith("discard")) await image.discard(offset, length);
    else if (line.includes("-z")) {
      await image.writeZeroes(offset, length, { unmap: line.includes("-u") });
    } else {
      await image.write(offset, new Uint8Array(length).fill(numbers[0]));
    }
  }));
}

async function performWithQemu(
  filename: string,
  words: string[],
): Promise<void> {
  const commands = words.flatMap((line) => ["-c", line]);
  await runOk(["qemu-io", "-d", "unmap", ...commands, filename]);
}

qemuTest("a chain written to by QEMU and by us reads the same", async () => {
  for (const seed of [1, 2]) {
    await using folder = new TempDir();
    const random = new Random(seed);
    let below: string | undefined;
    for (const { name, size, clusterSize, compat } of LAYERS) {
      const filename = folder.file(name);
      const backing = below && { backing_file: below, backing_fmt: "qcow2" };
      const options = { size, cluster_size: clusterSize, compat, ...backing };
      if (random.oneIn(2)) {
        await createImage("qcow2", filename, options);
      } else {
        const list = Object.entries(options)
          .map(([key, value]) => `${key}=${value}`).join(",");
        await runOk([
          "qemu-img",
          "create",
          "-f",
          "qcow2",
          "-o",
          list,
          filename,
        ]);
      }
      for (let turn = 0; turn < 4; turn++) {
        const words = requests(random, size);
        if (turn % 2 === 0) await perform(filename, words);
        else await performWithQemu(filename, words);
      }
      await runOk(["qemu-img", "check", filename]);
      await assertSameContent(filename, folder);
      below = name;
    }
  }
}, ["qemu-img", "qemu-io"]);

async function assertSameContent(
  filename: string,
  folder: TempDir,
): Promise<void> {
  const raw = folder.file("content.raw");
  await runOk(["qemu-img", "convert", "-O", "raw", filename, raw]);
  await using image = await openImage(filename, { readOnly: true });
  const content = await image.read(0, image.size);
  assertEquals(isEqual(content, await Deno.readFile(raw)), true, filename);
}
