/**
 * Commands that run out of room: a full file system, the limit on file sizes, a
 * full standard output.
 *
 * @module
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { createImage, openImage } from "../../mod.ts";
import { BDRV, mustSkip, run, runOk, TempDir } from "../qemu.ts";

const MIB = 1024 * 1024;

/** A folder with a source image that does not fit into a few MiB. */
async function images(): Promise<TempDir> {
  const dir = new TempDir();
  const data = crypto.getRandomValues(new Uint8Array(65536));
  await createImage("qcow2", dir.file("source"), { size: 8 * MIB });
  {
    await using image = await openImage(dir.file("source"));
    for (let at = 0; at < 8 * MIB; at += data.length) {
      data[0] = at >> 16;
      await image.write(at, data);
    }
  }
  return dir;
}

/** A call in the folder that is short of space, and what it leaves. */
interface Case {
  /** Run before the limit applies; `SRC` is the source's folder. */
  readonly prepare?: string;
  readonly call: string;
  /** Whether the target exists afterwards, and is still an image. */
  readonly left?: "image" | "incomplete";
}

const QCOW2 = "create -q -f qcow2 t 16M";
const OVERLAY = "create -q -f qcow2 -b SRC/source -F qcow2 t";

const CASES: Case[] = [
  { call: "convert -O raw SRC/source t" },
  { call: "convert -O qcow2 SRC/source t" },
  { call: "convert -c -O qcow2 SRC/source t" },
  { call: "convert -p -W -O qcow2 SRC/source t" },
  {
    prepare: QCOW2,
    call: "convert -n -O qcow2 SRC/source t",
    left: "incomplete",
  },
  { call: "create -f raw -o preallocation=full t 16M" },
  { call: "create -f qcow2 -o preallocation=full t 16M" },
  { call: "create -f qcow2 -o preallocation=falloc t 16M" },
  { call: "qemu-img create -f qcow2 -o preallocation=full t 16M" },
  {
    prepare: "create -q -f qcow2 t 1M",
    call: "create -f qcow2 -o preallocation=full t 16M",
  },
  {
    prepare: "create -q -f raw t 1M",
    call: "convert -O qcow2 -o preallocation=full SRC/source t",
  },
  { call: "create -f qcow2 -o preallocation=metadata,cluster_size=512 t 2G" },
  { call: "dd if=SRC/source of=t bs=1M -O qcow2" },
  { call: "dd if=SRC/source of=t bs=1M" },
  { prepare: QCOW2, call: "io -c 'write 0 16M' t", left: "image" },
  { prepare: QCOW2, call: "bench -w -c 300 -s 64k t", left: "image" },
  { prepare: OVERLAY, call: "rebase -b '' t", left: "image" },
  {
    prepare: QCOW2,
    call: "resize --preallocation=full t 32M",
    left: "image",
  },
  {
    prepare: QCOW2,
    call: "resize --preallocation=falloc t 32M",
    left: "image",
  },
];

const bdrv = BDRV.map((word) => `'${word}'`).join(" ");

/** Run a case under a shell's `limit`; `why` is the system's message. */
async function check(
  { prepare, call, left }: Case,
  source: TempDir,
  folder: string,
  limit: string,
  why: RegExp,
): Promise<void> {
  for (const { name } of Deno.readDirSync(folder)) {
    Deno.removeSync(`${folder}/${name}`);
  }
  const shell = (limit: string, call: string) => {
    const command = `${limit}${bdrv} ${call.replaceAll("SRC", source.path)}`;
    return run(["bash", "-c", command], { cwd: folder });
  };
  if (prepare) assertEquals((await shell("", prepare)).code, 0);
  const { code, stdout, stderr } = await shell(limit, call);
  assertEquals(code, 1, `${call}: ${stdout}${stderr}`);
  const lines = (stdout + stderr).split("\n").filter((line) => why.test(line));
  assertEquals(lines.length, 1, `${call}: ${stdout}${stderr}`);
  assert(!/internal error|^ {4}at /m.test(stderr), stderr);
  const target = `${folder}/t`;
  const isThere = [...Deno.readDirSync(folder)].some(({ name }) =>
    name === "t"
  );
  assertEquals(isThere, left !== undefined, call);
  if (left === "incomplete") assertMatch(stderr, /'t' is left incomplete\n/);
  // Leaked clusters at worst.
  if (left) {
    assert([0, 3].includes((await run([...BDRV, "check", target])).code));
  }
}

const SHELL = {
  tools: ["bash"],
  others: { "a system like Unix": Deno.build.os !== "windows" },
};

Deno.test({
  name: "exceeding the limit on file sizes is an error",
  ignore: mustSkip(SHELL),
  async fn() {
    await using source = await images();
    await using dir = new TempDir();
    const why = /file too large|image size is too large/i;
    for (const each of CASES) {
      await check(each, source, dir.path, "ulimit -f 2048; ", why);
    }
    const path = (name: string) => source.file(name);
    const slow = BDRV.flatMap((word) =>
      word === "--allow-all" ? ["--allow-read", "--allow-write"] : word
    );
    for (
      const [command, args] of [
        [slow, `convert -O qcow2 ${path("source")} ${dir.file("u")}`],
        [BDRV, `convert -O raw ${path("source")} - > ${dir.file("out")}`],
        [BDRV, `info ${path("source")} >> ${dir.file("out")}`],
        [BDRV, `convert -O qcow2 ${path("source")} - > ${dir.file("out")}`],
      ] as const
    ) {
      const line = `ulimit -f 2048; ${command.join(" ")} ${args}`;
      const { code, stderr } = await run(["bash", "-c", line]);
      assertEquals(code, 1, stderr);
      assertMatch(stderr, /: File too large\n$/);
    }
  },
});

/** Whether a small file system can be mounted here. */
async function canMount(): Promise<boolean> {
  await using dir = new TempDir();
  try {
    await mount(dir.path);
    await runOk(["umount", dir.path]);
    return true;
  } catch {
    return false;
  }
}

async function mount(path: string): Promise<void> {
  await runOk(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", path]);
}

Deno.test({
  name: "a full file system is an error",
  ignore: mustSkip({ ...SHELL, privileges: { mounting: await canMount() } }),
  async fn() {
    await using source = await images();
    await using dir = new TempDir();
    await mount(dir.path);
    try {
      for (const each of CASES) {
        await check(each, source, dir.path, "", /No space left on device/);
      }
    } finally {
      await runOk(["umount", dir.path]);
    }
  },
});

Deno.test({
  name: "output that cannot be written is an error, but the work gets done",
  ignore: mustSkip({
    tools: ["bash"],
    others: { Linux: Deno.build.os === "linux" },
  }),
  async fn() {
    await using source = await images();
    const line = (name: string) =>
      `${name}: Cannot write to standard output: No space left on device\n`;
    const calls: [args: string, stderr: string][] = [
      ["info source", line("bdrv")],
      ["qemu-img info source", line("qemu-img")],
      ["map source", line("bdrv")],
      ["check source", line("bdrv")],
      ["--help", line("bdrv")],
      ["completions bash", line("bdrv")],
      ["io -c length source", line("bdrv")],
      ["qemu-io -c length source", line("qemu-io")],
      ["create -f qcow2 made 1M", line("bdrv")],
      ["convert -p -O qcow2 source copy", line("bdrv")],
      ["convert -O raw source -", line("bdrv")],
      [
        "info none",
        "bdrv: Could not open 'none': No such file or directory\n",
      ],
    ];
    // A file that is not whole could be taken for an image.
    for (const format of ["raw", "qcow2"]) {
      const call = `${bdrv} convert -O ${format} source - > part`;
      const { code, stderr } = await run(
        ["bash", "-c", `ulimit -f 4096; ${call}`],
        { cwd: source.path },
      );
      assertEquals(
        [code, stderr],
        [
          1,
          "bdrv: Standard output is left incomplete\n" +
          "bdrv: Cannot write to standard output: File too large\n",
        ],
      );
    }
    for (const [args, expected] of calls) {
      const { code, stderr } = await run(
        ["bash", "-c", `${bdrv} ${args} > /dev/full`],
        { cwd: source.path },
      );
      assertEquals([code, stderr], [1, expected], args);
    }
    // The command did its work.
    const compare = [...BDRV, "compare", source.file("source")];
    await runOk([...compare, source.file("copy")]);
    await runOk([...BDRV, "check", source.file("made")]);
  },
});
