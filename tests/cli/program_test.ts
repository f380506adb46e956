/** What the program says of itself, and how it speaks of mistakes. @module */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { BDRV, run, runOk, TempDir } from "../qemu.ts";

const COMMANDS = [
  "check",
  "compare",
  "convert",
  "create",
  "info",
  "map",
  "resize",
];

Deno.test("--help fits a screen and names every command", async () => {
  const help = await runOk([...BDRV, "--help"]);
  for (const command of COMMANDS) assertStringIncludes(help, `  ${command} `);
  assertFits(help);
});

for (const name of COMMANDS) {
  Deno.test(`${name} --help fits a screen and lists every option`, async () => {
    const help = await runOk([...BDRV, name, "--help"]);
    assertFits(help);
    assertEquals(await runOk([...BDRV, name, "-h"]), help);
    const { command } = await import(`../../cli/commands/${name}.ts`);
    for (const { short, long } of command.options) {
      if (short) assertStringIncludes(help, `-${short}`);
      if (long) assertStringIncludes(help, `--${long}`);
    }
  });
}

function assertFits(help: string): void {
  const lines = help.split("\n");
  assert(lines.length <= 40, `${lines.length} lines`);
  for (const line of lines) assert(line.length <= 80, line);
}

Deno.test("--version names the program", async () => {
  assertStringIncludes(await runOk([...BDRV, "--version"]), "bdrv ");
  assertStringIncludes(
    await runOk([...BDRV, "qemu-img", "--version"]),
    "qemu-img version 7.2.22",
  );
});

Deno.test("errors are one line with the program's name", async () => {
  const own = await run([...BDRV, "info", "/nothing"]);
  assertEquals(own.code, 1);
  assertEquals(
    own.stderr,
    "bdrv: Could not open '/nothing': Could not open '/nothing': " +
      "No such file or directory\n",
  );
  const { stderr } = await run([...BDRV, "qemu-img", "info", "/nothing"]);
  assertEquals(stderr, own.stderr.replace("bdrv", "qemu-img"));
});

Deno.test("BDRV_DEBUG adds the stack to an error", async () => {
  const { stderr } = await run([...BDRV, "info", "/nothing"], {
    env: { BDRV_DEBUG: "1" },
  });
  assertStringIncludes(stderr, "    at ");
});

Deno.test("a wrong option points to the command's help", async () => {
  const { code, stderr } = await run([...BDRV, "info", "-Z"]);
  assertEquals(code, 1);
  assertStringIncludes(stderr, "bdrv: unrecognized option '-Z'\n");
  assertStringIncludes(stderr, "'bdrv info --help'");
});

Deno.test("-p ends at 100 % and on a line of its own", async () => {
  await using dir = await new TempDir();
  const [a, b] = [dir.file("a"), dir.file("b")];
  await runOk([...BDRV, "create", "-q", a, "1M"]);
  const out = await runOk([...BDRV, "convert", "-p", "-f", "raw", a, b]);
  assertEquals(out.slice(0, 20), "    (0.00/100%)\r    ");
  assertEquals(out.slice(-18), "    (100.00/100%)\r\n".slice(-18));
});
