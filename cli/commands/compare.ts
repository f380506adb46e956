/** `compare`: compare the content of two images. @module */
import "../../drivers/reading.ts";
import { asBlockError } from "../../core/errors.ts";
import {
  compare,
  CompareError,
  type CompareResult,
} from "../../core/jobs/compare.ts";
import type { BlockNode } from "../../core/node.ts";
import {
  type Command,
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
  PROGRESS,
  QUIET,
  SOURCE_CACHE,
} from "../command.ts";
import {
  cacheMode,
  type ImageArgument,
  openImageArgument,
  usingNodes,
} from "../images.ts";
import { Progress } from "../progress.ts";
import { CommandError, type Program, usageError } from "../program.ts";

/** The command. */
export const command: Command = {
  summary: "Compare the content of two images",
  operands: "FILE1 FILE2",
  options: [
    HELP,
    QUIET,
    PROGRESS,
    OBJECT,
    IMAGE_OPTS,
    FORCE_SHARE,
    { ...FORMAT, long: "a-format", help: "format of the first image" },
    {
      ...FORMAT,
      short: "F",
      long: "b-format",
      help: "format of the second image",
    },
    SOURCE_CACHE,
    {
      short: "s",
      long: "strict",
      help: "size and allocation must be equal, too",
    },
  ],
  notes: "Exit code: 0 identical, 1 different, 2 an image cannot be opened,\n" +
    "3 its allocation status is unavailable, 4 it cannot be read.",

  async run(invocation) {
    const { program } = invocation;
    const { format2, ...settings } = parse(invocation);
    const { operands: [first, second], quiet, showsProgress } = invocation;
    const progress = await Progress.begin(program, showsProgress, 2, {
      showsStart: false,
    });
    try {
      const cache = cacheMode(settings.cache, "source cache option", 2);
      const image = { ...invocation.image, cache };
      const a = await open(program, first, image);
      return await usingNodes([a], async () => {
        const b = await open(program, second, { ...image, format: format2 });
        const names = [first, second] as const;
        progress.showStart();
        return await usingNodes(
          [b],
          () =>
            compareNodes(program, a, b, {
              ...settings,
              names,
              quiet,
              progress,
            }),
        );
      });
    } finally {
      progress.end();
    }
  },
};

function parse(invocation: Invocation) {
  const settings = {
    format2: undefined as string | undefined,
    strict: false,
    cache: "writeback",
  };
  for (const [option, argument] of invocation.options()) {
    if (option === "F") settings.format2 = argument;
    else if (option === "T") settings.cache = argument;
    else if (option === "s") settings.strict = true;
  }
  if (invocation.operands.length !== 2) {
    throw usageError("Expecting two image file names");
  }
  return settings;
}

/** Open one of the two; failing has its own exit code. */
async function open(
  program: Program,
  file: string,
  image: ImageArgument,
): Promise<BlockNode> {
  try {
    return await openImageArgument(program, file, image);
  } catch (thrown) {
    const { message, hint } = thrown instanceof CommandError
      ? thrown
      : asBlockError(thrown);
    throw new CommandError(message, { hint, code: 2, cause: thrown });
  }
}

async function compareNodes(
  program: Program,
  a: BlockNode,
  b: BlockNode,
  settings: {
    strict: boolean;
    quiet: boolean;
    progress: Progress;
    names: readonly [string, string];
  },
): Promise<number> {
  const { progress } = settings;
  try {
    const result = await compare(a, b, {
      strict: settings.strict,
      names: settings.names,
      progress: (done, total) => progress.update(done, total),
    });
    if (!settings.quiet) program.print(resultText(result, a, b));
    return result.outcome === "identical" ? 0 : 1;
  } catch (error) {
    if (!(error instanceof CompareError)) throw error;
    if (!settings.quiet) program.print(sizeWarning(a, b, error.offset));
    const code = error.stage === "status" ? 3 : 4;
    throw new CommandError(error.message, { code, cause: error });
  }
}

function resultText(
  result: CompareResult,
  a: BlockNode,
  b: BlockNode,
): string {
  switch (result.outcome) {
    case "size":
      return "Strict mode: Image size mismatch!\n";
    case "status":
      return `Strict mode: Offset ${result.offset} block status mismatch!\n`;
    case "content":
      return sizeWarning(a, b, result.offset) +
        `Content mismatch at offset ${result.offset}!\n`;
    case "identical":
      return sizeWarning(a, b, Infinity) + "Images are identical.\n";
  }
}

/** Sizes are compared once the common part has been found equal. */
function sizeWarning(a: BlockNode, b: BlockNode, reached: number): string {
  return a.size !== b.size && reached >= Math.min(a.size, b.size)
    ? "Warning: Image size mismatch!\n"
    : "";
}
