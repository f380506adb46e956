/** `deno task compile --with=bun`: the program with Bun in it. @module */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { compileWithBun } from "../../build/bun.ts";
import { commandLine } from "../npm/command_line.ts";
import { assertSuite } from "../npm/suite.ts";
import { isInstalled, mustSkip, run, runOk, TempDir } from "../qemu.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

Deno.test({
  name:
    "the file that Bun compiles is the command line, and through links QEMU's tools",
  ignore: mustSkip({
    tools: ["qemu-img"],
    others: { "npm": isInstalled("npm") },
  }),
  async fn() {
    await using dir = new TempDir();
    const program = dir.file("bdrv");
    await compileWithBun(program);
    for (const name of ["qemu-img", "qemu-io", "qemu-nbd"]) {
      Deno.symlinkSync("bdrv", dir.file(name));
      const text = await runOk([dir.file(name), "--version"]);
      assertMatch(text, new RegExp(`^${name}\\b.*bdrv \\d`));
    }
    await using work = new TempDir();
    await commandLine([program], work);
    await assertSuite([program]);
    const cwd = work.path;
    const io = await run(
      [dir.file("qemu-io"), "-c", "read 0 512", "missing"],
      { cwd },
    );
    assertEquals(io.code, 1);
    assertMatch(io.stderr, /^qemu-io: can't open device missing: /);
    const info = await runOk([dir.file("qemu-img"), "info", "ours"], { cwd });
    assert(info.includes("file format: qcow2"));
  },
});

Deno.test("deno task compile --with=bun takes no other arguments", async () => {
  const { code, stderr } = await run(
    [Deno.execPath(), "run", "-A", "build/compile.ts", "--with=bun", "all"],
    { cwd: ROOT },
  );
  assertEquals(code, 1);
  assertEquals(
    stderr,
    "Cannot compile: 'all' does not go with --with=bun\n",
  );
});
