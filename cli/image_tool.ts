/**
 * The program that works on images: our own, and QEMU's `qemu-img`.
 *
 * @module
 */
import type { DriverRole } from "../core/driver.ts";
import { type Command, HelpShown, Invocation } from "./command.ts";
import { OptionParser, type OptionSpec } from "./getopt.ts";
import { type Program, usageError } from "./program.ts";
import { versionText } from "./version.ts";

/** A command's line in the help, and its module, loaded when it is called. */
interface Entry {
  readonly summary: string;
  load(): Promise<{ readonly command: Command }>;
}

const COMMANDS: { readonly [name: string]: Entry } = {
  amend: {
    summary: "Change options of an image",
    load: () => import("./commands/amend.ts"),
  },
  bench: {
    summary: "Measure how fast an image answers requests",
    load: () => import("./commands/bench.ts"),
  },
  check: {
    summary: "Examine an image's own structures",
    load: () => import("./commands/check.ts"),
  },
  commit: {
    summary: "Write what an image holds into its backing file",
    load: () => import("./commands/commit.ts"),
  },
  compare: {
    summary: "Compare the content of two images",
    load: () => import("./commands/compare.ts"),
  },
  convert: {
    summary: "Copy images into a new one, in any format",
    load: () => import("./commands/convert.ts"),
  },
  create: {
    summary: "Make an image",
    load: () => import("./commands/create.ts"),
  },
  dd: {
    summary: "Copy a part of an image, block by block",
    load: () => import("./commands/dd.ts"),
  },
  info: {
    summary: "Describe an image",
    load: () => import("./commands/info.ts"),
  },
  map: {
    summary: "Show what an image holds, and where",
    load: () => import("./commands/map.ts"),
  },
  measure: {
    summary: "Tell how large the file of a new image would become",
    load: () => import("./commands/measure.ts"),
  },
  rebase: {
    summary: "Give an image another backing file",
    load: () => import("./commands/rebase.ts"),
  },
  resize: {
    summary: "Change the size of an image",
    load: () => import("./commands/resize.ts"),
  },
  snapshot: {
    summary: "List, take, apply or delete snapshots within an image",
    load: () => import("./commands/snapshot.ts"),
  },
};

const OPTIONS: readonly OptionSpec[] = [
  { short: "h", long: "help", help: "show this help" },
  { short: "V", long: "version", help: "show the version" },
];

/** Run the program; answers the exit code. */
export async function run(program: Program, args: string[]): Promise<number> {
  // Options of the program stand before the command, all others after it.
  const at = args.findIndex((arg) => !arg.startsWith("-") || arg === "--");
  const own = at < 0 ? args : args.slice(0, at);
  for (const [option] of new OptionParser(OPTIONS, "", own).parse()) {
    program.print(
      option === "h" ? await programHelp(program) : await versionText(program),
    );
    return 0;
  }
  const [name, ...rest] = at < 0 ? [] : args.slice(at);
  if (name === undefined) throw usageError("Not enough arguments");
  if (!Object.hasOwn(COMMANDS, name)) {
    throw usageError(`Command not found: ${name}`);
  }
  if (program.isOurs) program.helpCommand = `${program.name} ${name} --help`;
  const { command } = await COMMANDS[name].load();
  try {
    return await command.run(new Invocation(program, name, command, rest));
  } catch (error) {
    if (error instanceof HelpShown) return 0;
    throw error;
  }
}

async function programHelp(program: Program): Promise<string> {
  await import("../drivers/all.ts");
  const { listDrivers } = await import("../core/registry.ts");
  const named = (wanted: DriverRole) =>
    listDrivers().filter(({ role }) => role === wanted)
      .map(({ name }) => name).join(" ");
  const commands = Object.entries(COMMANDS).map(([name, { summary }]) =>
    `  ${name.padEnd(10)}${summary}\n`
  );
  return `Usage: ${program.name} COMMAND [OPTIONS] …
Work with disk images.

${commands.join("")}
  -h, --help     show this help; with a command, what it accepts
  -V, --version  show the version

Sizes are in bytes, or have a suffix: k, M, G, T, P, E (powers of 1024).
FILE is a path, json:{…}, or DRIVER:FILE.

Supported formats: ${named("format")}
Protocols: ${named("protocol")}
Filters: ${named("filter")}
`;
}
