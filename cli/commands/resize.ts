/** `resize`: change the size of an image. @module */
import type { Preallocation } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
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
import { openImageArgument, usingNodes } from "../images.ts";
import { CommandError, type Program, usageError } from "../program.ts";

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
    { ...FORMAT, long: undefined },
    {
      long: "preallocation",
      argument: "MODE",
      help: "what to reserve: off, metadata, falloc, full",
    },
    { long: "shrink", help: "permit SIZE to be less than it is now" },
  ],
  notes: "SIZE is the last argument; with + or - it is a difference.",

  async run(invocation) {
    const { program } = invocation;
    const { size, shrink, quiet, preallocation, ...image } = parse(invocation);
    const change = parseChange(size);
    const [file] = invocation.operands;
    const node = await openImageArgument(program, file, {
      ...image,
      writable: true,
      resize: true,
    });
    return await usingNodes([node], async () => {
      const total = change.relative * node.size + change.bytes;
      checkSize(program, node.size, total, shrink, preallocation);
      if (!node.truncate) {
        throw new BlockError(
          "ENOTSUP",
          "Image format driver does not support resize",
        );
      }
      await node.truncate(total, { preallocation, exact: true });
      await node.flush?.();
      if (!quiet) program.print("Image resized.\n");
      return 0;
    });
  },
};

function parse(invocation: Invocation) {
  const { args } = invocation;
  // The size is taken away first: it may begin with a minus.
  const size = args.at(-1);
  const asksForHelp = args.length === 1 && (size === "-h" || size === "--help");
  if (args.length < 2 && !asksForHelp) throw usageError("Not enough arguments");
  let format: string | undefined;
  let imageOpts = false;
  let shrink = false;
  let quiet = false;
  let preallocation: Preallocation = "off";
  const options = asksForHelp ? args : args.slice(0, -1);
  for (const [option, argument] of invocation.options(options)) {
    if (option === "f") format = argument;
    else if (option === "q") quiet = true;
    else if (option === "image-opts") imageOpts = true;
    else if (option === "shrink") shrink = true;
    else if (option === "preallocation") {
      const mode = PREALLOCATIONS.find((mode) => mode === argument);
      if (!mode) {
        throw new CommandError(`Invalid preallocation mode '${argument}'`);
      }
      preallocation = mode;
    }
  }
  if (invocation.operands.length !== 1) {
    throw usageError("Expecting image file name and size");
  }
  return { size: size!, format, imageOpts, shrink, quiet, preallocation };
}

/** Relative is how often the present size counts: 0 or 1. */
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
  if (total <= 0) throw new CommandError("New image size must be positive");
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
