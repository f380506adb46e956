/** What is generated from the drivers' option tables. @module */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { tables } from "../../build/tables.ts";
import { listDrivers, loadDriver } from "../../mod.ts";

const ROOT = new URL("../../", import.meta.url);

Deno.test("docs/drivers.md and the types of options are up to date", async () => {
  for (const [path, text] of await tables()) {
    const there = await Deno.readTextFile(new URL(path, ROOT));
    assert(there === text, `${path} is not: run 'deno task tables'`);
  }
});

Deno.test("docs/drivers.md lists every option of every driver", async () => {
  const page = await Deno.readTextFile(new URL("docs/drivers.md", ROOT));
  const sections = new Map(
    page.split("\n### ").map((text) => [/^`(.+)`/.exec(text)?.[1], text]),
  );
  for (const driver of await Promise.all(listDrivers().map(loadDriver))) {
    const section = sections.get(driver.name) ?? "";
    for (const table of [driver.openOptions, driver.createOptions]) {
      for (const [name, { unsupported }] of Object.entries(table ?? {})) {
        if (unsupported === true) continue;
        assertStringIncludes(section, `| \`${name}\``);
      }
    }
  }
});

Deno.test("docs/drivers.md links to pages that exist", async () => {
  const page = await Deno.readTextFile(new URL("docs/drivers.md", ROOT));
  for (const [, link] of page.matchAll(/\]\((?!#)([^)#]+)/g)) {
    const { isFile } = await Deno.stat(new URL(`docs/${link}`, ROOT));
    assertEquals(isFile, true, link);
  }
});
