/** The command line as `deno task build` bundles it. @module */
import { assertEquals, assertMatch } from "@std/assert";
import { BDRV, mustSkip, run, runOk, TempDir } from "../qemu.ts";
import { build, canBundle } from "./built.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

Deno.test({
  name: "the built program does what the source does",
  ignore: mustSkip({ others: { "deno bundle": await canBundle() } }),
  async fn() {
    await using dir = new TempDir();
    const cwd = dir.path;
    await build(cwd);
    // Installed as the README says.
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
      // In sequence: the image is locked while it is written to.
      const ours = await run([...built, ...call], { cwd });
      assertEquals(ours, await run([...BDRV, ...call], { cwd }));
    }
  },
});

Deno.test({
  name: "on other runtimes, one line says that Deno is needed",
  ignore: mustSkip({
    tools: ["node"],
    others: { "deno bundle": await canBundle() },
  }),
  async fn() {
    await using dir = new TempDir();
    await build(dir.path);
    const programs = [dir.file("cli.js")];
    // Earlier versions cannot load such files, and say so in their own words.
    const { stdout: version } = await run(["node", "--version"]);
    if (/^v(2[4-9]|[3-9]\d)/.test(version)) programs.push(`${ROOT}cli.ts`);
    for (const program of programs) {
      for (const args of [[], ["--version"], ["info", program]]) {
        const { code, stdout, stderr } = await run(["node", program, ...args]);
        assertEquals([code, stdout], [1, ""]);
        assertMatch(stderr, /^bdrv needs Deno .*\n$/);
      }
    }
  },
});
