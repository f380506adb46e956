/** Using a clone from an empty folder, as the README says. @module */
import { assertEquals, assertMatch } from "@std/assert";
import { runOk, TempDir } from "./qemu.ts";

const ROOT = new URL("..", import.meta.url).pathname.replace(/\/$/, "");

/** The README's first code block in a language that contains `text`. */
async function blockOf(language: string, text: string): Promise<string> {
  const readme = await Deno.readTextFile(`${ROOT}/README.md`);
  const blocks = readme.matchAll(
    new RegExp(`\`\`\`${language}\n([^]*?)\`\`\``, "g"),
  );
  return [...blocks].map(([, it]) => it).find((it) => it.includes(text))!;
}

/** A folder beside a link to this clone, named as in the README. */
async function newFolder(dir: TempDir): Promise<string> {
  await Deno.symlink(ROOT, dir.file("bdrv"));
  const cwd = dir.file("mine");
  await Deno.mkdir(cwd);
  return cwd;
}

Deno.test("the README's program runs with the README's deno.json", async () => {
  await using dir = await new TempDir();
  const cwd = await newFolder(dir);
  const config = await blockOf("json", '"links"');
  await Deno.writeTextFile(`${cwd}/deno.json`, config);
  const program = await blockOf("ts", "import { convert, createImage");
  await Deno.writeTextFile(`${cwd}/main.ts`, program);
  const said = await runOk([Deno.execPath(), "run", "main.ts"], { cwd });
  assertEquals(said, "any byte 10737418240\n4999938048 65536\n");
});

Deno.test("a script without a deno.json runs as the README says", async () => {
  await using dir = await new TempDir();
  const cwd = await newFolder(dir);
  await Deno.writeTextFile(
    `${cwd}/script.ts`,
    'import { listDrivers } from "@bdrv/bdrv";\n' +
      "console.log(listDrivers().map(({ name }) => name).join());\n",
  );
  const [line] = (await blockOf("sh", "--config ../bdrv")).split("\n");
  const [, ...args] = line.split(" ");
  assertMatch(await runOk([Deno.execPath(), ...args], { cwd }), /,qcow2,/);
});
