/** `deno task compile`, as far as it gets without the runtime. @module */
import { assert, assertEquals } from "@std/assert";
import { run, TempDir } from "../qemu.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const DENO = Deno.execPath();

/** A copy of the tree, with a `dist` to compile into. */
async function clone(): Promise<TempDir> {
  const dir = new TempDir();
  for (const name of ["cli.ts", "deno.json", "deno.lock"]) {
    Deno.copyFileSync(`${ROOT}${name}`, dir.file(name));
  }
  for (const name of ["build", "cli", "core", "drivers", "links"]) {
    await run(["cp", "-r", `${ROOT}${name}`, dir.path]);
  }
  return dir;
}

Deno.test("deno task compile makes a file with all modules, and links", async () => {
  await using dir = await clone();
  // Deno would download the runtime; any file in its place shows what is added.
  const target = "x86_64-unknown-linux-gnu";
  const { code, stdout, stderr } = await run(
    [DENO, "task", "--quiet", "compile", target],
    { cwd: dir.path, env: { DENORT_BIN: "/bin/true" } },
  );
  assertEquals([code, stderr], [0, ""]);
  const names = ["bdrv", "qemu-img", "qemu-io", "qemu-nbd"];
  assertEquals(stdout, names.map((n) => `dist/${target}/${n}\n`).join(""));
  const folder = dir.file(`dist/${target}`);
  for (const link of names.slice(1)) {
    assertEquals(Deno.readLinkSync(`${folder}/${link}`), "bdrv");
  }
  const bytes = Deno.readFileSync(`${folder}/bdrv`);
  const text = new TextDecoder("latin1").decode(bytes);
  for (const file of ["zlib_worker.ts", "io_tool.ts", "quorum.ts"]) {
    assert(text.includes(file), file);
  }
});

Deno.test("deno task compile says in one line why it failed", async (t) => {
  await using dir = await clone();
  const refused = async (args: string[], env: Record<string, string>) => {
    const { code, stdout, stderr } = await run(
      [DENO, "run", "--quiet", "-A", "build/compile.ts", ...args],
      { cwd: dir.path, env },
    );
    assertEquals([code, stdout], [1, ""]);
    assertEquals(stderr.split("\n").length, 2, stderr);
    return stderr;
  };
  await t.step("no network", async () => {
    const proxy = "http://127.0.0.1:9";
    const said = await refused([], {
      DENO_DIR: dir.file("cache"),
      HTTPS_PROXY: proxy,
      https_proxy: proxy,
    });
    assert(said.includes("cannot be downloaded"), said);
  });
  await t.step("no such file", async () => {
    await refused([], { DENORT_BIN: "/nothing" });
  });
  await t.step("no such target", async () => {
    const said = await refused(["amiga"], {});
    assert(said.includes("'amiga'") && said.includes("aarch64-apple-darwin"));
  });
  await t.step("no permission", async () => {
    for (const flag of ["--help", "-o=x", "--output=x", "--", "-"]) {
      const said = await refused([flag], { DENORT_BIN: "/bin/true" });
      assert(said.includes(`'${flag}' is no permission`), said);
    }
  });
});
