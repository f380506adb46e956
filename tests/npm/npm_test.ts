/**
 * The npm package as its users get it: packed, installed into an empty folder,
 * type-checked, bundled, and run on Node.js and Bun.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { mustSkip, run, runOk, TempDir } from "../qemu.ts";
import { commandLine } from "./command_line.ts";

const ROOT = new URL("../..", import.meta.url).pathname;

const RUNTIMES: { [name: string]: string } = {
  "Node.js 22": "node@22",
  "Node.js 24": "node@24",
  "Bun": "bun@1",
};

/** A program of npm's, which Deno fetches. */
const tool = (name: string) => [
  ...[Deno.execPath(), "run", "-A", "--quiet", "--no-lock", "--no-config"],
  `npm:${name}`,
];

/** The path of a runtime that npm has, which may take a while the first time. */
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
    tools: ["npm", "node", "qemu-img"],
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
      Deno.writeTextFileSync(dir.file("page.mjs"), PAGE);
      const bundle = ["--bundle", "--minify", "--splitting", "--format=esm"];
      await runOk(
        [...tool("esbuild@0.28"), "page.mjs", ...bundle].concat(
          "--outdir=out",
          "--metafile=meta.json",
          "--log-level=error",
        ),
        { cwd },
      );
      const { entry, others } = await sizesOf(dir);
      assert(entry <= ENTRY, `${entry}`);
      assert(entry + others <= AT_START, `${entry + others}`);
      // The drivers are registered all the same.
      const out = await runOk([runtimes[0][1]!, "out/page.js"], { cwd });
      assertEquals(out, "hello\n");
    });

    await t.step("an old Node.js is told which one is needed", async () => {
      // It stands for one: only its version is looked at.
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
    });

    for (const [name, runtime] of runtimes) {
      await t.step(`the command line on ${name}`, async () => {
        await using work = new TempDir();
        await commandLine([runtime!, bin], work);
      });
      await t.step(`the library on ${name}`, async () => {
        Deno.writeTextFileSync(dir.file("library.mjs"), LIBRARY);
        const out = await runOk([runtime!, "library.mjs"], { cwd });
        assertEquals(out, "hello\nhello\nJello\n");
      });
    }
  },
});

/** Most bytes of a page's first file, compressed; and of all it loads at once. */
const [ENTRY, AT_START] = [22 * 1024, 50 * 1024];

/** Reads a disk in a blob, an image of 64 KiB clusters made by itself. */
const PAGE = `
import { createImage, openImage } from "@bdrv/bdrv/core";
import "@bdrv/bdrv/blob";
import "@bdrv/bdrv/memory";
import "@bdrv/bdrv/qcow2";
import { MemoryStore } from "@bdrv/bdrv/memory";
const store = new MemoryStore();
const file = { driver: "memory", store };
await createImage("qcow2", file, { size: 2 ** 20 });
const made = await openImage({ driver: "qcow2", file });
await made.write(0, new TextEncoder().encode("hello"));
await made.close();
const bytes = new Uint8Array(store.size);
store.read(0, bytes);
const image = await openImage(new Blob([bytes]));
console.log(new TextDecoder().decode(await image.read(0, 5)));
`;

/** The compressed sizes of a page's first file, and of what that imports. */
async function sizesOf(
  dir: TempDir,
): Promise<{ entry: number; others: number }> {
  interface Output {
    imports: { path: string; kind: string; external?: boolean }[];
  }
  const { outputs }: { outputs: { [path: string]: Output } } = JSON.parse(
    Deno.readTextFileSync(dir.file("meta.json")),
  );
  const first = "out/page.js";
  const needed = new Set([first]);
  // The set grows during the iteration, which includes the new entries.
  for (const path of needed) {
    for (const { path: next, kind, external } of outputs[path].imports) {
      if (kind === "import-statement" && !external) needed.add(next);
    }
  }
  const sizes = await Promise.all(
    [...needed].map(async (path) => [path, await zipped(dir.file(path))]),
  );
  const total = sizes.reduce((sum, [, size]) => sum + (size as number), 0);
  const entry = await zipped(dir.file(first));
  return { entry, others: total - entry };
}

async function zipped(path: string): Promise<number> {
  const bytes = Deno.readFileSync(path);
  const stream = new Blob([bytes]).stream()
    .pipeThrough(new CompressionStream("gzip"));
  return (await new Response(stream).arrayBuffer()).byteLength;
}

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
`;
