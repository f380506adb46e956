/**
 * The same workloads in each of the ways bdrv can be run: from source, as
 * installed, as an npm package on Node.js and Bun, as one compiled file, and by
 * a page in a browser; side by side, taking turns.
 *
 * Usage: `deno task bench:everywhere [--runs=5] [--size=1024] [--save]`; `size`
 * in MiB, of which the browser gets a quarter. `--save` updates this section of
 * RESULTS.md.
 *
 * @module
 */
import { makeInput } from "./inputs.ts";
import {
  machine,
  median,
  outputOf,
  removeFile,
  runTool,
  time,
} from "./measure.ts";
import { WebPage } from "../tests/web/browser.ts";

const HERE = new URL(".", import.meta.url).pathname;
const ROOT = `${HERE}../`;
const MIB = 1024 * 1024;
const RUN = [Deno.execPath(), "run", "--quiet", "--no-prompt", "-A"];

/** A row of the table: a command, and a check that it did its work. */
interface Row {
  readonly name: string;
  readonly args: readonly string[];
  readonly verify?: readonly string[];
}

const ROWS: readonly Row[] = [
  { name: "--version", args: ["--version"] },
  { name: "info", args: ["info", "mixed.qcow2"] },
  {
    name: "convert raw → qcow2",
    args: ["convert", "-f", "raw", "-O", "qcow2", "mixed.raw", "out"],
    verify: ["compare", "-f", "raw", "-F", "qcow2", "mixed.raw", "out"],
  },
  {
    name: "convert qcow2 → raw",
    args: ["convert", "-f", "qcow2", "-O", "raw", "mixed.qcow2", "out"],
    verify: ["compare", "-f", "raw", "-F", "raw", "mixed.raw", "out"],
  },
];

/** A way to run the command line. */
interface Way {
  readonly name: string;
  readonly command: readonly string[];
  /** Bytes to ship; includes the runtime only where it is part of the file. */
  readonly size?: number;
}

function option(name: string, otherwise: number): number {
  const given = Deno.args.find((arg) => arg.startsWith(`--${name}=`));
  return given === undefined ? otherwise : Number(given.split("=")[1]);
}

const runs = option("runs", 5);
const size = option("size", 1024) * MIB;
const folder = await Deno.makeTempDir({
  dir: "/dev/shm",
  prefix: "bdrv-bench-",
});
const lines: string[] = [];

function print(...more: string[]): void {
  for (const line of more) console.log(line);
  lines.push(...more);
}

async function bytesBelow(path: string): Promise<number> {
  const { isDirectory, size } = await Deno.stat(path);
  if (!isDirectory) return size;
  let sum = 0;
  for await (const { name } of Deno.readDir(path)) {
    sum += await bytesBelow(`${path}/${name}`);
  }
  return sum;
}

/** The path of a runtime installed by npm. */
async function runtime(name: string): Promise<string> {
  const print = ["-p", "process.execPath"];
  return (await outputOf(["npx", "-y", name, ...print])).trim();
}

/** Build everything, and return how each way is run. */
async function ways(): Promise<Way[]> {
  const dist = `${folder}/dist`;
  const task = JSON.parse(await Deno.readTextFile(`${ROOT}deno.json`));
  const build: string[] = task.tasks.build.command.split(" ");
  const outdir = build.indexOf("--outdir");
  await runTool(
    ROOT,
    Deno.execPath(),
    build.slice(1).with(outdir, dist),
  );
  const archive = (await outputOf([...RUN, `${ROOT}build/npm.ts`, folder]))
    .trim();
  const app = `${folder}/app`;
  await Deno.mkdir(app);
  await Deno.writeTextFile(`${app}/package.json`, '{"private":true}');
  await runTool(app, "npm", ["install", "--silent", "--no-audit", archive]);
  const bin = `${app}/node_modules/.bin/bdrv`;
  await runTool(ROOT, Deno.execPath(), [
    ...["run", "-A", "build/compile.ts", "--with=bun"],
  ]);
  const compiled = `${ROOT}dist/bun/bdrv`;
  return [
    { name: "qemu-img", command: ["qemu-img"] },
    { name: "source", command: [...RUN, `${ROOT}cli.ts`] },
    {
      name: "installed",
      command: [
        ...RUN,
        "--unstable-lazy-dynamic-imports",
        "--v8-flags=--no-lazy",
        `${dist}/cli.js`,
      ],
      size: await bytesBelow(dist),
    },
    {
      name: "npm, Node.js 22",
      command: [await runtime("node@22"), bin],
      size: await bytesBelow(archive),
    },
    {
      name: "npm, Node.js 24",
      command: [await runtime("node@24"), bin],
      size: await bytesBelow(archive),
    },
    {
      name: "npm, Bun",
      command: [await runtime("bun@1"), bin],
      size: await bytesBelow(archive),
    },
    {
      name: "compiled, Bun",
      command: [compiled],
      size: await bytesBelow(compiled),
    },
  ];
}

/** The medians of a workload, in milliseconds, one for each way. */
async function measure(
  { args, verify }: Row,
  ways: readonly Way[],
): Promise<number[]> {
  const times: number[][] = ways.map(() => []);
  // The first round warms the caches.
  for (let round = 0; round <= runs; round++) {
    for (const [index, { command }] of ways.entries()) {
      await removeFile(folder, "out");
      times[index].push(await time(folder, [...command, ...args]));
      if (round === 0 && verify) await runTool(folder, "qemu-img", verify);
    }
  }
  return times.map((all) => median(all.slice(1)));
}

function cell(milliseconds: number, reference: number): string {
  const ratio = milliseconds / reference;
  return `${milliseconds.toFixed(0)} (${ratio.toFixed(ratio < 10 ? 2 : 1)})`;
}

async function measureCommands(): Promise<void> {
  for (const name of ["mixed.raw", "mixed.qcow2"]) {
    await makeInput(name, size, folder);
  }
  const all = await ways();
  print(
    "",
    `Milliseconds, and the ratio to qemu-img; ${size / MIB} MiB.`,
    "",
    `| workload | ${all.map(({ name }) => name).join(" | ")} |`,
    `| --- |${" ---: |".repeat(all.length)}`,
  );
  for (const row of ROWS) {
    const found = await measure(row, all);
    const cells = found.map((it) => cell(it, found[0]));
    print(`| ${[row.name, ...cells].join(" | ")} |`);
  }
  const sizes = all.map(({ size }) =>
    size === undefined ? "" : `${(size / MIB).toFixed(1)} MiB`
  );
  print(`| ${["size", ...sizes].join(" | ")} |`);
}

/** What both the page and Deno make of a raw disk. */
const TARGETS: readonly (readonly [choice: string, args: string[]])[] = [
  ["qcow2", []],
  ["qcow2, compact (zstd)", ["-c", "-o", "compression_type=zstd"]],
  ["qcow2, compact (zlib, for old programs)", ["-c"]],
];

async function measurePage(): Promise<void> {
  const disk = `${folder}/page.raw`;
  await makeInput("quarter.raw", size, folder);
  await Deno.rename(`${folder}/quarter.raw`, disk);
  print(
    "",
    `A raw disk of ${size / 4 / MIB} MiB to qcow2, in milliseconds: by the ` +
      "page in Chromium, from choosing the file to the end of the " +
      "download, and by Deno, from source.",
    "",
    "| target | page | Deno | page ÷ Deno |",
    "| --- | ---: | ---: | ---: |",
  );
  await using web = await WebPage.open(folder);
  await web.page.setInputFiles("#files", disk);
  await web.settled();
  await web.withoutPicker();
  for (const [choice, args] of TARGETS) {
    const times: [page: number[], deno: number[]] = [[], []];
    for (let round = 0; round <= runs; round++) {
      await web.page.selectOption("#format", choice);
      const start = performance.now();
      const waiting = web.page.waitForEvent("download", { timeout: 600_000 });
      await web.page.click("#convert button");
      const download = await waiting;
      await download.path();
      times[0].push(performance.now() - start);
      if (round === 0) {
        await download.saveAs(`${folder}/out`);
        const compare = ["compare", "-f", "raw", "-F", "qcow2", disk, "out"];
        await runTool(folder, "qemu-img", compare);
      }
      await download.delete();
      await removeFile(folder, "out");
      const convert = ["convert", "-f", "raw", "-O", "qcow2", ...args];
      const command = [...RUN, `${ROOT}cli.ts`, ...convert, disk, "out"];
      times[1].push(await time(folder, command));
    }
    const [page, deno] = times.map((all) => median(all.slice(1)));
    const cells = [page.toFixed(0), deno.toFixed(0), (page / deno).toFixed(1)];
    print(`| ${[choice, ...cells].join(" | ")} |`);
  }
}

try {
  print(
    `${new Date().toISOString().slice(0, 10)}, by \`${
      ["deno task bench:everywhere", ...Deno.args].join(" ")
    }\`: medians of ${runs} rounds, in each of which every way takes its turn. ` +
      `${await machine()}.`,
  );
  await measureCommands();
  await measurePage();
} finally {
  await Deno.remove(folder, { recursive: true });
}
if (Deno.args.includes("--save")) {
  const file = `${HERE}RESULTS.md`;
  // bench.ts keeps every section from the one on costs onwards.
  const before = (await Deno.readTextFile(file))
    .replace(/\n## Everywhere\n[^]*?(?=\n## |$)/, "");
  const section = `\n## Everywhere\n\n${lines.join("\n")}\n`;
  await Deno.writeTextFile(file, before.trimEnd() + "\n" + section);
  await runTool(HERE, Deno.execPath(), ["fmt", "--quiet", file]);
}
