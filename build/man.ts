/**
 * `deno task man`: makes the manual pages `dist/man/bdrv.1` and
 * `dist/man/bdrv-COMMAND.1` from the tables behind `--help`.
 *
 * @module
 */
import "../drivers/all.ts";
import { type Command, loadCommand, PROGRAM_OPTIONS } from "../cli/command.ts";
import type { OptionSpec } from "../cli/getopt.ts";
import { commandsOf } from "../cli/image_tool.ts";
import { Program } from "../cli/program.ts";
import { RELEASES } from "../cli/qemu_releases.ts";
import { listDrivers } from "../core/registry.ts";
import type { DriverRole } from "../core/traits.ts";
import config from "../deno.json" with { type: "json" };

const ROOT = new URL("..", import.meta.url);

/** Text, escaped so that none of it is taken for markup. */
function text(plain: string): string {
  return plain.replaceAll("\\", "\\e").replaceAll("-", "\\-")
    .replaceAll("'", "\\(aq").replaceAll("`", "\\(ga").replaceAll("^", "\\(ha")
    .replaceAll("~", "\\(ti").replaceAll("…", "\\&...")
    .replaceAll(/^\./gm, "\\&.");
}

/** The argument of a macro. */
function quoted(plain: string): string {
  return `"${text(plain).replaceAll('"', "\\(dq")}"`;
}

function bold(plain: string): string {
  return `\\fB${text(plain)}\\fP`;
}

function italic(plain: string): string {
  return `\\fI${text(plain)}\\fP`;
}

/** The beginning of a page. */
function heading(title: string, summary: string): string {
  return `.TH ${quoted(title.toUpperCase())} 1 "" ${
    quoted(`bdrv ${config.version}`)
  } ${quoted("Disk images")}
.SH NAME
${text(title)} \\- ${text(summary[0].toLowerCase() + summary.slice(1))}
`;
}

/** Options, each a tagged paragraph. */
function optionList(options: readonly OptionSpec[]): string {
  return options.map((spec) => {
    const { short, alias, long, help } = spec;
    const argument = argumentOf(spec);
    const names = [
      ...[short, alias].filter((letter) => letter !== undefined)
        .map((letter) => bold(`-${letter}`) + (spec.optional ? "" : argument)),
      ...(long ? [bold(`--${long}`) + argument] : []),
    ];
    return `.TP\n${names.join(", ")}\n${text(help)}\n`;
  }).join("");
}

function argumentOf({ argument, optional }: OptionSpec): string {
  if (argument === undefined) return "";
  return optional ? `[=${italic(argument)}]` : ` ${italic(argument)}`;
}

/** Lines that are not filled. */
function verbatim(lines: string): string {
  return `.PP\n.nf\n${text(lines)}\n.fi\n`;
}

/** A command's page. */
function commandPage(name: string, command: Command): string {
  const { summary, operands, options, notes } = command;
  return `${heading(`bdrv-${name}`, summary)}.SH SYNOPSIS
.B bdrv ${text(name)}
.RI [ OPTIONS ]
${italic(operands)}
.SH DESCRIPTION
${text(summary)}.
${notes ? verbatim(notes) : ""}.SH OPTIONS
${optionList(options)}.SH SEE ALSO
.BR bdrv (1)
`;
}

function driverNames(role: DriverRole): string {
  return listDrivers().filter((driver) => driver.role === role)
    .map(({ name }) => name).join(", ");
}

/** The program's page; `commands` are its commands and their summaries. */
function programPage(commands: readonly [string, string][]): string {
  const list = commands.map(([name, summary]) =>
    `.TP\n.BR ${text(`bdrv-${name}`)} (1)\n${text(summary)}.\n`
  );
  const pages = commands.map(([name]) => `.BR ${text(`bdrv-${name}`)} (1)`);
  return `${heading("bdrv", "Work with disk images")}.SH SYNOPSIS
.B bdrv
.I COMMAND
.RI [ OPTIONS ]
.br
.B bdrv
.RB { qemu\\-img | qemu\\-io | qemu\\-nbd }
.RI [ ARGUMENTS ]
.SH DESCRIPTION
Commands take the arguments of those of
.BR qemu\\-img (1),
print the same, and have the same exit codes; messages say a little more. With
the name of one of QEMU\\(aqs programs as the first argument, or called by a link
of that name, it behaves as that program does.
.PP
Sizes are in bytes, or have a suffix: k, M, G, T, P, E (powers of 1024).
.I FILE
is a path, json:{\\&...}, or
.IR DRIVER : FILE .
.SH COMMANDS
${list.join("")}.SH OPTIONS
${optionList(PROGRAM_OPTIONS)}.SH DRIVERS
.TP
Formats
${text(driverNames("format"))}
.TP
Protocols
${text(driverNames("protocol"))}
.TP
Filters
${text(driverNames("filter"))}
.SH EXIT STATUS
0 for success, 1 for an error. Some commands have further codes, which their
pages tell.
.SH ENVIRONMENT
.TP
.B BDRV_QEMU_VERSION
The release of QEMU whose output is printed, from ${RELEASES[0]} on; default: ${
    RELEASES.at(-1)
  }.
.TP
.B BDRV_DEBUG
If set, errors are followed by where they arose.
.TP
.B NO_COLOR
If set, nothing is printed in colour.
.SH SEE ALSO
${pages.join(",\n")}
`;
}

/** All pages, by file name. */
export async function manPages(): Promise<Map<string, string>> {
  const program = new Program("bdrv");
  const commands = commandsOf(program);
  const pages = new Map([[
    "bdrv.1",
    programPage(commands.map(([name, { summary }]) => [name, summary])),
  ]]);
  for (const [name, entry] of commands) {
    const command = await loadCommand(program, entry);
    pages.set(`bdrv-${name}.1`, commandPage(name, command));
  }
  return pages;
}

if (import.meta.main) {
  const folder = new URL("dist/man/", ROOT);
  await Deno.mkdir(folder, { recursive: true });
  for (const [name, page] of await manPages()) {
    await Deno.writeTextFile(new URL(name, folder), page);
    console.log(`dist/man/${name}`);
  }
}
