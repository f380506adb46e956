/** `measure`: compute how large the file of a new image would become. @module */
import type { Measurement } from "../../core/driver.ts";
import { asBlockError } from "../../core/errors.ts";
import { measure } from "../../core/jobs/measure.ts";
import {
  newImageOptions,
  type OptionTable,
  type OptionValues,
} from "../../core/options.ts";
import { findDriver } from "../../core/registry.ts";
import {
  type Command,
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
  OPTIONS,
  OUTPUT,
  outputFormat,
} from "../command.ts";
import { createTable, OptionList } from "../create_options.ts";
import { openImageArgument, usingNodes } from "../images.ts";
import { prettyJson } from "../json.ts";
import { integerText, sizeArgument } from "../numbers.ts";
import { CommandError, type Program } from "../program.ts";
import { showSnapshot, snapshotArgument } from "../snapshots.ts";

class Settings {
  outputFormat = "raw";
  snapshot?: string;
  size?: number;
  output: "human" | "json" = "human";
  readonly options = new OptionList();
}

/** The command. */
export const command: Command = {
  summary: "Compute how large the file of a new image would become",
  operands: "[--size SIZE | FILE]",
  options: [
    HELP,
    OBJECT,
    IMAGE_OPTS,
    { long: "source-image-opts", help: "the same as --image-opts" },
    FORCE_SHARE,
    OUTPUT,
    FORMAT,
    {
      short: "O",
      long: "target-format",
      argument: "FMT",
      help: "format of the new image; default: raw",
    },
    { ...OPTIONS, help: "options of that format" },
    {
      short: "l",
      long: "snapshot",
      argument: "SNAPSHOT",
      help: "measure a snapshot: its id, its name, or snapshot.name=NAME",
    },
    {
      short: "s",
      long: "size",
      argument: "SIZE",
      help: "size of an empty disk, instead of FILE",
    },
  ],
  helpsOnMistake: true,

  async run(invocation) {
    const { program } = invocation;
    const settings = parse(invocation);
    const [file] = invocation.operands;
    if (file === undefined) {
      showMeasurement(program, settings, await measureFor(program, settings));
      return 0;
    }
    const node = await openImageArgument(program, file, invocation.image);
    return await usingNodes([node], async () => {
      if (settings.snapshot !== undefined) {
        await showSnapshot(node, settings.snapshot);
      }
      const measured = await measureFor(program, settings, node);
      showMeasurement(program, settings, measured);
      return 0;
    });
  },
};

function parse(invocation: Invocation): Settings {
  const settings = new Settings();
  for (const [option, argument] of invocation.options()) {
    if (option === "O") settings.outputFormat = argument;
    else if (option === "o") settings.options.add(argument);
    else if (option === "l") {
      settings.snapshot = snapshotArgument(invocation.program, argument);
    } else if (option === "s") {
      settings.size = sizeArgument("image size", argument);
    } else if (option === "source-image-opts") {
      invocation.image.imageOpts = true;
    } else if (option === "output") settings.output = outputFormat(argument);
  }
  const { operands, image } = invocation;
  if (operands.length > 1) {
    throw new CommandError("At most one filename argument is allowed.");
  }
  if (operands.length === 1) {
    if (settings.size === undefined) return settings;
    throw new CommandError("--size N cannot be used together with a filename.");
  }
  if (image.imageOpts || (image.format ?? settings.snapshot) !== undefined) {
    throw new CommandError(
      "--image-opts, -f, and -l require a filename argument.",
    );
  }
  if (settings.size === undefined) {
    throw new CommandError(
      "Either --size N or one filename must be specified.",
    );
  }
  return settings;
}

async function measureFor(
  program: Program,
  { outputFormat: format, options, size }: Settings,
  source?: Parameters<typeof measure>[2],
): Promise<Measurement> {
  const { driver } = await createTable(format);
  const table = newImageOptions(driver, findDriver("file"));
  const values = parseValues(program, options, table, format);
  if (size !== undefined) values.size = size;
  const { secrets } = program;
  return await measure(format, values, source, { secrets });
}

function parseValues(
  program: Program,
  options: OptionList,
  table: OptionTable,
  format: string,
): OptionValues {
  try {
    return options.parse(table);
  } catch (thrown) {
    const error = asBlockError(thrown);
    program.error(program.messageOf(error), error.hint);
    throw new CommandError(`Invalid options for file format '${format}'`);
  }
}

function showMeasurement(
  program: Program,
  { output }: Settings,
  { required, fullyAllocated, bitmaps }: Measurement,
): void {
  if (output === "json") {
    const object = { required, "fully-allocated": fullyAllocated, bitmaps };
    program.print(`${prettyJson(object)}\n`);
    return;
  }
  program.print(`required size: ${integerText(required)}\n`);
  program.print(`fully allocated size: ${integerText(fullyAllocated)}\n`);
  if (bitmaps !== undefined) {
    program.print(`bitmaps size: ${integerText(bitmaps)}\n`);
  }
}
