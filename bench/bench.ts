/**
 * Benchmarks bdrv side by side with qemu-img, and prints a table.
 *
 * `deno task bench [WORD…] [--runs=5] [--size=1024] [--growth] [--save]`: runs
 * the workloads whose names contain one of the words. `--runs` is per side (the
 * medians are shown); `--size` is that of the main input, in MiB; `--growth`
 * also measures bdrv on a sixteenth, a quarter and all of that size; `--save`
 * writes the tables to bench/RESULTS.md. Whole processes are timed,
 * alternating, on files in memory (/dev/shm): bdrv run from source, bdrv as
 * `deno task build` bundles it, and qemu-img.
 *
 * @module
 */
import { isInput, makeInput } from "./inputs.ts";
import {
  machine,
  median,
  peakMemory,
  removeFile,
  runTool,
  time,
} from "./measure.ts";
import { measureNbd, NBD_HEADER, nbdWorkloads } from "./nbd.ts";
import { type Workload, workloads } from "./workloads.ts";

const HERE = new URL(".", import.meta.url).pathname;
const RUN = [Deno.execPath(), "run", "--quiet", "--no-prompt", "-A"];
/** How to run each side: bdrv from source, bdrv as installed, and qemu-img. */
const PROGRAMS = {
  ours: [...RUN, `${HERE}../cli.ts`],
  built: [
    ...RUN,
    "--unstable-lazy-dynamic-imports",
    "--v8-flags=--no-lazy",
    `${HERE}../dist/cli.js`,
  ],
  theirs: ["qemu-img"],
};
const FILES = { ours: "ours.out", built: "built.out", theirs: "theirs.out" };

type Side = keyof typeof FILES;

interface Settings {
  folder: string;
  /** Size of the main input, in bytes. */
  size: number;
  runs: number;
}

interface Measured {
  /** Milliseconds of every run. */
  milliseconds: { [side in Side]: number[] };
  mebibytes: { [side in Side]: number };
}

/** A command line, with the side's files and the size filled in. */
function words(command: string, side: Side, { size }: Settings): string[] {
  return command.split(" ").map((word) =>
    word.replace(/(?<=^|=)OUT/, FILES[side])
      .replace(/(?<=^|=)THEIRS$/, FILES.theirs)
      .replace(
        /(?<=^|=)SIZE\*?(\/?)(\d*)$/,
        (_, divided, factor) =>
          String(Math.floor(divided ? size / factor : size * (factor || 1))),
      )
  );
}

function commandOf(
  workload: Workload,
  side: Side,
  settings: Settings,
): string[] {
  return [...PROGRAMS[side], ...words(workload.command, side, settings)];
}

/** Prepare a run, before the clock starts. */
async function prepare(
  workload: Workload,
  side: Side,
  settings: Settings,
): Promise<void> {
  const { folder } = settings;
  for (const file of [FILES[side], `${FILES[side]}.base`]) {
    await removeFile(folder, file);
  }
  for (const command of workload.before ?? []) {
    await runTool(folder, "qemu-img", words(command, side, settings));
  }
}

/** The input images that a workload names. */
function inputsOf({ command, before = [], verify = [] }: Workload): string[] {
  const words = [command, ...before, ...verify].join(" ").split(/[ ,=]/);
  return words.filter(isInput);
}

async function makeInputs(workload: Workload, { folder, size }: Settings) {
  for (const name of inputsOf(workload)) await makeInput(name, size, folder);
}

/** Remove large files that no later workload uses: memory is short. */
async function tidy(workload: Workload, later: readonly Workload[]) {
  const { folder } = settings;
  const used = new Set(later.flatMap(inputsOf));
  const left = inputsOf(workload).filter((name) =>
    name.startsWith("large") && !used.has(name)
  );
  for (const name of [...left, ...Object.values(FILES)]) {
    await removeFile(folder, name);
  }
}

async function measure(
  workload: Workload,
  settings: Settings,
): Promise<Measured> {
  const { folder, runs } = settings;
  await makeInputs(workload, settings);
  const sides: Side[] = ["ours", "built", "theirs"];
  const mebibytes = { ours: 0, built: 0, theirs: 0 };
  // These runs also warm the caches: the page cache, and Deno's of checked
  // code.
  for (const side of sides) {
    await prepare(workload, side, settings);
    const command = commandOf(workload, side, settings);
    mebibytes[side] = await peakMemory(folder, command);
  }
  for (const check of workload.verify ?? []) {
    await runTool(folder, "qemu-img", words(check, "ours", settings));
    await runTool(folder, "qemu-img", words(check, "built", settings));
  }
  const times: { [side in Side]: number[] } = {
    ours: [],
    built: [],
    theirs: [],
  };
  for (let run = 0; run < runs; run++) {
    for (const side of sides) {
      await prepare(workload, side, settings);
      times[side].push(await time(folder, commandOf(workload, side, settings)));
    }
    sides.reverse();
  }
  return { milliseconds: times, mebibytes };
}

function row(
  workload: Workload,
  { milliseconds, mebibytes }: Measured,
): string {
  const { ours, built, theirs } = milliseconds;
  const ratio = median(ours) / median(theirs);
  // Other load on the machine only ever makes runs longer.
  const best = Math.min(...ours) / Math.min(...theirs);
  const cells = [
    workload.name.padEnd(36),
    median(ours).toFixed(0).padStart(8),
    median(built).toFixed(0).padStart(8),
    median(theirs).toFixed(0).padStart(8),
    ratio.toFixed(2).padStart(6),
    best.toFixed(2).padStart(6),
    (median(built) / median(theirs)).toFixed(2).padStart(6),
    workload.goal.toFixed(1).padStart(6),
    mebibytes.ours.toFixed(0).padStart(8),
    mebibytes.theirs.toFixed(0).padStart(8),
  ];
  return `| ${cells.join(" | ")} |`;
}

const HEADER = [
  `| ${
    "workload".padEnd(36)
  } |  ours ms | built ms |  qemu ms |  ratio |   best |  built |   goal | ours MiB | qemu MiB |`,
  `| ${
    "-".repeat(36)
  } | -------: | -------: | -------: | -----: | -----: | -----: | -----: | -------: | -------: |`,
];

/** The median of several runs of bdrv, in milliseconds. */
async function timeOurs(
  workload: Workload,
  settings: Settings,
): Promise<number> {
  const { folder, runs } = settings;
  await makeInputs(workload, settings);
  const times = [];
  for (let run = 0; run <= runs; run++) {
    await prepare(workload, "ours", settings);
    times.push(await time(folder, commandOf(workload, "ours", settings)));
  }
  // The first run warms the caches.
  return median(times.slice(1));
}

/** Whether a workload's time depends on the size of the input. */
function grows({ command }: Workload): boolean {
  return !/^info|huge/.test(command);
}

async function growthRow(
  workload: Workload,
  settings: Settings,
): Promise<string> {
  const times = [];
  for (const part of [16, 4, 1]) {
    const folder = `${settings.folder}/${part}`;
    await Deno.mkdir(folder, { recursive: true });
    const size = settings.size / part;
    times.push(await timeOurs(workload, { ...settings, folder, size }));
    await Deno.remove(folder, { recursive: true });
  }
  const cells = times.map((time) => time.toFixed(0).padStart(8));
  const steps = [times[1] / times[0], times[2] / times[1]].map((ratio) =>
    ratio.toFixed(1).padStart(6)
  );
  return `| ${[workload.name.padEnd(36), ...cells, ...steps].join(" | ")} |`;
}

const GROWTH_HEADER = [
  `| ${
    "workload, ours".padEnd(36)
  } |  1/16 ms |   1/4 ms |     1 ms |  1/16→ |   1/4→ |`,
  `| ${"-".repeat(36)} | -------: | -------: | -------: | -----: | -----: |`,
];

function option(name: string, otherwise: number): number {
  const given = Deno.args.find((arg) => arg.startsWith(`--${name}=`));
  return given === undefined ? otherwise : Number(given.split("=")[1]);
}

const wanted = Deno.args.filter((arg) => !arg.startsWith("-"));
const isChosen = ({ name }: { name: string }) =>
  wanted.length === 0 || wanted.some((word) => name.includes(word));
const chosen = workloads.filter(isChosen);
const chosenNbd = nbdWorkloads.filter(isChosen);
const argument = /^([^-].*|--(runs|size)=[1-9]\d*|--growth|--save)$/;
const hasWork = chosen.length > 0 || chosenNbd.length > 0;
if (!hasWork || !Deno.args.every((arg) => argument.test(arg))) {
  console.error(
    "Usage: deno task bench [WORD...] [--runs=5] [--size=1024] [--growth] " +
      `[--save]\nA WORD is part of one of: ${
        [...workloads, ...nbdWorkloads].map(({ name }) => name).join("; ")
      }`,
  );
  Deno.exit(2);
}
const settings: Settings = {
  folder: await Deno.makeTempDir({ dir: "/dev/shm", prefix: "bdrv-bench-" }),
  size: option("size", 1024) * 1024 * 1024,
  runs: option("runs", 5),
};
const lines: string[] = [];
await runTool(HERE, Deno.execPath(), ["task", "--quiet", "build"]);

function print(...more: string[]): void {
  for (const line of more) console.log(line);
  lines.push(...more);
}

/** Print a row; a workload that fails must not stop the others. */
async function printRow(
  workload: Workload,
  row: Promise<string>,
): Promise<void> {
  try {
    print(await row);
  } catch (error) {
    console.error((error as Error).message);
    print(`| ${workload.name.padEnd(36)} | failed |`);
    Deno.exitCode = 1;
  }
}

print(
  `${await machine()}.`,
  `Main input ${settings.size / 2 ** 20} MiB (a quarter random, a quarter ` +
    "text, half holes), the large one four times that; medians of " +
    `${settings.runs} alternating runs; best: the ratio of the fastest; ` +
    "built: the program as installed.",
);
if (chosen.length > 0) print("", ...HEADER);
try {
  for (const [index, workload] of chosen.entries()) {
    const result = measure(workload, settings);
    await printRow(
      workload,
      result.then((measured) => row(workload, measured)),
    );
    await tidy(workload, chosen.slice(index + 1));
  }
  if (chosenNbd.length > 0) {
    print(
      "",
      "NBD, on an image without holes: both servers with the same client, " +
        "which is timed, and both clients with the same server.",
      "",
      ...NBD_HEADER,
    );
    const nbd = { ...settings, ours: PROGRAMS.built };
    for await (const line of measureNbd(chosenNbd, nbd)) print(line);
  }
  if (Deno.args.includes("--growth")) {
    print(
      "",
      "How bdrv scales with the size of its input: a sixteenth, a quarter and " +
        "all of it, and the factor from each to the next, where 4 is linear.",
      "",
      ...GROWTH_HEADER,
    );
    for (const workload of chosen.filter(grows)) {
      await printRow(workload, growthRow(workload, settings));
    }
  }
} finally {
  await Deno.remove(settings.folder, { recursive: true });
}
if (Deno.args.includes("--save")) {
  const command = ["deno task bench", ...Deno.args].join(" ");
  const date = new Date().toISOString().slice(0, 10);
  const file = `${HERE}RESULTS.md`;
  // Everything from the section on costs onwards is written by hand.
  const before = await Deno.readTextFile(file);
  const costs = /^## Costs [^]*/m.exec(before)?.[0] ?? "";
  await Deno.writeTextFile(
    file,
    `# Measured side by side with qemu-img\n\n` +
      `${date}, by \`${command}\`. Every result was checked with qemu-img ` +
      `in the same run. Ratio: ours ÷ qemu-img, whole processes.\n\n` +
      lines.join("\n") + `\n\n${costs}`,
  );
  await runTool(HERE, Deno.execPath(), ["fmt", "--quiet", file]);
}
