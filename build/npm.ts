/**
 * `deno task npm`: makes the npm package, which needs no Deno, as
 * `dist/bdrv-bdrv-VERSION.tgz`.
 *
 * The library's modules stay as they are, apart from types and `using`, so that
 * bundlers take only what a page uses. The command line is bundled, which starts
 * faster.
 *
 * @module
 */
import config from "../deno.json" with { type: "json" };
import { joinModules } from "./joined.ts";
import { stdModule, TOOLS } from "./std.ts";

const ROOT = new URL("..", import.meta.url).pathname;

const ESBUILD = "npm:esbuild@0.28";
const TYPESCRIPT = "npm:typescript@5.9/tsc";

/** The oldest version of Node.js: older ones lack `process.getBuiltinModule`. */
const NODE = [22, 3];

/** What is lowered, and what is not. */
const TARGET = `--target=node${NODE[0]},es2022`;

/** Modules that do something when they are loaded. */
const SIDE_EFFECTS = [
  "./mod.js",
  ...Object.keys(config.exports)
    .filter((name) => !/^\.(|\/c(ore|li))$/.test(name))
    .map((name) => `./subpaths/${name.slice(2)}.js`),
  "./drivers/all.js",
  "./drivers/held.js",
  "./core/disposal.js",
  "./core/node_version.js",
  "./bin/**",
];

/** Modules that browsers do without, and what they have instead. */
const BROWSER = {
  "./core/node_version.js": false,
  "./core/platform/deno.js": "./core/platform/no_deno.js",
  "./core/platform/node.js": "./core/platform/no_node.js",
};

/** Whether `found`, an array, is the version of a Node.js that is too old. */
const IS_OLD = `found[0] < ${NODE[0]} || ` +
  `(found[0] === ${NODE[0]} && found[1] < ${NODE[1]})`;

/** What its user is told. */
const TOO_OLD = `"bdrv needs Node.js ${NODE.join(".")} or later, and this is " +
      process.versions.node`;

/**
 * Each entry imports this first, so that an old Node.js fails while it imports
 * the library, rather than later, for want of some function.
 */
const CHECK = `const versions = globalThis.process?.versions;
if (versions?.node) {
  const found = versions.node.split(".").map(Number);
  if (${IS_OLD}) {
    throw new Error(
      ${TOO_OLD},
    );
  }
}
`;

/** The program: it has to be understood by any Node.js, however old. */
const PROGRAM = `#!/usr/bin/env node
var found = process.versions.node.split(".").map(Number);
if (${IS_OLD}) {
  console.error(
    ${TOO_OLD}
  );
  process.exitCode = 1;
} else {
  require("./start.cjs");
}
`;

/** Starts the command line; older versions cannot read this. */
const START = `import("./cli.js")
  .then(({ main }) => main(process.argv.slice(2)))
  .then((code) => process.exit(code));
`;

/** Run a program that must succeed; returns its standard output. */
async function run(
  program: string,
  args: readonly string[],
  cwd: string,
): Promise<string> {
  const command = new Deno.Command(program, {
    args: [...args],
    cwd,
    stdout: "piped",
    stderr: "piped",
  });
  const { success, stdout, stderr } = await command.output();
  const [said, complaint] = [stdout, stderr].map((bytes) =>
    new TextDecoder().decode(bytes)
  );
  if (!success) throw new Error(`${complaint}${said}`.trim());
  return said;
}

/** Run a program of npm's. */
const tool = (name: string, args: readonly string[], cwd: string) =>
  run(
    Deno.execPath(),
    ["run", "-A", "--quiet", "--no-lock", "--no-config", name, ...args],
    cwd,
  );

/** The modules that the package's entries need, below the root. */
async function modules(): Promise<string[]> {
  const found = new Set<string>();
  for (const entry of entries()) {
    const text = await run(
      Deno.execPath(),
      ["info", "--json", "--quiet", entry],
      ROOT,
    );
    const prefix = new URL(`file://${ROOT}`).href;
    for (const { specifier } of JSON.parse(text).modules) {
      if (specifier.startsWith(prefix) && specifier.endsWith(".ts")) {
        found.add(specifier.slice(prefix.length));
      }
    }
  }
  return [...found].filter((path) => !path.startsWith("links/")).sort();
}

/** The library's entries; the command line is a bundle of its own. */
function entries(): string[] {
  return Object.values(config.exports).filter((path) => path !== "./cli.ts");
}

/** The path of a module in the package. */
const emitted = (path: string) => path.replace(/\.ts$/, ".js");

/** Name files as they are in the package, also in types. */
function renamed(text: string): string {
  return text.replace(
    /(\bfrom\s*|\bimport\s*\(?\s*)"(\.{1,2}\/[^"\n]+)\.ts"/g,
    '$1"$2.js"',
  );
}

/** The module that has the functions to which `using` is lowered. */
const HELPERS = "core/using.js";

/**
 * Separate a module from the functions at its beginning that esbuild repeats in
 * each one.
 */
function splitHelpers(text: string): [helpers: string, rest: string] {
  const lines = text.split("\n");
  const first = lines.findIndex((line) => !/^(var __| {2}|\};$)/.test(line));
  return [lines.slice(0, first).join("\n"), lines.slice(first).join("\n")];
}

/** Have all modules share those functions. */
async function shareHelpers(out: string): Promise<void> {
  for await (const path of filesBelow(out)) {
    if (!path.endsWith(".js")) continue;
    const text = await Deno.readTextFile(path);
    const [helpers, rest] = splitHelpers(text);
    if (helpers === "") continue;
    const names = "{ __callDispose, __using }";
    const up = path.slice(out.length + 1).split("/").length - 1;
    const from = up === 0 ? `./${HELPERS}` : "../".repeat(up) + HELPERS;
    await Deno.writeTextFile(path, `import ${names} from "${from}";\n${rest}`);
    const shared = `${helpers}\nexport ${names};\n`;
    await Deno.writeTextFile(`${out}/${HELPERS}`, shared);
  }
}

async function* filesBelow(folder: string): AsyncGenerator<string> {
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    const path = `${folder}/${name}`;
    if (isDirectory) yield* filesBelow(path);
    else yield path;
  }
}

/** The library's modules, without types. */
async function emitModules(out: string): Promise<void> {
  const files = await modules();
  await tool(
    ESBUILD,
    [...files, "--format=esm", TARGET, `--outdir=${out}`, "--outbase=."]
      .concat("--log-level=warning"),
    ROOT,
  );
  await shareHelpers(out);
  for (const runtime of ["deno", "node"]) {
    const name = `${runtime}Platform`;
    await Deno.writeTextFile(
      `${out}/core/platform/no_${runtime}.js`,
      `export const ${name} = () => null;\n`,
    );
  }
}

/** The types, by the compiler itself, against what is portable. */
async function emitTypes(out: string): Promise<void> {
  const settings = {
    compilerOptions: {
      target: "es2022",
      module: "nodenext",
      lib: ["es2024", "dom", "dom.iterable", "dom.asynciterable"]
        .concat("esnext.disposable"),
      types: [],
      strict: true,
      skipLibCheck: true,
      allowImportingTsExtensions: true,
      emitDeclarationOnly: true,
      declaration: true,
      rootDir: ".",
      outDir: out,
    },
    files: ["tests/portable.d.ts", ...entries()],
  };
  const copy = await Deno.makeTempDir({ prefix: "bdrv-npm-" });
  try {
    for (const path of [...await modules(), "tests/portable.d.ts"]) {
      const folder = `${copy}/${path}`.replace(/\/[^/]*$/, "");
      await Deno.mkdir(folder, { recursive: true });
      await Deno.copyFile(`${ROOT}${path}`, `${copy}/${path}`);
    }
    await Deno.writeTextFile(
      `${copy}/package.json`,
      JSON.stringify({ type: "module", dependencies: dependencies() }),
    );
    await Deno.writeTextFile(
      `${copy}/tsconfig.json`,
      JSON.stringify(settings),
    );
    // For the types of the libraries in use.
    await run(
      Deno.execPath(),
      ["install", "--quiet", "--no-lock", "--node-modules-dir=auto"],
      copy,
    );
    await tool(TYPESCRIPT, ["-p", "."], copy);
  } finally {
    await Deno.remove(copy, { recursive: true });
  }
}

const WRITE_ALL = "@std/io/write-all";

/** The command line as a few files. */
async function emitProgram(out: string): Promise<void> {
  await tool(
    ESBUILD,
    ["cli.ts", "--bundle", "--splitting", "--minify", "--format=esm"].concat(
      "--platform=node",
      TARGET,
      `--outdir=${out}/bin`,
      "--define:import.meta.main=false",
      `--alias:${WRITE_ALL}=${await stdModule(WRITE_ALL, "cli/output.ts")}`,
      // A terminal's secrets are asked for otherwise there.
      "--external:@std/cli/*",
      "--log-level=warning",
      ...Object.keys(dependencies()).map((name) => `--external:${name}`),
    ),
    ROOT,
  );
  await Deno.writeTextFile(`${out}/bin/bdrv.cjs`, PROGRAM, { mode: 0o755 });
  await Deno.writeTextFile(`${out}/bin/start.cjs`, START);
  await Deno.writeTextFile(
    `${out}/bin/cli.d.ts`,
    "/** Run a command in this process; returns the exit code. */\n" +
      "export declare function main(args: readonly string[]): " +
      "Promise<number>;\n",
  );
}

/** Have each entry check the runtime before anything else. */
async function checkRuntime(out: string): Promise<void> {
  const module = "core/node_version.js";
  await Deno.writeTextFile(`${out}/${module}`, CHECK);
  for (const path of [...entries().map(emitted), "./bin/cli.js"]) {
    const up = path.split("/").length === 2 ? "./" : "../";
    const text = await Deno.readTextFile(`${out}/${path}`);
    await Deno.writeTextFile(
      `${out}/${path}`,
      `import "${up}${module}";\n${text}`,
    );
  }
}

/** The npm packages that the library uses, and their versions. */
function dependencies(): { [name: string]: string } {
  const found: { [name: string]: string } = {};
  for (const [name, specifier] of Object.entries(config.imports)) {
    const version = /^npm:.+@(.+)$/.exec(specifier)?.[1];
    if (version && !TOOLS.includes(name)) found[name] = version;
  }
  return found;
}

function manifest(): object {
  const paths = Object.entries(config.exports).map(([name, path]) => {
    const file = path === "./cli.ts" ? "./bin/cli" : path.replace(/\.ts$/, "");
    return [name, { types: `${file}.d.ts`, default: `${file}.js` }] as const;
  });
  return {
    name: config.name,
    version: config.version,
    description:
      "A block layer for disk images: qcow2, raw, VMDK, VHDX, VHD, " +
      "VDI, LUKS, NBD; as a library and a command line",
    license: config.license,
    type: "module",
    engines: { node: `>=${NODE.join(".")}` },
    bin: { bdrv: "bin/bdrv.cjs" },
    exports: {
      ...Object.fromEntries(paths),
      "./package.json": "./package.json",
    },
    browser: BROWSER,
    sideEffects: SIDE_EFFECTS,
    dependencies: dependencies(),
  };
}

/** Make the package in a folder; returns the path of the archive. */
async function makePackage(into: string): Promise<string> {
  const out = await Deno.makeTempDir({ prefix: "bdrv-npm-" });
  try {
    await emitModules(out);
    await Promise.all([emitTypes(out), emitProgram(out)]);
    await Deno.remove(`${out}/tests`, { recursive: true }).catch(() => {});
    for await (const path of filesBelow(out)) {
      if (!/\.(d\.ts|js)$/.test(path) || path.includes("/bin/")) continue;
      let text = renamed(await Deno.readTextFile(path));
      if (path.endsWith(".d.ts") && /\b(Async)?Disposable\b/.test(text)) {
        text = `/// <reference lib="esnext.disposable" />\n${text}`;
      }
      await Deno.writeTextFile(path, text);
    }
    await joinModules(out, (await modules()).map(emitted));
    await checkRuntime(out);
    const data = JSON.stringify(manifest(), null, 2);
    await Deno.writeTextFile(`${out}/package.json`, `${data}\n`);
    for (const name of ["README.md", "LICENSE"]) {
      await Deno.copyFile(`${ROOT}${name}`, `${out}/${name}`);
    }
    await Deno.mkdir(into, { recursive: true });
    const packing = ["pack", "--silent", "--pack-destination", into];
    return `${into}/${(await run("npm", packing, out)).trim()}`;
  } finally {
    await Deno.remove(out, { recursive: true });
  }
}

try {
  const [into = `${ROOT}dist`] = Deno.args;
  console.log(await makePackage(into.replace(/\/$/, "")));
} catch (error) {
  const { message } = error as Error;
  const isMissing = error instanceof Deno.errors.NotFound;
  console.error(
    `Cannot make the package: ${isMissing ? "npm is not installed" : message}`,
  );
  Deno.exitCode = 1;
}
