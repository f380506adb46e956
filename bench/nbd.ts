/**
 * NBD side by side with QEMU: our server and `qemu-nbd` with the same clients
 * on the same image, and our client and qemu-img with the same server.
 *
 * @module
 */
import { makeInput } from "./inputs.ts";
import { median, outputOf, removeFile, runTool, time } from "./measure.ts";

/** How to run bdrv, its server and QEMU's. */
export interface NbdPrograms {
  /** bdrv, as installed. */
  readonly ours: readonly string[];
  /** Where the files are. */
  readonly folder: string;
  /** Size of the image in bytes. */
  readonly size: number;
  readonly runs: number;
}

/** One row of the table. */
export interface NbdWorkload {
  /** Its name in the table. */
  readonly name: string;
  /** The ratio to aim for, bdrv ÷ QEMU. */
  readonly goal: number;
  /** Milliseconds of one run of a side. */
  measure(programs: NbdPrograms, side: Side): Promise<number>;
}

type Side = "ours" | "theirs";

const HERE = new URL(".", import.meta.url).pathname;
const IMAGE = "random.raw";
const TARGET = "nbd.out";

/** The socket of a side's server. */
function socketOf({ folder }: NbdPrograms, side: Side): string {
  return `${folder}/${side}.sock`;
}

function uriOf(programs: NbdPrograms, side: Side): string {
  return `nbd+unix:///?socket=${socketOf(programs, side)}`;
}

function reads(depth: number, count: number): NbdWorkload["measure"] {
  return async (programs, side) => {
    const client = [Deno.execPath(), "run", "--quiet", "-A"];
    return Number(
      await outputOf([
        ...[...client, `${HERE}nbd_reads.ts`, socketOf(programs, side)],
        ...[String(depth), String(count)],
      ]),
    );
  };
}

/** Milliseconds of a convert to raw, by a side's program from a side's server. */
async function convert(
  programs: NbdPrograms,
  client: Side,
  server: Side,
): Promise<number> {
  const { folder, ours } = programs;
  await removeFile(folder, TARGET);
  const took = await time(folder, [
    ...(client === "ours" ? ours : ["qemu-img"]),
    ...["convert", "-f", "raw", "-O", "raw", uriOf(programs, server), TARGET],
  ]);
  await runTool(folder, "cmp", [IMAGE, TARGET]);
  return took;
}

/** The rows of the table, in order. */
export const nbdWorkloads: readonly NbdWorkload[] = [
  {
    name: "nbd server: nbdcopy to null",
    goal: 1,
    measure: (programs, side) =>
      time(programs.folder, ["nbdcopy", uriOf(programs, side), "null:"]),
  },
  {
    name: "nbd server: 4 KiB reads, depth 1",
    goal: 1,
    measure: reads(1, 20_000),
  },
  {
    name: "nbd server: 4 KiB reads, depth 64",
    goal: 0.5,
    measure: reads(64, 100_000),
  },
  {
    name: "nbd server: convert by qemu-img",
    goal: 1,
    measure: (programs, side) => convert(programs, "theirs", side),
  },
  {
    name: "nbd client: convert from qemu-nbd",
    goal: 1.2,
    measure: (programs, side) => convert(programs, side, "theirs"),
  },
];

/** Start the servers of both sides, for the duration of a run. */
async function startServers(
  programs: NbdPrograms,
): Promise<readonly Deno.ChildProcess[]> {
  const { folder, ours } = programs;
  const commands = {
    ours: [...ours, "qemu-nbd"],
    theirs: ["qemu-nbd"],
  };
  const servers = Object.entries(commands).map(([side, command]) => {
    const socket = socketOf(programs, side as Side);
    const [program, ...args] = [
      ...[...command, "-r", "-t", "-e", "0", "-f", "raw", "-k", socket],
      IMAGE,
    ];
    return new Deno.Command(program, { args, cwd: folder, stderr: "null" })
      .spawn();
  });
  for (const side of ["ours", "theirs"] as const) {
    for (;;) {
      const where = { transport: "unix", path: socketOf(programs, side) };
      try {
        (await Deno.connect(where as Deno.UnixConnectOptions)).close();
        break;
      } catch {
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  }
  return servers;
}

/** Measure some workloads, one row each. */
export async function* measureNbd(
  chosen: readonly NbdWorkload[],
  programs: NbdPrograms,
): AsyncGenerator<string> {
  const { folder, size, runs } = programs;
  await makeInput(IMAGE, size, folder);
  const servers = await startServers(programs);
  try {
    for (const workload of chosen) {
      const times: { [side in Side]: number[] } = { ours: [], theirs: [] };
      const sides: Side[] = ["ours", "theirs"];
      // The first run of each warms it up.
      for (const side of sides) await workload.measure(programs, side);
      for (let run = 0; run < runs; run++) {
        for (const side of sides) {
          times[side].push(await workload.measure(programs, side));
        }
        sides.reverse();
      }
      yield row(workload, times);
    }
  } finally {
    for (const server of servers) {
      server.kill();
      await server.status;
    }
    await removeFile(folder, TARGET);
  }
}

function row({ name, goal }: NbdWorkload, times: { [side in Side]: number[] }) {
  const { ours, theirs } = times;
  const cells = [
    name.padEnd(36),
    median(ours).toFixed(0).padStart(8),
    median(theirs).toFixed(0).padStart(8),
    (median(ours) / median(theirs)).toFixed(2).padStart(6),
    (Math.min(...ours) / Math.min(...theirs)).toFixed(2).padStart(6),
    goal.toFixed(1).padStart(6),
  ];
  return `| ${cells.join(" | ")} |`;
}

/** The table's header. */
export const NBD_HEADER: readonly string[] = [
  `| ${
    "workload, NBD".padEnd(36)
  } | built ms |  qemu ms |  ratio |   best |   goal |`,
  `| ${"-".repeat(36)} | -------: | -------: | -----: | -----: | -----: |`,
];
