/**
 * Commands, and the options they have in common.
 *
 * @module
 */
import {
  type Complaint,
  libraryText,
  OptionParser,
  type OptionSpec,
} from "./getopt.ts";
import type { ImageArgument } from "./images.ts";
import { CommandError, type Program, usageError } from "./program.ts";
import { inRelease } from "./qemu_releases.ts";

/** A command of the image tool. */
export interface Command {
  /** What it does, in one line. */
  readonly summary: string;
  /** Its operands, as the help shows them. */
  readonly operands: string;
  /** The options it accepts. */
  readonly options: readonly OptionSpec[];
  /** Further options, which QEMU's program does not have. */
  readonly ownOptions?: readonly OptionSpec[];
  /** Further notes for the help. */
  readonly notes?: string;
  /** Whether QEMU responds to mistakes in the options with the help. */
  readonly helpsOnMistake?: boolean;
  /** Run it; returns the exit code. */
  run(invocation: Invocation): Promise<number>;
}

/** A command's line in the help, and its module, loaded when it runs. */
export interface Entry {
  readonly summary: string;
  /** Whether QEMU's program has no such command. */
  readonly onlyOurs?: boolean;
  /**
   * Load it. The arguments only tell what else will be needed: loaded together
   * with the command, that takes less time than on demand.
   */
  load(args?: readonly string[]): Promise<{ readonly command: Command }>;
}

/** The commands of a program. */
export type Commands = readonly [name: string, entry: Entry][];

/** Thrown after help was shown on request. */
export class HelpShown extends Error {}

/** Thrown to show the help, whose code is loaded only then. */
export class HelpWanted extends Error {}

/** The options on the image that most commands share. */
export type ImageSettings = Pick<
  ImageArgument,
  "format" | "imageOpts" | "forceShare"
>;

/** An invocation of a command. */
export class Invocation {
  /** The operands; complete after parsing. */
  operands: readonly string[] = [];

  /** How to open the image: `-f`, `--image-opts`, `-U`. */
  readonly image: ImageSettings = {};
  /** `-q`. */
  quiet = false;
  #progress = false;

  /** `name` calls `command` with `args`. */
  constructor(
    readonly program: Program,
    readonly name: string,
    readonly command: Command,
    readonly args: readonly string[],
  ) {}

  /** Whether `-p` is given without `-q`. */
  get showsProgress(): boolean {
    return this.#progress && !this.quiet;
  }

  /** The options one after the other; common ones are handled here. */
  *options(args: readonly string[] = this.args): Generator<[string, string]> {
    const parser = new OptionParser(
      this.command.options,
      this.name,
      args,
      this.#complaint,
    );
    const checksOutput = inRelease("quotedChoice") !== undefined;
    for (const [name, argument] of parser.parse()) {
      if (checksOutput && name === OUTPUT.long) outputFormat(argument);
      if (!this.#take(name, argument)) yield [name, argument];
    }
    this.operands = parser.operands;
  }

  /**
   * Require exactly one operand, an image.
   *
   * @throws {CommandError} otherwise.
   */
  expectOneImage(): void {
    if (this.operands.length === 1) return;
    throw usageError("Expecting one image file name");
  }

  /** Handle a common option; returns whether it was one. */
  #take(name: string, argument: string): boolean {
    if (name === HELP.short) throw new HelpWanted();
    else if (name === OBJECT.long) this.#define(argument);
    else if (name === MAX_CHAIN.long) {
      this.program.maxChain = chainLimit(argument);
    } else if (name === FORMAT.short) this.image.format = argument;
    else if (name === IMAGE_OPTS.long) this.image.imageOpts = true;
    else if (name === FORCE_SHARE.short) this.image.forceShare = true;
    else if (name === QUIET.short) this.quiet = true;
    else if (name === PROGRESS.short) {
      this.#progress = true;
      if (argument) this.#setProgress(argument);
    } else return false;
    return true;
  }

  /** Set the format of progress, which QEMU's programs do not offer. */
  #setProgress(format: string): void {
    if (!this.program.isOurs) {
      throw usageError(`unrecognized option '--progress=${format}'`);
    }
    if (format !== "json") {
      throw new CommandError(`Invalid progress format: ${format}`);
    }
    this.program.progressFormat = format;
  }

  /** How to word mistakes, if not as usual. */
  get #complaint(): Complaint | undefined {
    const { program, command } = this;
    if (program.isOurs) return undefined;
    if (inRelease("libraryMistakes")) {
      return complaintOf(`${program.name} ${this.name}`);
    }
    if (!command.helpsOnMistake) return undefined;
    return (mistake) => {
      program.printError(`${this.name}: ${libraryText(mistake)}\n`);
      return new HelpWanted();
    };
  }

  #define(definition: string): void {
    if (!this.program.defineObject(definition)) throw new HelpShown();
  }
}

/** Complains in the words of the C library, as a program or a part of it. */
export function complaintOf(speaker: string): Complaint {
  return (mistake) =>
    new CommandError(libraryText(mistake), { speaker, usage: true });
}

/**
 * Load a command, for certain arguments if they are known; as `bdrv`, it may
 * have further options.
 */
export async function loadCommand(
  program: Program,
  entry: Entry,
  args?: readonly string[],
): Promise<Command> {
  const { command } = await entry.load(args);
  if (!program.isOurs) return command;
  const own = command.options.includes(OBJECT) ? [MAX_CHAIN] : [];
  const { options, ownOptions = [] } = command;
  return { ...command, options: [...options, ...ownOptions, ...own] };
}

/** The options before a command. */
export const PROGRAM_OPTIONS: readonly OptionSpec[] = [
  {
    short: "h",
    long: "help",
    help: "show this help; with a command, what it accepts",
  },
  { short: "V", long: "version", help: "show the version" },
];

/** `-h`: show the help. */
export const HELP: OptionSpec = {
  short: "h",
  long: "help",
  help: "show this help",
};

/** `--object`. */
export const OBJECT: OptionSpec = {
  long: "object",
  argument: "OBJECT",
  help: "a key: secret,id=ID,data=TEXT (or file=PATH)",
};

/** `--max-chain`, which QEMU's programs do not have. */
export const MAX_CHAIN: OptionSpec = {
  long: "max-chain",
  argument: "N",
  help: "most images in a backing chain; default: 10001",
};

function chainLimit(text: string): number {
  const limit = /^\d+$/.test(text) ? Number(text) : 0;
  if (limit >= 1 && limit <= 1_000_000) return limit;
  throw new CommandError(
    `Invalid --max-chain: '${text}' is not a number between 1 and 1000000`,
  );
}

/** `--image-opts`. */
export const IMAGE_OPTS: OptionSpec = {
  long: "image-opts",
  help: "FILE is a list: driver=qcow2,file.filename=a",
};

/** `-U`. */
export const FORCE_SHARE: OptionSpec = {
  short: "U",
  long: "force-share",
  help: "open it even if another process is writing to it",
};

/** `-f`, with its long form. */
export const FORMAT: OptionSpec = {
  short: "f",
  long: "format",
  argument: "FMT",
  help: "format of the image; default: found by probing",
};

/** `--output`. */
export const OUTPUT: OptionSpec = {
  long: "output",
  argument: "human|json",
  help: "format of the result",
};

/** `-q`. */
export const QUIET: OptionSpec = {
  short: "q",
  long: "quiet",
  help: "print nothing but errors",
};

/** `-p`, or `--progress=json` for programs. */
export const PROGRESS: OptionSpec = {
  short: "p",
  long: "progress",
  argument: "json",
  optional: true,
  help: "show progress; =json: lines of JSON on standard error",
};

/** `-T`. Commands that also write have a longer name for it. */
export const SOURCE_CACHE: OptionSpec = {
  short: "T",
  long: "cache",
  argument: "CACHE",
  help: "cache mode for reading: writeback, none, unsafe, \u2026",
};

/** `-t`. */
export const CACHE: OptionSpec = {
  short: "t",
  long: "cache",
  argument: "CACHE",
  help: "cache mode for writing: writeback, none, unsafe, \u2026",
};

/** `-o`. */
export const OPTIONS: OptionSpec = {
  short: "o",
  long: "options",
  argument: "NAME=VALUE,\u2026",
  help: "options of the format; -o help lists them",
};

/** `-F`, which QEMU is about to call `-B` everywhere. */
export const BACKING_FORMAT: OptionSpec = {
  short: "F",
  alias: "B",
  long: "backing-format",
  argument: "FMT",
  help: "format of the backing file",
};

/** The argument of `--output`. */
export function outputFormat(text: string | undefined): "human" | "json" {
  if (text === undefined || text === "human") return "human";
  if (text === "json") return "json";
  const comma = inRelease("quotedChoice");
  if (comma !== undefined) {
    throw usageError(
      `--output expects 'human' or 'json'${comma} not '${text}'`,
    );
  }
  throw new CommandError(
    "--output must be used with human or json as argument.",
  );
}
