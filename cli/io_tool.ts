/**
 * The I/O tool: `bdrv io`, and QEMU's `qemu-io`.
 *
 * @module
 */
import { HelpWanted, OBJECT } from "./command.ts";
import { libraryText, OptionParser, type OptionSpec } from "./getopt.ts";
import { OPEN_OPTIONS, openFile, takeOpening } from "./io/open.ts";
import type { Opening } from "./io/opening.ts";
import { Session } from "./io/session.ts";
import { runAll, runInput } from "./io/shell.ts";
import { CommandError, type Program } from "./program.ts";
import { versionText } from "./version.ts";

/** The options of the program. */
export const OPTIONS: readonly OptionSpec[] = [
  { short: "h", long: "help", help: "show this help" },
  { short: "V", long: "version", help: "show the version" },
  {
    short: "c",
    long: "cmd",
    argument: "COMMAND",
    help: "run a command; default: read commands from standard input",
  },
  {
    short: "f",
    long: "format",
    argument: "FMT",
    help: "format of the image; default: found by probing",
  },
  ...OPEN_OPTIONS,
  { short: "m", long: "misalign", help: "accepted for compatibility" },
  {
    short: "T",
    long: "trace",
    argument: "PATTERN",
    help: "accepted for compatibility",
  },
  OBJECT,
  {
    long: "image-opts",
    help: "FILE is a description: driver=qcow2,file.filename=a.qcow2",
  },
];

/** The parsed command line. */
interface Request {
  /** `"object"`: the help of an object, which has been printed. */
  readonly show?: "help" | "version" | "object";
  readonly commands: string[];
  readonly imageOpts: boolean;
  readonly opening: Partial<Opening>;
  readonly file?: string;
}

/** Run the program; returns the exit code. */
export async function run(
  program: Program,
  args: readonly string[],
): Promise<number> {
  let request: Request;
  await program.prepareObjects(args);
  try {
    request = parse(program, args);
  } catch (error) {
    const isMistake = error instanceof CommandError && error.usage;
    if (!isMistake || program.isOurs) throw error;
    if (error.message) program.error(program.messageOf(error));
    program.print(programHelp(program));
    return 1;
  }
  if (request.show === "help" && program.isOurs) throw new HelpWanted();
  if (request.show === "object") return 0;
  if (request.show) {
    program.print(
      request.show === "help"
        ? programHelp(program)
        : await versionText(program),
    );
    return 0;
  }
  const { commands, file, imageOpts, opening } = request;
  const session = new Session(program, imageOpts);
  if (file !== undefined) await openFile(session, file, opening);
  const allSucceeded = commands.length > 0
    ? await runAll(session, commands)
    : await runInput(session);
  // QEMU's exit code does not reflect a failed close.
  const isWritten = await session.close() || !program.isOurs;
  return allSucceeded && isWritten ? 0 : 1;
}

function parse(program: Program, args: readonly string[]): Request {
  const commands: string[] = [];
  const opening: Parameters<typeof takeOpening>[0] = {};
  let format: string | undefined;
  let imageOpts = false;
  const parser = new OptionParser(
    OPTIONS,
    program.name,
    args,
    (mistake) => new CommandError(libraryText(mistake), { usage: true }),
  );
  for (const [option, argument] of parser.parse()) {
    if (option === "h") return { show: "help", commands, imageOpts, opening };
    if (option === "V") {
      return { show: "version", commands, imageOpts, opening };
    }
    if (option === "c") commands.push(argument);
    else if (option === "f") format = argument;
    else if (option === "object") {
      if (program.defineObject(argument)) continue;
      return { show: "object", commands, imageOpts, opening };
    } else if (option === "image-opts") imageOpts = true;
    else takeOpening(opening, option, argument);
  }
  if (parser.operands.length > 1) {
    const why = program.isOurs ? "Expecting one image file name" : "";
    throw new CommandError(why, { usage: true });
  }
  if (format !== undefined && imageOpts) {
    throw new CommandError("--image-opts and -f are mutually exclusive");
  }
  if (format !== undefined) opening.options = { driver: format };
  return { commands, imageOpts, opening, file: parser.operands[0] };
}

function programHelp(program: Program): string {
  const lines = OPTIONS.map(({ short, long, argument, help }) => {
    const names = `${short ? `-${short},` : "   "} --${long}`;
    return `  ${
      `${names}${argument ? ` ${argument}` : ""}`.padEnd(24)
    }${help}\n`;
  });
  return `Usage: ${program.name} [OPTIONS]... [-c STRING]... [file]
Try an image: read from it, write to it, look at what it holds.

${lines.join("")}
See '${program.name} -c help' for the commands.
`;
}
