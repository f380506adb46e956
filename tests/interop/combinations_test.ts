/**
 * Combined features of qcow2, and sequences of commands on them: both output
 * and content must equal qemu-img's.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { BDRV, qemuTest, run, runOk, TempDir } from "../qemu.ts";

/** How to create the top image, and the commands to run on it. */
const CASES: { readonly [what: string]: readonly string[] } = {
  "subclusters, bitmaps, snapshots and a backing file": [
    "img create -f qcow2 -o extended_l2=on,cluster_size=16k -b base -F qcow2 top 2M",
    "img bitmap --add -g 512 top fine",
    "io write~-P~7~33k~100k top",
    "img snapshot -c one top",
    "img bitmap --remove top fine",
    "img snapshot -c one top",
    "img bitmap --add top b",
    "io discard~64k~32k top",
    "img bitmap --add --disable --merge b top c",
    "img snapshot -a one top",
    "img resize top 3M",
    "img convert --bitmaps -O qcow2 top copy",
    "img rebase -b  top",
    "img commit top",
  ],
  "a data file, bitmaps, subclusters and a backing file": [
    "img create -f qcow2 -o data_file=data,extended_l2=on -b base -F qcow2 top 2M",
    "io write~-P~7~33k~100k top",
    "img bitmap --add -g 512 top fine",
    "io write~-z~-u~64k~64k top",
    "io write~-c~0~64k top",
    "io write~-c~64k~16k top",
    "img snapshot -c one top",
    "img amend -o compat=0.10 top",
    "img resize --shrink top 1M",
    "img rebase -b  top",
    "img convert --bitmaps -O qcow2 -o data_file=other top copy",
    "img measure -O qcow2 top",
  ],
  "a raw data file, bitmaps and wide refcounts": [
    "img create -f qcow2 -o data_file=data,data_file_raw=on,refcount_bits=64 top 1M",
    "img bitmap --add top b",
    "io write~-P~7~33k~100k top",
    "io discard~64k~64k top",
    "img rebase -u -b base -F qcow2 top",
    "img amend -o data_file_raw=off,lazy_refcounts=on top",
    "img rebase -u -b base -F qcow2 top",
    "img bitmap --clear top b",
    "img resize --preallocation=metadata top 2M",
    "img commit -d top",
  ],
};
const INSPECTIONS = [
  "img check top",
  "img info --output=json top",
  "img compare top base",
];

qemuTest("combined features work as in QEMU", async (t) => {
  for (const [what, commands] of Object.entries(CASES)) {
    await t.step(what, async () => {
      const results = [];
      for (const tool of [[], BDRV]) {
        await using dir = new TempDir();
        const cwd = dir.path;
        const env = { BDRV_QEMU_VERSION: "7.2" };
        await runOk(["qemu-img", "create", "-q", "-f", "qcow2", "base", "2M"], {
          cwd,
        });
        await runOk(["qemu-io", "-c", "write -P 3 0 1M", "base"], { cwd });
        const said: unknown[] = [];
        for (const command of [...commands, ...INSPECTIONS]) {
          const [program, ...words] = command.split(" ");
          const args = program === "io" ? ["-c", ...words] : words;
          const { code, stdout, stderr } = await run([
            ...tool,
            `qemu-${program}`,
            ...args.map((word) => word.replaceAll("~", " ")),
          ], { cwd, env });
          said.push([command, code, comparable(stdout), stderr]);
        }
        for (const name of ["top", "base", "copy"]) {
          const convert = ["qemu-img", "convert", "-O", "raw", name, "raw"];
          await run(convert, { cwd });
          said.push(await digest(dir.file("raw")));
        }
        results.push(said);
      }
      assertEquals(results[1], results[0]);
    });
  }
}, ["qemu-img", "qemu-io"]);

/** Drop times, and host offsets. */
function comparable(text: string): string {
  return text
    .replaceAll(/ops; .*/g, "")
    .replaceAll(/Image end offset: .*/g, "")
    .replaceAll(/[\d.]+% fragmented/g, "")
    .replaceAll(/"actual-size": \d+/g, "")
    .replaceAll(/"date-n?sec": \d+/g, "");
}

async function digest(path: string): Promise<string> {
  const bytes = await Deno.readFile(path);
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).join();
}
