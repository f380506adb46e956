/** `bitmap`: change the bitmaps of an image. @module */
import "../../drivers/writing.ts";
import { findBitmap, mergeBitmap, operationsOf } from "../../core/bitmaps.ts";
import { asBlockError } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import {
  type Command,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
} from "../command.ts";
import { openImageArgument, usingNodes } from "../images.ts";
import { sizeArgument } from "../numbers.ts";
import { CommandError, type Program } from "../program.ts";
import { inRelease } from "../qemu_releases.ts";

const ACTIONS = [
  "add",
  "remove",
  "remove-all",
  "clear",
  "enable",
  "disable",
  "merge",
] as const;

/** One of the actions, in the order of the command line. */
interface Action {
  readonly verb: typeof ACTIONS[number];
  /** The bitmap to merge. */
  readonly source?: string;
}

/** The parsed command line. */
interface Settings {
  readonly actions: readonly Action[];
  /** Bytes; 0 for the format's default. */
  readonly granularity: number;
  /** The image whose bitmaps are merged, if not the same one. */
  readonly sourceFile?: string;
  readonly sourceFormat?: string;
}

/** The command. */
export const command: Command = {
  summary: "Change the bitmaps of an image, which record what is written",
  operands: "FILE [BITMAP]",
  options: [
    HELP,
    OBJECT,
    IMAGE_OPTS,
    FORMAT,
    { long: "add", help: "add BITMAP, which records writes from then on" },
    { long: "remove", help: "drop BITMAP" },
    { long: "remove-all", help: "drop all bitmaps" },
    { long: "clear", help: "clear BITMAP" },
    { long: "enable", help: "let BITMAP record writes" },
    { long: "disable", help: "let BITMAP record no more writes" },
    {
      long: "merge",
      argument: "SOURCE",
      help: "merge the bitmap SOURCE into BITMAP",
    },
    {
      short: "g",
      long: "granularity",
      argument: "SIZE",
      help: "for --add: bytes of the disk that a bit stands for",
    },
    {
      short: "b",
      long: "source-file",
      argument: "FILE",
      help: "for --merge: the image that has SOURCE",
    },
    {
      short: "F",
      long: "source-format",
      argument: "FMT",
      help: "format of that image",
    },
  ],
  notes: "Actions are carried out in the order given.",

  async run(invocation) {
    const { program, image } = invocation;
    const settings = parse(invocation);
    const [file, name] = invocation.operands;
    const node = await openImageArgument(program, file, {
      ...image,
      writable: true,
      backing: false,
    });
    return await usingNodes([node], async () => {
      const source = await openSource(program, settings);
      return await usingNodes([source], async () => {
        for (const action of settings.actions) {
          await act(node, name, action, source ?? node, settings);
        }
        return 0;
      });
    });
  },
};

function parse(invocation: Invocation): Settings {
  const actions: Action[] = [];
  let granularity = 0;
  let sourceFile: string | undefined;
  let sourceFormat: string | undefined;
  for (const [option, argument] of invocation.options()) {
    const verb = ACTIONS.find((verb) => verb === option);
    if (verb === "merge") actions.push({ verb, source: argument });
    else if (verb) actions.push({ verb });
    else if (option === "g") {
      granularity = sizeArgument("granularity", argument);
    } else if (option === "b") sourceFile = argument;
    else if (option === "F") sourceFormat = argument;
  }
  const does = (verb: Action["verb"]) =>
    actions.some((action) => action.verb === verb);
  if (actions.length === 0) {
    throw new CommandError(
      `Need at least one of ${inRelease("bitmapActions")}, --enable, ` +
        "--disable, or --merge",
    );
  }
  if (granularity > 0 && !does("add")) {
    throw new CommandError("granularity only supported with --add");
  }
  if (sourceFormat !== undefined && sourceFile === undefined) {
    throw new CommandError("-F only supported with -b");
  }
  if (sourceFile !== undefined && !does("merge")) {
    throw new CommandError(
      "Merge bitmap source file only supported with --merge",
    );
  }
  const { length } = invocation.operands;
  if (actions.every(({ verb }) => verb === "remove-all")) {
    if (length !== 1) throw new CommandError("Expecting filename");
  } else if (length !== 2) {
    throw new CommandError("Expecting filename and bitmap name");
  }
  return { actions, granularity, sourceFile, sourceFormat };
}

async function openSource(
  program: Program,
  { sourceFile, sourceFormat }: Settings,
): Promise<BlockNode | undefined> {
  if (sourceFile === undefined) return undefined;
  return await openImageArgument(program, sourceFile, {
    format: sourceFormat,
    backing: false,
  });
}

async function act(
  node: BlockNode,
  name: string,
  { verb, source: sourceName }: Action,
  source: BlockNode,
  { granularity }: Settings,
): Promise<void> {
  try {
    if (verb === "merge") {
      return await mergeBitmap(node, name, source, sourceName!);
    }
    if (verb === "add") {
      const options = granularity > 0 ? { granularity } : {};
      return await operationsOf(node).add(name, options);
    }
    if (verb === "remove-all") return await removeAll(node);
    await findBitmap(node, name);
    await operationsOf(node)[verb](name);
  } catch (thrown) {
    const of = verb === "remove-all" ? "" : ` on bitmap ${name}`;
    throw asBlockError(thrown).prefixed(`Operation ${verb}${of} failed: `);
  }
}

async function removeAll(node: BlockNode): Promise<void> {
  const bitmaps = node.image?.bitmaps;
  for (const { name } of await bitmaps?.list() ?? []) {
    await bitmaps!.remove(name);
  }
}
