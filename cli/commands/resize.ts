/** `resize`: change the size of an image. @module */
import "../../drivers/writing.ts";
import { BlockError } from "../../core/errors.ts";
import type { Preallocation } from "../../core/node.ts";
import { parseOption } from "../../core/options.ts";
import {
  type Command,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
  QUIET,
} from "../command.ts";
import { OptionParser, type OptionSpec } from "../getopt.ts";
import { openImageArgument, usingNodes } from "../images.ts";
import { humanSize } from "../numbers.ts";
import {
  CommandError,
  notAmong,
  type Program,
  usageError,
} from "../program.ts";
import { inRelease } from "../qemu_releases.ts";

const PREALLOCATIONS: readonly Preallocation[] = [
  "off",
  "metadata",
  "falloc",
  "full",
];

/** The command. */
export const command: Command = {
  summary: "Change the size of an image",
  operands: "FILE [+|-]SIZE",
  options: [
    HELP,
    QUIET,
    OBJECT,
    IMAGE_OPTS,
    FORMAT,
    {
      long: "preallocation",
      argument: PREALLOCATIONS.join("|"),
      help: "how to preallocate the new area",
    },
    { long: "shrink", help: "permit SIZE to be less than the current size" },
  ],
  notes: "With + or -, SIZE is a difference.",

  async run(invocation) {
    const { program } = invocation;
    const { size, shrink, preallocation } = parse(invocation);
    const change = parseChange(size);
    const [file] = invocation.operands;
    const node = await openImageArgument(program, file, {
      ...invocation.image,
      writable: true,
      resize: true,
    });
    return await usingNodes([node], async () => {
      const before = node.size;
      const total = change.relative * before + change.bytes;
      checkSize(program, before, total, shrink, preallocation);
      if (!node.truncate) {
        throw new BlockError(
          "ENOTSUP",
          "Image format driver does not support resize",
        );
      }
      await node.truncate(total, { preallocation, exact: true, zero: false });
      await node.flush?.();
      if (!invocation.quiet) {
        program.print(resultText(program, before, node.size));
      }
      return 0;
    });
  },
};

function resultText(program: Program, before: number, now: number): string {
  return program.isOurs
    ? `Image resized from ${humanSize(before)} to ${humanSize(now)}.\n`
    : "Image resized.\n";
}

/** The size, separated from the other arguments; absent if it is an operand. */
type SplitArguments = [size: string | undefined, others: readonly string[]];

function splitArguments(
  { args, program, command }: Invocation,
): SplitArguments {
  if (inRelease("resizeAnywhere")) {
    // A size that begins with a minus is not an option.
    const at = args.findIndex((arg, index) =>
      /^-\d/.test(arg) &&
      (program.isOurs || index > 0 && !args[index - 1].startsWith("-"))
    );
    return at < 0 ? [undefined, args] : [args[at], args.toSpliced(at, 1)];
  }
  const last = args.at(-1) ?? "";
  const isHelp = last === "-h" || last === "--help";
  if (isHelp && (args.length === 1 || program.isOurs)) return ["", args];
  if (args.length < 2) throw usageError("Not enough arguments");
  // Take the size first, because it may begin with a minus.
  const split: SplitArguments = [last, args.slice(0, -1)];
  if (/^[+-]?\d/.test(last)) return split;
  return findSize(args, command.options) ?? split;
}

/** Find the size where it is not the last argument. */
function findSize(
  args: readonly string[],
  options: readonly OptionSpec[],
): SplitArguments | undefined {
  let at = args.findIndex((arg) => /^-\d/.test(arg));
  if (at < 0) {
    const parser = new OptionParser(options, "", args);
    try {
      for (const _ of parser.parse());
    } catch {
      return undefined;
    }
    const [_file, size, ...rest] = parser.operands;
    if (rest.length > 0 || !/^\+?\d/.test(size ?? "")) return undefined;
    at = args.lastIndexOf(size);
  }
  return [args[at], args.toSpliced(at, 1)];
}

function parse(invocation: Invocation) {
  const [split, options] = splitArguments(invocation);
  let shrink = false;
  let preallocation: Preallocation = "off";
  for (const [option, argument] of invocation.options(options)) {
    if (option === "shrink") shrink = true;
    else if (option === "preallocation") {
      const mode = PREALLOCATIONS.find((mode) => mode === argument);
      if (!mode) {
        throw notAmong(
          `Invalid preallocation mode '${argument}'`,
          PREALLOCATIONS,
        );
      }
      preallocation = mode;
    }
  }
  const [file, size = split] = invocation.operands;
  const given = invocation.operands.length + (split === undefined ? 0 : 1);
  if (given > 2 && inRelease("resizeAnywhere")) {
    throw usageError("Extra argument(s) in command line");
  }
  if (file === undefined || size === undefined || given !== 2) {
    throw usageError("Expecting image file name and size");
  }
  return { size, shrink, preallocation };
}

/** `relative` is 1 if `bytes` is added to the current size, otherwise 0. */
function parseChange(text: string): { relative: number; bytes: number } {
  const sign = /^[+-]/.exec(text)?.[0];
  const parsed = parseOption(
    "size",
    { type: "size", help: "" },
    sign ? text.slice(1) : text,
  ) as number;
  return { relative: sign ? 1 : 0, bytes: sign === "-" ? -parsed : parsed };
}

function checkSize(
  program: Program,
  current: number,
  total: number,
  shrink: boolean,
  preallocation: Preallocation,
): void {
  // QEMU's sizes are signed 64-bit numbers: the largest ones become negative.
  if (total <= 0 || total >= 2 ** 63) {
    throw new CommandError("New image size must be positive");
  }
  if (total <= current && preallocation !== "off") {
    throw new CommandError(
      "Preallocation can only be used for growing images",
    );
  }
  if (total < current && !shrink) {
    const warning = `${program.name}: warning: Shrinking an image will ` +
      "delete all data beyond the shrunken image's end. Before performing " +
      "such an operation, make sure there is no important data there.";
    throw new CommandError(
      "Use the --shrink option to perform a shrink operation.",
      { hint: warning },
    );
  }
}
