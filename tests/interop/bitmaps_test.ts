/**
 * Persistent bitmaps in both directions: what one side has recorded, the other
 * reads and keeps up to date.
 *
 * @module
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { DirtyExtent } from "../../core/node.ts";
import { openImage } from "../../mod.ts";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

const NEEDED = ["qemu-img", "qemu-io", "qemu-nbd"];

/** The content of a bitmap according to QEMU, through an NBD export. */
async function qemuDirty(
  dir: TempDir,
  image: string,
  bitmap: string,
): Promise<DirtyExtent[]> {
  const socket = dir.file("nbd.sock");
  await using _ = await exportImage(dir, image, bitmap, socket);
  const map = JSON.parse(
    await runOk([
      "qemu-img",
      "map",
      "--output=json",
      "--image-opts",
      `driver=nbd,server.type=unix,server.path=${socket},` +
      `x-dirty-bitmap=qemu:dirty-bitmap:${bitmap}`,
    ]),
  ) as { start: number; length: number; data: boolean }[];
  const dirty = map.filter(({ data }) => !data);
  return dirty.map(({ start, length }) => ({ offset: start, length }));
}

async function exportImage(
  dir: TempDir,
  image: string,
  bitmap: string,
  socket: string,
): Promise<AsyncDisposable> {
  const args = ["-r", "-f", "qcow2", "-B", bitmap, "-k", socket, image];
  const server = new Deno.Command("qemu-nbd", {
    args,
    cwd: dir.path,
    stderr: "null",
  }).spawn();
  for (let tries = 0; tries < 500; tries++) {
    const isThere = await Deno.stat(socket).then(() => true, () => false);
    if (isThere) break;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return {
    async [Symbol.asyncDispose]() {
      // It may have ended along with its only client.
      try {
        server.kill();
      } catch {
        // It is gone already.
      }
      await server.status;
      await Deno.remove(socket).catch(() => {});
    },
  };
}

async function ownDirty(
  dir: TempDir,
  name: string,
  bitmap: string,
): Promise<DirtyExtent[]> {
  const filename = dir.file(name);
  await using image = await openImage(filename, { readOnly: true });
  return await Array.fromAsync(image.bitmaps.dirty(bitmap));
}

/** The same commands for QEMU's tools and for ours. */
const STEPS: readonly (readonly string[])[] = [
  ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "OPTIONS", "X", "10M"],
  ["qemu-img", "bitmap", "--add", "X", "b0"],
  ["qemu-img", "bitmap", "--add", "-g", "512", "X", "b1"],
  ["qemu-img", "bitmap", "--add", "-g", "4k", "--disable", "X", "b2"],
  [
    "qemu-io",
    ...["write 100k 70k", "write 1M 1", "discard 2000k 1000k"],
    ...["write -z 3M 5000", "write -z -u 4M 128k", "write 10485759 1"],
    "X",
  ],
  ["qemu-io", "write -c 6M 2M", "discard 5M 100k", "X"],
  ["qemu-img", "bitmap", "--enable", "X", "b2"],
  ["qemu-io", "write 0 1k", "discard 7M 7777", "write 512 512", "X"],
  ["qemu-img", "bitmap", "--merge", "b1", "X", "b2"],
  ["qemu-img", "resize", "-q", "X", "13M"],
  ["qemu-io", "write 12M 1M", "X"],
  ["qemu-img", "resize", "-q", "--shrink", "X", "4500k"],
  ["qemu-img", "resize", "-q", "X", "13M"],
  ["qemu-img", "snapshot", "-c", "now", "X"],
  ["qemu-io", "write 9M 3000", "X"],
  ["qemu-img", "snapshot", "-d", "now", "X"],
  ["qemu-img", "amend", "-o", "lazy_refcounts=on", "X"],
  ["qemu-img", "bitmap", "--clear", "--disable", "--enable", "X", "b0"],
  ["qemu-io", "write 1M 100k", "X"],
  ["qemu-img", "bitmap", "--remove", "--add", "-g", "2G", "X", "b2"],
  ["qemu-io", "write 2M 1", "X"],
];

/** The bitmaps that exist after a step, by the step that creates them. */
const BITMAPS = ["b0", "b1", "b2"];

/** Do one step with our tools, or with QEMU's. */
async function step(
  dir: TempDir,
  words: readonly string[],
  options: string,
  name: string,
  isOurs: boolean,
): Promise<void> {
  const [tool, ...rest] = words.map((word) =>
    word === "X" ? name : word === "OPTIONS" ? options : word
  );
  const args = tool === "qemu-io"
    ? [
      "-d",
      "unmap",
      ...rest.flatMap((word) => word === name ? [word] : ["-c", word]),
    ]
    : rest;
  await runOk([...(isOurs ? BDRV : []), tool, ...args], { cwd: dir.path });
}

for (
  const options of ["cluster_size=4k", "cluster_size=2M"]
) {
  qemuTest(`bitmaps record the same as QEMU's (${options})`, async () => {
    await using dir = new TempDir();
    for (const [index, words] of STEPS.entries()) {
      await step(dir, words, options, "theirs", false);
      // Alternate the tools: each continues where the other left off.
      await step(dir, words, options, "mixed", index % 2 === 0);
      await step(dir, words, options, "ours", true);
      if (index < 3) continue;
      for (const bitmap of BITMAPS) {
        const expected = await ownDirty(dir, "theirs", bitmap);
        const what = `${words.join(" ")}: ${bitmap}`;
        assertEquals(await ownDirty(dir, "mixed", bitmap), expected, what);
        assertEquals(await ownDirty(dir, "ours", bitmap), expected, what);
      }
    }
    const infos = await Promise.all(
      ["theirs", "mixed", "ours"].map(async (name) => {
        await runOk(["qemu-img", "check", "-q", name], { cwd: dir.path });
        const command = ["qemu-img", "info", "--output=json", name];
        const info = JSON.parse(await runOk(command, { cwd: dir.path }));
        return info["format-specific"].data.bitmaps;
      }),
    );
    assertEquals(infos[1], infos[0]);
    assertEquals(infos[2], infos[0]);
    for (const name of ["theirs", "mixed", "ours"]) {
      for (const bitmap of BITMAPS) {
        const found = await qemuDirty(dir, name, bitmap);
        const expected = await ownDirty(dir, "theirs", bitmap);
        assertEquals(found, expected, `QEMU's map of ${name}, ${bitmap}`);
      }
    }
  }, NEEDED);
}

qemuTest("convert --bitmaps copies what QEMU copies", async (t) => {
  await using dir = new TempDir();
  const cwd = dir.path;
  for (const words of STEPS.slice(0, 6)) {
    await step(dir, words, "cluster_size=64k", "source", false);
  }
  const converts = [
    "convert --bitmaps -O qcow2 source",
    "convert --bitmaps -c -O qcow2 -o cluster_size=4k source",
    "convert --bitmaps -O qcow2 -o cluster_size=2M,compression_type=zstd source",
    "convert --bitmaps -O qcow2 -B source -F qcow2 source",
  ];
  for (const command of converts) {
    await t.step(command, async () => {
      const words = ["qemu-img", ...command.split(" ")];
      await runOk([...words, "theirs"], { cwd });
      await runOk([...BDRV, ...words, "ours"], { cwd });
      for (const bitmap of BITMAPS) {
        const expected = await ownDirty(dir, "theirs", bitmap);
        assertEquals(await ownDirty(dir, "ours", bitmap), expected);
        assertEquals(await qemuDirty(dir, "ours", bitmap), expected);
      }
      await runOk(["qemu-img", "check", "-q", "ours"], { cwd });
    });
  }
}, NEEDED);

qemuTest("commit and rebase record what they write", async () => {
  await using dir = new TempDir();
  const cwd = dir.path;
  const commands = [
    "create -q -f qcow2 base 4M",
    "bitmap --add -g 4k base below",
    "create -q -f qcow2 -b base -F qcow2 top 5M",
    "bitmap --add -g 4k top above",
  ];
  for (const command of commands) {
    await runOk(["qemu-img", ...command.split(" ")], { cwd });
  }
  await runOk(["qemu-io", "-c", "write 3M 2M", "top"], { cwd });
  await runOk(["cp", "base", "other"], { cwd });
  await runOk(["qemu-io", "-c", "write 1M 128k", "other"], { cwd });
  const results: DirtyExtent[][][] = [];
  for (const tool of [["qemu-img"], [...BDRV, "qemu-img"]]) {
    await using copy = new TempDir();
    for (const name of ["base", "top", "other"]) {
      await Deno.copyFile(`${cwd}/${name}`, copy.file(name));
    }
    const calls = [
      ["rebase", "-b", "other", "-F", "qcow2", "top"],
      ["rebase", "-u", "-b", "base", "-F", "qcow2", "top"],
      ["commit", "-q", "top"],
    ];
    const dirty: DirtyExtent[][] = [];
    for (const call of calls) {
      await runOk([...tool, ...call], { cwd: copy.path });
      dirty.push(await ownDirty(copy, "top", "above"));
      dirty.push(await ownDirty(copy, "base", "below"));
    }
    results.push(dirty);
  }
  assertEquals(results[1], results[0]);
}, NEEDED);

qemuTest(
  "a killed process leaves bitmaps marked as in use, as with QEMU",
  async () => {
    await using dir = new TempDir();
    const cwd = dir.path;
    await runOk(["qemu-img", "create", "-q", "-f", "qcow2", "X", "1M"], {
      cwd,
    });
    for (const args of [["X", "on"], ["--disable", "X", "off"]]) {
      await runOk(["qemu-img", "bitmap", "--add", ...args], { cwd });
    }
    await Deno.copyFile(dir.file("X"), dir.file("clean"));
    const flags = async () => {
      const command = ["qemu-img", "info", "--output=json", "X"];
      const info = JSON.parse(await runOk(command, { cwd }));
      const { bitmaps } = info["format-specific"].data;
      return bitmaps.map(({ flags }: { flags: string[] }) => flags.join());
    };
    const killed = async (tool: readonly string[], ...options: string[]) => {
      const commands = ["-c", "read 0 1k", "-c", "sigraise 9", "X"];
      const { code } = await run(
        [...tool, "qemu-io", ...options, ...commands],
        {
          cwd,
        },
      );
      assert(code !== 0);
    };
    for (const tool of [[], BDRV]) {
      await Deno.copyFile(dir.file("clean"), dir.file("X"));
      await killed(tool, "-r");
      assertEquals(await flags(), ["auto", ""]);
      await killed(tool);
      assertEquals(await flags(), ["in-use,auto", "in-use"]);
    }
    const { stdout, stderr } = await run(["qemu-img", "check", "X"], { cwd });
    assert(stdout.startsWith("No errors were found"), stdout + stderr);
  },
  NEEDED,
);

qemuTest("lost bitmaps are reported with QEMU's reason", async () => {
  const damage: { readonly [reason: string]: (image: DataView) => void } = {
    // A table of the image is taken for free space.
    "Qcow2 overlap check failed": (image) =>
      image.setUint16(blockOf(image) + 2 * 3, 0),
    "Failed to allocate clusters for bitmap 'b'": (image) =>
      image.setBigUint64(tableOf(image), BigInt(blockOf(image)) + 512n),
  };
  for (const [reason, change] of Object.entries(damage)) {
    const said: string[] = [];
    for (const tool of [[], BDRV]) {
      await using dir = new TempDir();
      const cwd = dir.path;
      await runOk(["qemu-img", "create", "-q", "-f", "qcow2", "a", "1M"], {
        cwd,
      });
      const bytes = Deno.readFileSync(dir.file("a"));
      change(new DataView(bytes.buffer));
      Deno.writeFileSync(dir.file("a"), bytes);
      const add = [...tool, "qemu-img", "bitmap", "--add", "a", "b"];
      const { stderr } = await run(add, { cwd });
      said.push(stderr.replace(/(?<=of node )'.*?'/, "'node'"));
      assertStringIncludes(stderr, `: ${reason}: Input/output error\n`);
    }
    assertEquals(said[1], said[0]);
  }
});

/** Offset of the refcount table. */
function tableOf(image: DataView): number {
  return Number(image.getBigUint64(48));
}

/** Offset of the first refcount block. */
function blockOf(image: DataView): number {
  return Number(image.getBigUint64(tableOf(image)));
}
