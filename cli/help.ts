/**
 * The help of the image tool, made from the tables of its commands; loaded on
 * demand.
 *
 * @module
 */
import "../drivers/all.ts";
import { listDrivers } from "../core/registry.ts";
import type { DriverRole } from "../core/traits.ts";
import {
  type Command,
  type Commands,
  type Entry,
  HELP,
  loadCommand,
  PROGRAM_OPTIONS,
} from "./command.ts";
import type { OptionSpec } from "./getopt.ts";
import { type Program, usageError } from "./program.ts";
import { inRelease } from "./qemu_releases.ts";
import { versionText } from "./version.ts";

/**
 * The text of `--help`, with or without a command.
 *
 * Ours fits on a screen; that of a command lists its options. QEMU's old one
 * always prints everything, and scripts search it for formats and options.
 */
export async function helpText(
  program: Program,
  commands: Commands,
  name: string | undefined,
): Promise<string> {
  const first = inRelease("commandHelp");
  if (!program.isOurs && !first) return await completeHelp(program, commands);
  if (name === undefined) {
    return program.isOurs
      ? overview(program, commands)
      : await qemuOverview(program, commands);
  }
  const command = await loadCommand(program, entryOf(commands, name));
  if (!program.isOurs) {
    return commandHelp(`${program.name} ${name}`, command, first === "usage");
  }
  return `Usage: ${program.name} ${name} [OPTIONS] ${command.operands}\n` +
    commandText(command);
}

/** `help`, for all commands that `commandsOf` lists. */
export function helpCommand(
  commandsOf: (program: Program) => Commands,
): Command {
  return {
    summary: "Show what a command accepts",
    operands: "[COMMAND]",
    options: [HELP],
    notes:
      "'bdrv help COMMAND' is 'bdrv COMMAND --help'; without a command,\n" +
      "all are listed. 'bdrv help qemu-img', qemu-io and qemu-nbd show\n" +
      "what those programs accept.",

    async run(invocation) {
      for (const _ of invocation.options()) {
        // There are no options but --help.
      }
      const { program, operands } = invocation;
      if (operands.length > 1) throw usageError("Expecting one command");
      const [name] = operands;
      const commands = commandsOf(program);
      if (name !== undefined && !commands.some(([known]) => known === name)) {
        program.helpCommand = `${program.name} --help`;
        throw usageError(`Command not found: ${name}`);
      }
      program.print(await helpText(program, commands, name));
      return 0;
    },
  };
}

function entryOf(commands: Commands, name: string): Entry {
  return commands.find(([known]) => known === name)![1];
}

function overview(program: Program, commands: Commands): string {
  const width = Math.max(...commands.map(([name]) => name.length));
  const lines = commands.map(([name, { summary }]) =>
    `  ${name.padEnd(width)}  ${summary}\n`
  );
  return `Usage: ${program.name} COMMAND [OPTIONS] …

${lines.join("")}
${optionLines(PROGRAM_OPTIONS)}
Sizes are in bytes, or have a suffix: k, M, G, T, P, E (powers of 1024).
FILE is a path, json:{…}, or DRIVER:FILE.

${wrappedLine(`Formats: ${driverNames("format")}`)}
${wrappedLine(`Protocols: ${driverNames("protocol")}`)}
${wrappedLine(`Filters: ${driverNames("filter")}`)}
`;
}

/**
 * A line, with indented continuation lines if it is too long for the screen.
 */
function wrappedLine(text: string): string {
  return wrapped(text, WIDTH - 2).join("\n  ");
}

/** The commands of one of QEMU's programs, in its layout. */
async function qemuOverview(
  program: Program,
  commands: Commands,
): Promise<string> {
  const lines = commands.map(([name, { summary }]) =>
    `  ${name} - ${summary}\n`
  );
  const formats = wrapped(driverNames(), WIDTH - 2);
  return `${await versionText(program)}Usage:
  ${program.name} [-h|--help] [-V|--version] COMMAND [--help | OPTIONS] …

Standard options:
${longOptionLines(PROGRAM_OPTIONS)}
Commands, each with a help of its own (${program.name} COMMAND --help):

${lines.join("")}
Supported image formats:

${formats.map((line) => `  ${line}\n`).join("")}`;
}

/** The help of one of QEMU's commands, in its layout. */
function commandHelp(
  call: string,
  { summary, operands, options, notes }: Command,
  usageFirst: boolean,
): string {
  const specs = options.map(asInQemu);
  // Options are not broken across lines.
  const words = [...specs.map(syntaxOf), operands]
    .map((word) => word.replaceAll(" ", "\0"));
  const usage = wrapped(
    [call.replace(" ", "\0"), ...words].join(" "),
    WIDTH - 8,
  )
    .map((line, index) => `${index === 0 ? "  " : "        "}${line}\n`)
    .join("").replaceAll("\0", " ");
  const start = usageFirst
    ? `Usage:\n${usage}\n${summary}.\n`
    : `${summary}.  Usage:\n\n${usage}`;
  const rest = notes ? `\n${notes}\n` : "";
  return `${start}\nArguments:\n${longOptionLines(specs)}${rest}`;
}

/** Options, each with its help on separate lines. */
function longOptionLines(options: readonly OptionSpec[]): string {
  return options.map((spec) => {
    const help = wrapped(spec.help, WIDTH - 5).map((line) => `     ${line}\n`);
    return `  ${namesOf(spec).join(", ")}${argumentOf(spec)}\n${help.join("")}`;
  }).join("");
}

/** The help of everything in one text. */
async function completeHelp(
  program: Program,
  commands: Commands,
): Promise<string> {
  const loaded = await Promise.all(
    commands.map(async ([name, { load }]) => {
      const { command } = await load();
      const options = command.options.map(asInQemu);
      return [name, { ...command, options }] as const;
    }),
  );
  const syntax = loaded.map(([name, { options, operands }]) =>
    `  ${[name, ...options.map(syntaxOf), operands].join(" ")}\n`
  );
  const details = loaded.map(([name, command]) =>
    `${name}: ${commandText(command)}\n`
  );
  return `${await versionText(program)}Usage: ${program.name} ` +
    `[-h|--help] [-V|--version] COMMAND [OPTIONS] …

Command syntax:
${syntax.join("")}
Sizes are in bytes, or have a suffix: k, M, G, T, P, E (powers of 1024).
FILE is a path, json:{…}, or DRIVER:FILE.

${details.join("")}Supported formats: ${driverNames()}
`;
}

/** An option without the optional argument that QEMU's programs lack. */
function asInQemu(spec: OptionSpec): OptionSpec {
  if (!spec.optional) return spec;
  const [help] = spec.help.split("; ");
  return { ...spec, argument: undefined, help };
}

/** A command's summary, and its options, one per line. */
function commandText({ summary, options, notes }: Command): string {
  return `${summary}.\n\n${optionLines(options)}` +
    (notes ? `\n${notes}\n` : "");
}

/** Columns of the screen. */
const WIDTH = 80;
/** Longer names get their own line. */
const MAX_NAMES = 30;

function optionLines(options: readonly OptionSpec[]): string {
  const rows = options.map((
    spec,
  ) => [namesOf(spec).join(", ") + argumentOf(spec), spec.help]);
  const lengths = rows.map(([names]) => names.length);
  const width = Math.max(...lengths.filter((length) => length <= MAX_NAMES));
  const indent = " ".repeat(width + 4);
  return rows.map(([names, help]) => {
    const [first, ...rest] = wrapped(help, WIDTH - indent.length);
    const start = names.length <= width
      ? `  ${names.padEnd(width)}  ${first}`
      : `  ${names}\n${indent}${first}`;
    return [start, ...rest.map((line) => indent + line)].join("\n") + "\n";
  }).join("");
}

/** Wrap text to lines of a certain width. */
function wrapped(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= width) {
      lines[lines.length - 1] = `${last} ${word}`;
    } else lines.push(word);
  }
  return lines;
}

/** An option in a command's syntax line. */
function syntaxOf(spec: OptionSpec): string {
  return `[${namesOf(spec).join("|")}${argumentOf(spec)}]`;
}

function namesOf({ short, alias, long }: OptionSpec): string[] {
  return [
    ...(short ? [`-${short}`] : []),
    ...(alias ? [`-${alias}`] : []),
    ...(long ? [`--${long}`] : []),
  ];
}

function argumentOf({ argument, optional }: OptionSpec): string {
  if (argument === undefined) return "";
  return optional ? `[=${argument}]` : ` ${argument}`;
}

function driverNames(role?: DriverRole): string {
  return listDrivers()
    .filter((driver) => role === undefined || driver.role === role)
    .map(({ name }) => name).join(" ");
}
