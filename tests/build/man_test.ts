/** The manual pages. @module */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { manPages } from "../../build/man.ts";
import { loadCommand } from "../../cli/command.ts";
import { commandsOf } from "../../cli/image_tool.ts";
import { Program } from "../../cli/program.ts";
import { mustSkip, run, TempDir } from "../qemu.ts";

const program = new Program("bdrv");

/** A page as it is shown, without formatting. */
async function shown(path: string): Promise<string> {
  const { code, stdout, stderr } = await run(
    ["groff", "-man", "-Tascii", "-ww", "-rLL=200n", "-P-cbou", path],
  );
  assertEquals([code, stderr], [0, ""], path);
  return stdout;
}

Deno.test({
  name: "groff formats every page without a warning, with every option",
  ignore: mustSkip({ tools: ["groff"] }),
  async fn() {
    await using dir = await new TempDir();
    const pages = await manPages();
    for (const [name, page] of pages) {
      await Deno.writeTextFile(dir.file(name), page);
    }
    for (const [name, entry] of commandsOf(program)) {
      const { options, notes } = await loadCommand(program, entry);
      const page = await shown(dir.file(`bdrv-${name}.1`));
      assertStringIncludes(page, `bdrv-${name} - `);
      for (const { short, alias, long, argument, help } of options) {
        for (const letter of [short, alias]) {
          if (letter) assertStringIncludes(page, `-${letter}`);
        }
        if (long) assertStringIncludes(page, `--${long}`);
        for (const text of [argument, help]) {
          if (text) assertStringIncludes(page, text.replaceAll("…", "..."));
        }
      }
      for (const line of notes?.split("\n") ?? []) {
        assertStringIncludes(page, line.replaceAll("…", "..."));
      }
    }
    const page = await shown(dir.file("bdrv.1"));
    for (const [name, { summary }] of commandsOf(program)) {
      assertStringIncludes(page, `bdrv-${name}(1)`);
      assertStringIncludes(page, `${summary}.`);
    }
  },
});

Deno.test({
  name: "man shows a page",
  ignore: mustSkip({ tools: ["man"] }),
  async fn() {
    await using dir = await new TempDir();
    for (const [name, page] of await manPages()) {
      await Deno.writeTextFile(dir.file(name), page);
    }
    const { code, stdout, stderr } = await run(
      ["man", "-l", "-E", "ascii", "--warnings", dir.file("bdrv-convert.1")],
      { env: { MANWIDTH: "80" } },
    );
    assertEquals([code, stderr], [0, ""]);
    assert(
      /^ {7}bdrv convert \[OPTIONS\] FILE\.\.\. TARGET/m.test(stdout),
      stdout,
    );
  },
});
