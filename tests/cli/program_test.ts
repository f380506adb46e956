/** What the program says about itself, and how it reports mistakes. @module */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { commandsOf } from "../../cli/image_tool.ts";
import { Program } from "../../cli/program.ts";
import { process } from "../../core/platform/this_process.ts";
import { BDRV, mustSkip, run, runOk, TempDir } from "../qemu.ts";

const QEMU_IMG = [...BDRV, "qemu-img"];
const COMMANDS = commandsOf(new Program("bdrv"));

Deno.test("--help fits a screen and names every command", async () => {
  const help = await runOk([...BDRV, "--help"]);
  for (const [command] of COMMANDS) assertStringIncludes(help, `  ${command} `);
  assertFits(help, 36);
});

for (const [name, { load }] of COMMANDS) {
  Deno.test(`${name} --help fits a screen and lists every option`, async () => {
    const help = await runOk([...BDRV, name, "--help"]);
    assertFits(help, 42);
    assertEquals(await runOk([...BDRV, name, "-h"]), help);
    const { command } = await load();
    for (const { short, long } of command.options) {
      if (short) assertStringIncludes(help, `-${short}`);
      if (long) assertStringIncludes(help, `--${long}`);
    }
  });
}

function assertFits(help: string, height: number): void {
  const lines = help.split("\n");
  assert(lines.length <= height, `${lines.length} lines`);
  for (const line of lines) assert(line.length <= 80, line);
}

Deno.test("qemu-img --help lists everything, whatever precedes it", async () => {
  const help = await runOk([...QEMU_IMG, "--help"]);
  for (const [name, { load, onlyOurs }] of COMMANDS) {
    const syntax = help.split("\n").find((line) =>
      line.startsWith(`  ${name} [`)
    );
    assertEquals(syntax === undefined, onlyOurs === true, name);
    if (onlyOurs) continue;
    for (const { short, long } of (await load()).command.options) {
      if (short) assert(new RegExp(`-${short}\\b`).test(syntax!), short);
      if (long) assert(new RegExp(`--${long}\\b`).test(syntax!), long);
    }
  }
  const formats = /^Supported formats: (.*)$/m.exec(help)![1].split(" ");
  for (const name of ["file", "qcow2", "raw"]) assert(formats.includes(name));
  assertEquals(formats, formats.toSorted());
  for (const call of ["-h", "info -h", "info --help x", "resize -h"]) {
    assertEquals(await runOk([...QEMU_IMG, ...call.split(" ")]), help);
  }
});

Deno.test("our own commands do not exist under QEMU's name", async () => {
  const { code, stderr } = await run([...QEMU_IMG, "completions", "bash"]);
  assertEquals(code, 1);
  assertStringIncludes(stderr, "qemu-img: Command not found: completions\n");
});

Deno.test("--version names the program", async () => {
  assertStringIncludes(await runOk([...BDRV, "--version"]), "bdrv ");
  assertStringIncludes(
    await runOk([...QEMU_IMG, "--version"]),
    "qemu-img version 7.2.22",
  );
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

Deno.test("-p ends at 100 %, with a line break", async () => {
  await using dir = await new TempDir();
  const [a, b] = [dir.file("a"), dir.file("b")];
  await runOk([...BDRV, "create", "-q", a, "1M"]);
  const out = await runOk([...BDRV, "convert", "-p", "-f", "raw", a, b]);
  assertEquals(out.slice(0, 20), "    (0.00/100%)\r    ");
  assertEquals(out.slice(-18), "    (100.00/100%)\r\n".slice(-18));
});

Deno.test({
  name:
    "errors are red on a terminal, unless NO_COLOR is set, and under our own name only",
  ignore: mustSkip({ tools: ["script"] }),
  async fn() {
    const onTerminal = async (command: readonly string[], NO_COLOR = "") => {
      const line = [...command, "info", "/nothing"].join(" ");
      const env = { NO_COLOR };
      return (await run(["script", "-qec", line, "/dev/null"], { env })).stdout;
    };
    const text = "Could not open '/nothing': No such file or directory\r\n";
    assertEquals(await onTerminal(BDRV), `\x1b[1;31mbdrv:\x1b[0m ${text}`);
    assertEquals(await onTerminal(BDRV, "1"), `bdrv: ${text}`);
    assertEquals(
      await onTerminal(QEMU_IMG),
      `qemu-img: Could not open '/nothing': ${text}`,
    );
    const { stderr } = await run([...BDRV, "info", "/nothing"]);
    assertEquals(stderr, `bdrv: ${text.replace("\r", "")}`);
  },
});

Deno.test("under our own name sizes have units, and stay exact", async () => {
  await using dir = await new TempDir();
  const both = async (call: string) => {
    const words = call.split(" ");
    return [
      await runOk([...BDRV, ...words], { cwd: dir.path }),
      await runOk([...QEMU_IMG, ...words], { cwd: dir.path }),
    ];
  };
  assertEquals(await both("create a 20G"), [
    "Formatting 'a', fmt=raw size=20G\n",
    "Formatting 'a', fmt=raw size=21474836480\n",
  ]);
  const [ours] = await both("create -f qcow2 -o cluster_size=2M q 1025k");
  assertStringIncludes(ours, " cluster_size=2M ");
  assertStringIncludes(ours, " size=1025k ");
  assertEquals(await both("resize -f raw a +1G"), [
    "Image resized from 20 GiB to 21 GiB.\n",
    "Image resized.\n",
  ]);
});

Deno.test("many lines are written in blocks, in order", async () => {
  const written: string[] = [];
  const { error } = process;
  const { isTerminal, write } = error;
  error.isTerminal = () => false;
  error.write = (bytes) => {
    written.push(new TextDecoder().decode(bytes));
    return bytes.length;
  };
  try {
    const program = new Program("bdrv");
    for (let i = 0; i < 10_000; i++) program.warn(`sector ${i}`);
    assert(written.length > 1 && written.length < 100, `${written.length}`);
    assertEquals(written[0], "bdrv: warning: sector 0\n");
    program.error("no more");
    const lines = written.join("").split("\n");
    assertEquals(lines.slice(-3), [
      "bdrv: warning: sector 9999",
      "bdrv: no more",
      "",
    ]);
    assertEquals(lines.length, 10_002);
    // No line is lost at the end, or while the command is busy otherwise.
    program.warn("the last but one");
    assertEquals(program.finish(0), 0);
    assertEquals(written.at(-1), "bdrv: warning: the last but one\n");
    program.warn("the last");
    await new Promise((resolve) => setTimeout(resolve, 100));
    assertEquals(written.at(-1), "bdrv: warning: the last\n");
  } finally {
    Object.assign(error, { isTerminal, write });
  }
});
