import { assertEquals } from "@std/assert";
import {
  chainText,
  findBreaches,
  findCycles,
  findNamed,
  type ImportGraph,
  readImports,
} from "./imports.ts";
import { TempDir } from "./qemu.ts";

/** The imports of a tree of modules, by name and text. */
async function graphOf(
  modules: { readonly [path: string]: string },
): Promise<ImportGraph> {
  await using dir = new TempDir();
  for (const [path, text] of Object.entries(modules)) {
    const file = dir.file(path);
    await Deno.mkdir(file.slice(0, file.lastIndexOf("/")), { recursive: true });
    await Deno.writeTextFile(file, text);
  }
  return await readImports(dir.path);
}

/** The cycles of such a tree, in the form in which they are reported. */
async function cyclesOf(modules: { readonly [path: string]: string }) {
  const graph = await graphOf(modules);
  return findCycles(graph).map((cycle) => chainText(graph, cycle));
}

const WAYS = [
  ["static", `import { b } from "./b.ts"; console.log(b);`, ""],
  ["for its effects", `import "./b.ts";`, ""],
  ["exported again", `export * from "./b.ts";`, ""],
  ["of a type", `import type { B } from "./b.ts"; export type A = B;`, "type"],
  ["of a type among others", `import { type B } from "./b.ts"; type A = B;`],
  ["of a type within a type", `export type A = import("./b.ts").B;`],
  ["of a module's type", `export type A = typeof import("./b.ts");`],
  [
    "dynamic",
    `export const load = () => import("./b.ts");`,
    "dynamic",
  ],
] as const;

for (const [name, text, kind] of WAYS) {
  Deno.test(`findCycles() sees an import ${name}`, async () => {
    const cycles = await cyclesOf({
      "a.ts": text,
      "b.ts": `import "./c.ts"; export const b = 1; export type B = number;`,
      "c.ts": `import "./a.ts";`,
    });
    assertEquals(cycles.length, 1);
    if (kind === undefined) return;
    const mark = kind && `(${kind}) `;
    assertEquals(cycles, [`a.ts -> ${mark}b.ts -> c.ts -> a.ts`]);
  });
}

Deno.test("findCycles() shows each cycle once, in whatever folders", async () => {
  assertEquals(
    await cyclesOf({
      "x/self.ts": `import "./self.ts";`,
      "x/one.ts": `import "../y/two.ts"; import "../y/three.ts";`,
      "y/two.ts": `import "../x/one.ts";`,
      "y/three.ts": `import "../x/one.ts"; import "./leaf.ts";`,
      "y/leaf.ts": `// import "./two.ts";\nconsole.log('import "./two.ts"');`,
    }),
    [
      "x/one.ts -> y/three.ts -> x/one.ts",
      "x/one.ts -> y/two.ts -> x/one.ts",
      "x/self.ts -> x/self.ts",
    ],
  );
});

Deno.test("findBreaches() names what the dependency rule forbids", async () => {
  const graph = await graphOf({
    "core/open.ts": `import "../drivers/raw.ts"; import "./jobs/copy.ts";`,
    "core/jobs/copy.ts": `export {};`,
    "drivers/all.ts": `import "./raw.ts"; import "./qcow2/driver.ts";`,
    "drivers/raw.ts": `export const load = () => import("./qcow2/driver.ts");`,
    "drivers/qcow2/driver.ts":
      `import "./state.ts"; import "../vdi/driver.ts";`,
    "drivers/qcow2/state.ts": `import "../../core/jobs/copy.ts";`,
    "drivers/vdi/driver.ts": `import "../raw.ts";`,
    "cli/main.ts": `import "../drivers/all.ts"; import "../drivers/raw.ts";`,
    "tests/any_test.ts": `import "../drivers/raw.ts";`,
  });
  assertEquals(findBreaches(graph), [
    "cli/main.ts -> drivers/raw.ts (cli imports mod.ts and core)",
    "core/open.ts -> drivers/raw.ts (core imports only core)",
    ...[
      "drivers/qcow2/driver.ts -> drivers/vdi/driver.ts",
      "drivers/raw.ts -> drivers/qcow2/driver.ts",
      "drivers/vdi/driver.ts -> drivers/raw.ts",
    ].map((it) => `${it} (a driver imports core and its own folder)`),
  ]);
});

const NAMED: readonly [module: string, text: string, what: string[]][] = [
  ["core/a.ts", "Deno.cwd();", ["Deno"]],
  ["core/jobs/a.ts", "globalThis.Deno?.cwd();", ["Deno"]],
  ["mod.ts", 'globalThis["Deno"];', ["Deno"]],
  ["drivers/a.ts", 'if ("Deno" in globalThis) go();', ["Deno"]],
  ["drivers/file/a.ts", "let info: Deno.FileInfo;", ["Deno"]],
  ["core/a.ts", "const program = `x(${1}); Deno.dlopen(path)`;", ["Deno"]],
  ["core/platform/web.ts", "Deno.cwd();", ["Deno"]],
  ["core/platform/deno_files.ts", "Deno.cwd();", []],
  ["core/platform/deno.ts", 'import fs from "node:fs";', ["node:"]],
  ["core/platform/node.ts", "Deno.cwd();", ["Deno"]],
  ["core/platform/node_files.ts", 'module("node:fs");', []],
  ["core/a.ts", 'import "node:fs";', ["node:"]],
  ["drivers/a.ts", "const fs = await import('node:fs');", ["node:"]],
  ["cli/a.ts", "Deno.exit(); require('node:fs');", ["Deno", "node:"]],
  ["core/a.ts", "// Deno.cwd()\n/* Deno, node:fs */ const node: Node;", []],
  ["core/a.ts", 'fail("it needs Deno 2");', []],
];

for (const [module, text, what] of NAMED) {
  Deno.test(`findNamed() sees which modules name a runtime: ${module}: ${text}`, () => {
    assertEquals(findNamed(module, text), what);
  });
}
