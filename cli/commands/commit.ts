/** `commit`: write the data of an overlay into its backing file. @module */
import "../../drivers/writing.ts";
import { BlockError, strerror } from "../../core/errors.ts";
import { backingOf } from "../../core/extents.ts";
import type { ImplicitOpen } from "../../core/gate.ts";
import { canonicalName } from "../../core/sources.ts";
import { commit, CommitError } from "../../core/jobs/commit.ts";
import { resolveName, schemeOf } from "../../core/names.ts";
import type { BlockNode } from "../../core/node.ts";
import type { CacheMode } from "../../core/open_options.ts";
import {
  CACHE,
  type Command,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type ImageSettings,
  type Invocation,
  OBJECT,
  PROGRESS,
  QUIET,
} from "../command.ts";
import { cacheMode, openImageArgument, usingNodes } from "../images.ts";
import { Interruption } from "../interruption.ts";
import { sizeArgument } from "../numbers.ts";
import { Progress } from "../progress.ts";
import { CommandError, type Program } from "../program.ts";

class Settings {
  cache: CacheMode = "writeback";
  /** The name of the image to write to. */
  base?: string;
  drop = false;
  rateLimit = 0;
}

/** The command. */
export const command: Command = {
  summary: "Write the data of an overlay into its backing file",
  operands: "FILE",
  options: [
    HELP,
    QUIET,
    PROGRESS,
    OBJECT,
    IMAGE_OPTS,
    FORMAT,
    CACHE,
    {
      short: "b",
      long: "base",
      argument: "NAME",
      help: "the image of the chain to write to; implies -d",
    },
    { short: "d", long: "drop", help: "do not empty FILE afterwards" },
    {
      short: "r",
      long: "rate-limit",
      argument: "RATE",
      help: "most bytes written per second",
    },
  ],
  notes: "NAME is relative to the folder of the image that names it. Images\n" +
    "between FILE and NAME are invalid afterwards.",

  async run(invocation) {
    const { program } = invocation;
    const settings = parse(invocation);
    const [file] = invocation.operands;
    const stack = await open(program, file, invocation.image, settings);
    const progress = await Progress.begin(program, invocation.showsProgress, 1);
    try {
      await usingNodes([stack.overlay], async () => {
        if (stack.problem) throw stack.problem;
        await commitTo(
          program,
          baseOf(stack, file, settings),
          stack,
          settings,
          {
            file,
            progress,
          },
        );
      });
    } finally {
      progress.end();
    }
    if (!invocation.quiet) program.print("Image committed.\n");
    return 0;
  },
};

function parse(invocation: Invocation): Settings {
  const settings = new Settings();
  let cache = "writeback";
  for (const [option, argument] of invocation.options()) {
    if (option === "t") cache = argument;
    else if (option === "b") settings.base = argument;
    else if (option === "d") settings.drop = true;
    else if (option === "r") settings.rateLimit = parseRate(argument);
  }
  invocation.expectOneImage();
  return { ...settings, cache: cacheMode(cache, "cache option") };
}

function parseRate(text: string): number {
  return sizeArgument("rate limit", text);
}

/** An overlay whose base is writable. */
interface Stack {
  readonly overlay: BlockNode;
  /** Depth of the base below the overlay; 0 without one. */
  readonly depth: number;
  /** Why the base is not writable, if it is not. */
  readonly problem?: BlockError;
}

/** Errors of opening for writing that reading may not have. */
const NOT_PERMITTED: readonly string[] = ["EACCES", "EPERM", "EROFS", "EAGAIN"];

const IN_BACKING = "Could not open backing file: ";

async function open(
  program: Program,
  file: string,
  given: ImageSettings,
  settings: Settings,
): Promise<Stack> {
  const search = new BaseSearch(settings.base);
  const image = {
    ...given,
    cache: settings.cache,
    writable: true,
  };
  try {
    const overlay = await openImageArgument(program, file, {
      ...image,
      writableBacking: (request) => search.isBase(request),
    });
    return { overlay, depth: search.depth };
  } catch (error) {
    const { depth } = search;
    const isRefused = error instanceof BlockError && depth > 0 &&
      NOT_PERMITTED.includes(error.code);
    if (!isRefused) throw error;
    // If everything can be opened for reading, the base is to blame.
    const overlay = await openImageArgument(program, file, image);
    const reason = error.message.split(IN_BACKING).at(-1);
    const problem = new BlockError(error.code, reason, { hint: error.hint });
    return { overlay, depth, problem };
  }
}

/**
 * Finds the base among the backing files, which are opened from top to bottom.
 */
class BaseSearch {
  /** Its depth; 0 until it is found. */
  depth = 0;
  readonly #name?: string;
  #seen = 0;

  /** Without a name, the base is the first backing file. */
  constructor(name?: string) {
    this.#name = name;
  }

  isBase(request: ImplicitOpen): boolean {
    this.#seen++;
    if (this.depth > 0 || !this.#fits(request)) return false;
    this.depth = this.#seen;
    return true;
  }

  #fits({ filename, namedBy }: ImplicitOpen): boolean {
    const name = this.#name;
    if (name === undefined) return true;
    // Names that are not paths are compared literally.
    if (schemeOf(name) !== undefined || schemeOf(filename) !== undefined) {
      return name === filename;
    }
    const path = resolveName(namedBy, name);
    return canonicalName(path) === canonicalName(filename);
  }
}

function baseOf(
  { overlay, depth }: Stack,
  file: string,
  settings: Settings,
): BlockNode {
  let base = depth > 0 ? overlay : undefined;
  for (let i = 0; base && i < depth; i++) base = backingOf(base);
  if (base) return base;
  throw new CommandError(
    settings.base === undefined
      ? "Image does not have a backing file"
      : `Did not find '${settings.base}' in the backing chain of '${file}'`,
  );
}

async function commitTo(
  program: Program,
  base: BlockNode,
  { overlay }: Stack,
  settings: Settings,
  { file, progress }: { file: string; progress: Progress },
): Promise<void> {
  using interruption = new Interruption();
  try {
    await interruption.run(
      (signal) =>
        commit(overlay, {
          base,
          keepOverlay: settings.drop || settings.base !== undefined,
          rateLimit: settings.rateLimit,
          signal,
          progress: (done, total) => progress.update(done, total),
        }),
      `'${file}' holds what it held, and '${base.filename}' a part of that; ` +
        "commit it again",
    );
  } catch (error) {
    if (!(error instanceof CommitError) || program.isOurs) throw error;
    throw new CommandError(
      error.stage === "copy"
        ? `Block job failed: ${strerror(error.code)}`
        : error.message,
      { cause: error },
    );
  }
  progress.complete();
}
