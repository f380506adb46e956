/** The README's table of permissions, row by row. @module */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { BDRV, mustSkip, type Outcome, run, TempDir } from "../qemu.ts";
import { isLibcAvailable } from "../platforms.ts";
import { build, canBundle } from "./built.ts";

const ROOT = new URL("../..", import.meta.url).pathname;
const LIBC = `/lib/${Deno.build.arch}-linux-gnu/libc.so.6`;
const FILES = ["--allow-read", "--allow-write"];

/** Rows whose flags suffice for everything. */
const ROWS: { [flag: string]: string[] } = {
  "--allow-write": FILES,
  "--allow-ffi": [...FILES, "--allow-ffi"],
  "=/lib/x86_64-linux-gnu/libc.so.6": [...FILES, `--allow-ffi=${LIBC}`],
  "-A": ["-A"],
};

/** The arguments of `deno run`, with exactly the flags of a row. */
type Program = (...flags: string[]) => string[];

const fromSource: Program = (...flags) =>
  BDRV.flatMap((word) => word === "--allow-all" ? flags : word);

function fromBundle(dir: TempDir): Program {
  return (...flags) => [
    ...[Deno.execPath(), "run", "--no-prompt", ...flags],
    "--v8-flags=--no-lazy",
    dir.file("dist/cli.js"),
  ];
}

Deno.test("the README's table of permissions is what is tested here", () => {
  const readme = Deno.readTextFileSync(`${ROOT}README.md`);
  const [, table] = /## Permissions\n\n([^]*?)\n\n/.exec(readme)!;
  const flags = table.split("\n").slice(2).flatMap((row) =>
    [...row.split("|")[1].matchAll(/`([^`]*)`|none/g)].map(([all, flag]) =>
      flag ?? all
    )
  );
  assertEquals(
    flags.sort(),
    // Sockets are tested against foreign servers and clients, and the
    // environment with S3.
    ["none", "--allow-read", "--allow-net", "--allow-env", ...Object.keys(ROWS)]
      .sort(),
  );
});

/** Make, write, read, convert and check images, in a fresh folder. */
async function useAll(
  command: string[],
  path: string,
  isLocked: boolean,
): Promise<void> {
  const cwd = Deno.makeTempDirSync({ dir: path });
  const data = new Uint8Array(3 << 20).map((_, i) => (i * i) >> 9);
  Deno.writeFileSync(`${cwd}/data`, data);
  const call = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await run([...command, ...args], { cwd });
    assertEquals(code, 0, `${args}: ${stderr}`);
    // Writing to files without locks gives one warning.
    const warning = /^bdrv: warning: '.*' cannot be locked: .*--allow-ffi\n$/;
    if (isLocked) assertEquals(stderr, "");
    else assert(stderr === "" || warning.test(stderr), stderr);
    return stdout;
  };
  await call("create", "-q", "-f", "qcow2", "disk", "16M");
  const steps = ["write -q -P 5 1000 3M", "writev -q 5M 512 1024 512", "flush"];
  steps.push("read -q -P 5 1000 3M");
  await call("io", ...steps.flatMap((step) => ["-c", step]), "disk");
  await call("convert", "-f", "raw", "-O", "qcow2", "data", "copy");
  await call("convert", "-c", "-O", "qcow2", "copy", "packed");
  await call("convert", "-O", "raw", "packed", "again");
  assertEquals(Deno.readFileSync(`${cwd}/again`), data);
  await call("snapshot", "-c", "one", "disk");
  assertMatch(await call("check", "disk"), /^No errors were found/);
  Deno.removeSync(cwd, { recursive: true });
}

/** The one line that names the missing flag, after the error it explains. */
function assertNames(outcome: Outcome, flag: string): void {
  const { code, stdout, stderr } = outcome;
  assertEquals([code, stdout], [1, ""], stderr);
  const lines = stderr.split("\n");
  assertEquals(lines.length, 3, stderr);
  assertMatch(lines[0], /^bdrv: .*Permission denied$/);
  assert(lines[1].endsWith(`run again with the ${flag} flag`), stderr);
}

/** @param folder The program's own, from which it loads its modules. */
async function useRows(
  program: Program,
  folder: string,
  dir: TempDir,
): Promise<void> {
  for (const flags of Object.values(ROWS)) {
    const isLocked = isLibcAvailable() && flags !== FILES;
    await useAll(program(...flags), dir.path, isLocked);
  }
  // Where /lib is a link, the library has two names.
  if (isLibcAvailable() && Deno.realPathSync("/lib") === "/usr/lib") {
    const flags = [...FILES, `--allow-ffi=/usr${LIBC}`];
    await useAll(program(...flags), dir.path, true);
  }
  // Narrowed to a folder, with everything that is not needed denied.
  const narrow = [
    `--allow-read=${dir.path},${folder}`,
    `--allow-write=${dir.path}`,
  ];
  const denied = ["--deny-env", "--deny-sys", "--deny-run", "--deny-net"];
  await useAll(program(...narrow, ...denied), dir.path, false);

  const disk = dir.file("read-only");
  Deno.writeFileSync(disk, new Uint8Array(1 << 20));
  const calls: [flags: string[], args: string[], missing: string][] = [
    [
      ["--allow-read"],
      ["create", "-q", dir.file("new"), "1M"],
      "--allow-write",
    ],
    [["--allow-read"], ["convert", disk, dir.file("new")], "--allow-write"],
    [["--allow-read"], ["resize", "-f", "raw", disk, "2M"], "--allow-write"],
    [
      ["--allow-write", `--allow-read=${folder}`],
      ["info", disk],
      "--allow-read",
    ],
    [
      ["--allow-write", `--allow-read=${folder}`],
      ["create", "-q", dir.file("new"), "1M"],
      "--allow-read",
    ],
    [
      ["--allow-write", `--allow-read=${disk},${folder}`],
      ["convert", "-f", "raw", disk, dir.file("new")],
      "--allow-read",
    ],
    [
      ["-A", `--deny-write=${disk}`],
      ["resize", "-f", "raw", disk, "2M"],
      "--allow-write",
    ],
  ];
  for (const [flags, args, missing] of calls) {
    assertNames(await run([...program(...flags), ...args]), missing);
    assert(![...Deno.readDirSync(dir.path)].some(({ name }) => name === "new"));
  }
  const reading = program("--allow-read");
  for (const args of [["info", disk], ["map", disk], ["compare", disk, disk]]) {
    assertEquals((await run([...reading, ...args])).code, 0);
  }
  assertEquals(Deno.statSync(disk).size, 1 << 20);
}

Deno.test("each row of the table suffices for the source", async () => {
  await using dir = new TempDir();
  await useRows(fromSource, ROOT, dir);
  const disk = dir.file("read-only");
  // A program that loads its modules on demand needs permission to read them.
  for (const flags of [[], ["--allow-write"], [`--allow-read=${disk}`]]) {
    const { code, stderr } = await run([...fromSource(...flags), "info", disk]);
    assertEquals(code, 1);
    assertMatch(
      stderr,
      /^bdrv: Requires read access to ".*", run again with the --allow-read flag; it has to cover bdrv's own modules, .*\n$/,
    );
  }
});

const ignore = !await canBundle();

Deno.test({
  name: "each row of the table suffices for the built program",
  ignore,
  async fn() {
    await using dir = new TempDir();
    await build(dir.file("dist"));
    await useRows(fromBundle(dir), dir.file("dist"), dir);
  },
});

Deno.test("stacks in memory need no permission", async () => {
  const program = `
    import { convert, createImage, MemoryStore, openImage } from
      ${JSON.stringify(`${ROOT}mod.ts`)};
    const stores = [new MemoryStore(), new MemoryStore()];
    const files = stores.map((store) => ({ driver: "memory", store }));
    for (const file of files) await createImage("qcow2", file, { size: 1 << 24 });
    const [a, b] = await Promise.all(
      files.map((file) => openImage({ driver: "qcow2", file })));
    await a.write(5000, new Uint8Array(3 << 20).fill(7));
    await convert([a.node], b.node, { compress: true });
    const bytes = await b.read(5000, 3 << 20);
    console.log(bytes.every((byte) => byte === 7));
    await a.close(); await b.close();
    try { await openImage("a.qcow2"); } catch (error) {
      console.log(error.name, error.code, error.hint);
    }`;
  await using dir = new TempDir();
  Deno.writeTextFileSync(dir.file("memory.ts"), program);
  const { code, stdout, stderr } = await run([
    ...[Deno.execPath(), "run", "--no-prompt", "--quiet", "--no-check"],
    `--config=${ROOT}deno.json`,
    dir.file("memory.ts"),
  ]);
  assertEquals([code, stderr], [0, ""]);
  assertEquals(
    stdout,
    'true\nBlockError EACCES Requires read access to "a.qcow2", run again ' +
      "with the --allow-read flag\n",
  );
});

Deno.test("making an image without locks gives a warning beforehand", async () => {
  await using dir = new TempDir();
  const path = dir.file("disk");
  Deno.writeTextFileSync(path, "of others");
  const command = fromSource(...FILES);
  for (const format of ["raw", "qcow2"]) {
    const args = ["create", "-q", "-f", format, path, "1M"];
    const { code, stderr } = await run([...command, ...args]);
    const message = `bdrv: warning: '${path}' cannot be locked: ` +
      "that needs Linux and --allow-ffi\n";
    assertEquals([code, stderr], [0, message]);
    const standIn = await run([...command, "qemu-img", ...args]);
    assertEquals([standIn.code, standIn.stderr], [0, ""]);
  }
});

Deno.test({
  name: "with only libc permitted, an image that QEMU has open is refused",
  ignore: mustSkip({
    tools: ["qemu-io"],
    others: { libc: isLibcAvailable() },
  }),
  async fn() {
    await using dir = new TempDir();
    const path = dir.file("disk");
    const command = fromSource(...ROWS["=/lib/x86_64-linux-gnu/libc.so.6"]);
    const create = [...command, "create", "-q", "-f", "qcow2", path, "1M"];
    assertEquals((await run(create)).code, 0);
    const before = Deno.readFileSync(path);
    const qemu = new Deno.Command("qemu-io", {
      args: [path],
      stdin: "piped",
      stdout: "piped",
    }).spawn();
    try {
      // Its output shows that it is ready.
      const reader = qemu.stdout.getReader();
      await reader.read();
      reader.releaseLock();
      const { code, stderr } = await run(create);
      assertEquals(code, 1);
      assertMatch(stderr, /Failed to get .*lock/);
      assertEquals(Deno.readFileSync(path), before);
    } finally {
      await qemu.stdin.close();
      await qemu.stdout.cancel();
      await qemu.status;
    }
  },
});
