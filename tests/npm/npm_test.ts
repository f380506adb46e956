/**
 * The npm package as its users get it: packed, installed into an empty folder,
 * type-checked, bundled, and run on Node.js and Bun.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { mustSkip, run, runOk, TempDir } from "../qemu.ts";
import { BundledPages } from "./bundled_pages.ts";
import { commandLine } from "./command_line.ts";
import { noSharedKeys, sharedKeys } from "./shared_keys.ts";
import { assertSuite } from "./suite.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

const RUNTIMES: { [name: string]: string } = {
  "Node.js 22": "node@22",
  "Node.js 24": "node@24",
  "Bun": "bun@1",
};

/** A program from an npm package, fetched by Deno. */
const tool = (name: string) => [
  ...[Deno.execPath(), "run", "-A", "--quiet", "--no-lock", "--no-config"],
  `npm:${name}`,
];

/** The path of a runtime from npm, which may take a while the first time. */
async function pathOf(name: string): Promise<string | undefined> {
  const print = ["-p", "process.execPath"];
  try {
    const command = ["timeout", "120", "npx", "-y", name, ...print];
    const { code, stdout } = await run(command);
    return code === 0 ? stdout.trim() : undefined;
  } catch {
    return undefined; // There is no npx.
  }
}

const runtimes = await Promise.all(
  Object.entries(RUNTIMES).map(async ([name, it]) =>
    [name, await pathOf(it)] as const
  ),
);

/** Pack, and install into an empty folder. */
async function install(): Promise<TempDir> {
  const dir = new TempDir();
  const make = [Deno.execPath(), "run", "-A", "--quiet"];
  const archive = await runOk([...make, `${ROOT}build/npm.ts`, dir.path]);
  Deno.writeTextFileSync(
    dir.file("package.json"),
    JSON.stringify({ private: true, type: "module" }),
  );
  await runOk(
    ["npm", "install", "--silent", "--no-audit", archive.trim()],
    { cwd: dir.path },
  );
  return dir;
}

Deno.test({
  name: "the npm package",
  ignore: mustSkip({
    tools: [
      ...["npm", "node", "qemu-img", "qemu-io", "qemu-nbd", "chromium"],
      ...["nbdkit", "nbdinfo"],
    ],
    others: Object.fromEntries(runtimes.map(([name, it]) => [name, !!it])),
  }),
  async fn(t) {
    await using dir = await install();
    const cwd = dir.path;
    const folder = dir.file("node_modules/@bdrv/bdrv");
    const bin = dir.file("node_modules/.bin/bdrv");
    const manifest = JSON.parse(
      Deno.readTextFileSync(`${folder}/package.json`),
    );

    await t.step(
      "has no install script, and all of deno.json's exports",
      () => {
        assertEquals(manifest.scripts, undefined);
        const { exports } = JSON.parse(
          Deno.readTextFileSync(`${ROOT}deno.json`),
        );
        for (const name of Object.keys(exports)) {
          const { types, default: code } = manifest.exports[name];
          assert(Deno.statSync(`${folder}/${types}`).isFile);
          assert(Deno.statSync(`${folder}/${code}`).isFile);
        }
      },
    );

    await t.step("has types", async () => {
      Deno.copyFileSync(`${ROOT}tests/npm/types.txt`, dir.file("use.ts"));
      for (
        const [module, moduleResolution] of [
          ["node16", "node16"],
          ["esnext", "bundler"],
        ]
      ) {
        Deno.writeTextFileSync(
          dir.file("tsconfig.json"),
          JSON.stringify({
            compilerOptions: {
              ...{ module, moduleResolution, target: "es2022", types: [] },
              ...{ strict: true, noEmit: true },
            },
            files: ["use.ts"],
          }),
        );
        const tsc = [...tool("typescript@5.9/tsc"), "-p", cwd];
        const { code, stdout } = await run(tsc, { cwd });
        assertEquals([code, stdout], [0, ""], moduleResolution);
      }
    });

    await t.step("a page loads what it uses, and no more", async () => {
      await using pages = await BundledPages.open(dir);
      for (const [source, most] of Object.entries(MOST_READ)) {
        const { atStart, inAll } = await pages.weigh(source);
        assert(atStart <= MOST_AT_START, `${source}: ${atStart} at start`);
        assert(inAll <= most, `${source}: ${inAll} until it has read`);
      }
    });

    await t.step("an old Node.js is told which version is needed", async () => {
      // A simulation: only the version number is checked.
      const old = "Object.defineProperty(process.versions, 'node', " +
        "{ value: '18.20.1' });";
      Deno.writeTextFileSync(dir.file("old.cjs"), old);
      const { code, stdout, stderr } = await run(
        ["node", "--require", dir.file("old.cjs"), bin, "--version"],
      );
      assertEquals([code, stdout], [1, ""]);
      assertEquals(
        stderr,
        "bdrv needs Node.js 22.3 or later, and this is 18.20.1\n",
      );
      for (const entry of Object.keys(manifest.exports)) {
        if (entry.endsWith(".json")) continue;
        const program = `import(process.argv[1]).then(() => console.log("ok"),
          ({ message }) => console.log(message))`;
        const name = `@bdrv/bdrv${entry.slice(1)}`;
        const said = await runOk(
          ["node", "--require", dir.file("old.cjs"), "-e", program, name],
          { cwd },
        );
        assertEquals(said, stderr, name);
      }
    });

    for (const [name, runtime] of runtimes) {
      await t.step(`the command line on ${name}`, async () => {
        await using work = new TempDir();
        await commandLine([runtime!, bin], work);
        await assertSuite([runtime!, bin]);
      });
      await t.step(`keys shared in advance on ${name}`, async () => {
        await using work = new TempDir();
        const bdrv = [runtime!, bin];
        await (name === "Bun" ? noSharedKeys : sharedKeys)(bdrv, work);
      });
      await t.step(`the library on ${name}`, async () => {
        Deno.writeTextFileSync(dir.file("library.mjs"), LIBRARY);
        const out = await runOk([runtime!, "library.mjs"], { cwd });
        assertEquals(out, "hello\nhello\nJello\nBlockError ENOENT\n");
      });
    }
  },
});

/**
 * The most bytes that a page may load which opens images: at the start, which
 * is its first file and all static imports of it, and in all until it has read
 * a disk. Each file counts as compressed by `gzip`.
 */
const MOST_AT_START = 30 * 1024;
const MOST_READ = { blob: 46 * 1024, http: 55 * 1024 } as const;

/** Uses the library without Deno. */
const LIBRARY = `
import { createImage, openImage } from "@bdrv/bdrv";
import { readFileSync, rmSync } from "node:fs";
import { open } from "node:fs/promises";
await createImage("qcow2", "library.qcow2", { size: 2 ** 20 });
const image = await openImage("library.qcow2");
await image.write(0, new TextEncoder().encode("hello"));
await image.close();
async function start(source, change) {
  const image = await openImage(source);
  if (change) await image.write(0, new TextEncoder().encode(change));
  console.log(new TextDecoder().decode(await image.read(0, 5)));
  await image.close();
}
const bytes = readFileSync("library.qcow2");
await start(bytes);
await start(new Blob([bytes]));
const file = await open("library.qcow2", "r+");
await start(file, "J");
await file.close();
rmSync("library.qcow2");
await openImage("library.qcow2").catch(({ code, constructor }) =>
  console.log(constructor.name, code)
);
`;
