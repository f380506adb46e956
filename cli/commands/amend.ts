/** `amend`: change options of an image in place. @module */
import "../../drivers/writing.ts";
import { asBlockError, BlockError, strerror } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";
import { loadFormat, loadTables } from "../../core/registry.ts";
import type { DriverTraits } from "../../core/traits.ts";
import {
  CACHE,
  type Command,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
  PROGRESS,
  QUIET,
} from "../command.ts";
import { OptionList } from "../create_options.ts";
import { cacheMode, openImageArgument, usingNodes } from "../images.ts";
import { optionHelp } from "../option_help.ts";
import { Progress } from "../progress.ts";
import { CommandError, type Program } from "../program.ts";

class Settings {
  cache = "writeback";
  force = false;
  readonly options = new OptionList();
}

/** The command. */
export const command: Command = {
  summary: "Change options of an image",
  operands: "FILE",
  options: [
    HELP,
    QUIET,
    PROGRESS,
    OBJECT,
    IMAGE_OPTS,
    FORMAT,
    {
      short: "o",
      long: "options",
      argument: "NAME=VALUE,…",
      help: "options to change; -o help lists them",
    },
    CACHE,
    {
      long: "force",
      help: "overwrite and erase passphrases even if data is lost by it",
    },
  ],

  async run(invocation) {
    const { program } = invocation;
    const settings = parse(invocation);
    const { image: { format }, showsProgress: isShown } = invocation;
    const { options } = settings;
    const progress = await Progress.begin(program, isShown, 1, {
      showsStart: false,
      unit: "steps",
    });
    try {
      if (format !== undefined && options.asksForHelp) {
        program.print(amendHelp(program, await loadFormat(format)));
        return 0;
      }
      const [file, ...surplus] = invocation.operands;
      if (file === undefined || surplus.length > 0) {
        throw new CommandError("Expecting one image file name");
      }
      const node = await openImageArgument(program, file, {
        ...invocation.image,
        cache: cacheMode(settings.cache, "cache option"),
        writable: true,
      });
      return await usingNodes([node], async () => {
        const { driver } = node;
        await loadTables(driver);
        if (options.asksForHelp) {
          program.print(amendHelp(program, driver));
          return 0;
        }
        if (!node.image?.amend) throw notSupported(driver.name);
        const values = parseValues(options, driver);
        progress.showStart();
        await node.image.amend(values, {
          force: settings.force,
          progress: (done, total) => progress.update(done, total),
        }).catch((thrown) => {
          progress.fail();
          throw withCause(thrown);
        });
        await node.flush?.();
        progress.complete();
        return 0;
      });
    } finally {
      progress.end();
    }
  },
};

function parse(invocation: Invocation): Settings {
  const settings = new Settings();
  for (const [option, argument] of invocation.options()) {
    if (option === "o") settings.options.add(argument);
    else if (option === "force") settings.force = true;
    else if (option === "t") settings.cache = argument;
  }
  if (settings.options.isGiven) return settings;
  throw new CommandError("Must specify options (-o)", { usage: true });
}

/** Report the cause before its consequence. */
function withCause(thrown: unknown): unknown {
  const { code, message, cause, hint } = asBlockError(thrown);
  const isTold = !(cause instanceof BlockError) ||
    cause.message === strerror(cause.code);
  if (isTold) return thrown;
  return new BlockError(code, `${cause.message}\n${message}`, { cause, hint });
}

function notSupported(format: string): BlockError {
  return new BlockError(
    "ENOTSUP",
    `Format driver '${format}' does not support option amendment`,
  );
}

function amendHelp(
  program: Program,
  { name: format, amendOptions }: DriverTraits,
): string {
  if (!amendOptions) throw notSupported(format);
  return `Amend options for '${format}':\n${optionHelp(program, amendOptions)}`;
}

/** Distinguish options of new images from unknown ones. */
function parseValues(
  options: OptionList,
  { amendOptions = {}, createOptions = {} }: DriverTraits,
): OptionValues {
  try {
    return options.parse(amendOptions);
  } catch (thrown) {
    try {
      options.parse({ ...createOptions, ...amendOptions });
    } catch {
      throw thrown;
    }
    const { code, message } = asBlockError(thrown);
    throw new BlockError(code, message, {
      cause: thrown,
      hint: "This option is only supported for image creation",
    });
  }
}
