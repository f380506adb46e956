/**
 * The image tool: `bdrv`, and QEMU's `qemu-img`.
 *
 * @module
 */
import {
  type Commands,
  complaintOf,
  type Entry,
  HelpShown,
  HelpWanted,
  Invocation,
  loadCommand,
  PROGRAM_OPTIONS,
} from "./command.ts";
import { OptionParser } from "./getopt.ts";
import { type Program, usageError } from "./program.ts";
import { inRelease } from "./qemu_releases.ts";

const COMMANDS: { readonly [name: string]: Entry } = {
  amend: {
    summary: "Change options of an image",
    load: () => import("./commands/amend.ts"),
  },
  bench: {
    summary: "Measure how fast an image is",
    load: (args = []) =>
      args.includes("-w")
        ? import("./commands/bench_writing.ts")
        : import("./commands/bench.ts"),
  },
  bitmap: {
    summary: "Change the bitmaps of an image, which record what is written",
    load: () => import("./commands/bitmap.ts"),
  },
  check: {
    summary: "Check the metadata of an image",
    load: () => import("./commands/check.ts"),
  },
  commit: {
    summary: "Write the data of an overlay into its backing file",
    load: () => import("./commands/commit.ts"),
  },
  compare: {
    summary: "Compare the content of two images",
    load: () => import("./commands/compare.ts"),
  },
  completions: {
    summary: "Print a completion script for a shell",
    onlyOurs: true,
    load: async () => {
      const { completions } = await import("./completions.ts");
      return { command: completions(commandsOf) };
    },
  },
  convert: {
    summary: "Convert images to a new one, in any format",
    load: (args = []) =>
      args[args.indexOf("-O") + 1] === "qcow2"
        ? import("./commands/convert_creating.ts")
        : import("./commands/convert.ts"),
  },
  create: {
    summary: "Create an image",
    load: () => import("./commands/create.ts"),
  },
  dd: {
    summary: "Copy part of an image, block by block",
    load: () => import("./commands/dd.ts"),
  },
  help: {
    summary: "Show what a command accepts",
    onlyOurs: true,
    load: async () => {
      const { helpCommand } = await import("./help.ts");
      return { command: helpCommand(commandsOf) };
    },
  },
  info: {
    summary: "Describe an image",
    load: () => import("./commands/info.ts"),
  },
  inspect: {
    summary: "Inspect an image, and report risks, before opening it",
    onlyOurs: true,
    load: () => import("./commands/inspect.ts"),
  },
  io: {
    summary: "Try an image: read, write, and show its allocation",
    onlyOurs: true,
    load: () => import("./commands/io.ts"),
  },
  map: {
    summary: "Show what is allocated in an image, and where",
    load: () => import("./commands/map.ts"),
  },
  measure: {
    summary: "Compute how large the file of a new image would become",
    load: () => import("./commands/measure.ts"),
  },
  rebase: {
    summary: "Change the backing file of an image",
    load: () => import("./commands/rebase.ts"),
  },
  resize: {
    summary: "Change the size of an image",
    load: () => import("./commands/resize.ts"),
  },
  serve: {
    summary: "Export an image to NBD clients until a signal ends it",
    onlyOurs: true,
    load: () => import("./commands/serve.ts"),
  },
  snapshot: {
    summary: "List, take, apply or delete snapshots within an image",
    load: () => import("./commands/snapshot.ts"),
  },
};

/** The commands of a program. */
export function commandsOf(program: Program): Commands {
  return Object.entries(COMMANDS)
    .filter(([_, { onlyOurs }]) => program.isOurs || !onlyOurs);
}

/** Run the program; returns the exit code. */
export async function run(program: Program, args: string[]): Promise<number> {
  const commands = commandsOf(program);
  // The program's options come before the command, all others after it.
  const at = args.findIndex((arg) => !arg.startsWith("-") || arg === "--");
  const own = at < 0 ? args : args.slice(0, at);
  const [name, ...rest] = at < 0 ? [] : args.slice(at);
  let call: Invocation | undefined;
  try {
    const complaint = !program.isOurs && inRelease("libraryMistakes")
      ? complaintOf(program.name)
      : undefined;
    const parser = new OptionParser(PROGRAM_OPTIONS, "", own, complaint);
    for (const [option] of parser.parse()) {
      if (option === "h") throw new HelpWanted();
      const { versionText } = await import("./version.ts");
      program.print(await versionText(program));
      return 0;
    }
    if (name === undefined) throw usageError("Not enough arguments");
    const entry = commands.find(([known]) => known === name)?.[1];
    if (!entry) throw usageError(`Command not found: ${name}`);
    if (program.isOurs || inRelease("commandHelp")) {
      program.helpCommand = `${program.name} ${name} --help`;
    }
    const command = await loadCommand(program, entry, rest);
    await program.prepareObjects(rest);
    call = new Invocation(program, name, command, rest);
    return await command.run(call);
  } catch (error) {
    if (error instanceof HelpShown) return 0;
    if (error instanceof HelpWanted) {
      const { helpText } = await import("./help.ts");
      program.print(await helpText(program, commands, call?.name));
      return 0;
    }
    if (!program.isOurs) throw error;
    const { explained } = await import("./explain.ts");
    throw explained(error, commands.map(([name]) => name), call);
  }
}
