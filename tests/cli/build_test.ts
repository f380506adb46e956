/** The command line as `deno task build` bundles it. @module */
import { assertEquals } from "@std/assert";
import { BDRV, mustSkip, run, runOk, TempDir } from "../qemu.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

/** Whether what makes bundles is here, or can be had. */
async function canBundle(): Promise<boolean> {
  await using dir = new TempDir();
  Deno.writeTextFileSync(dir.file("a.ts"), "");
  const command = ["timeout", "30", Deno.execPath(), "bundle", "a.ts"];
  return (await run(command, { cwd: dir.path })).code === 0;
}

Deno.test({
  name: "the built program does what the source does",
  ignore: mustSkip({ others: { "deno bundle": await canBundle() } }),
  async fn() {
    await using dir = new TempDir();
    const cwd = dir.path;
    const task = Deno.readTextFileSync(`${ROOT}deno.json`);
    const words: string[] = JSON.parse(task).tasks.build.command.split(" ");
    const outdir = words.indexOf("--outdir");
    const build = words.with(0, Deno.execPath()).with(outdir + 1, cwd);
    await runOk(build, { cwd: ROOT });
    // As the README has it installed.
    const built = [
      ...[Deno.execPath(), "run", "-A", "--unstable-lazy-dynamic-imports"],
      "--v8-flags=--no-lazy",
      dir.file("cli.js"),
    ];

    const disk = dir.file("disk");
    const data = new Uint8Array(2 << 20).map((_, i) => (i * i) >> 7);
    Deno.writeFileSync(disk, data);
    const packed = ["convert", "-c", "-O", "qcow2", disk, dir.file("packed")];
    await runOk([...built, ...packed]);
    for (
      const call of [
        ["--version"],
        ["--help"],
        ["info", "packed"],
        ["qemu-img", "map", "packed"],
        ["qemu-io", "-f", "qcow2", "-c", "read -q 0 1M", "packed"],
        ["compare", "disk", "packed"],
        ["conver"],
      ]
    ) {
      // One after the other: the image is locked while it is written to.
      const ours = await run([...built, ...call], { cwd });
      assertEquals(ours, await run([...BDRV, ...call], { cwd }));
    }
  },
});
