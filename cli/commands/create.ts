/** `create`: create an image. @module */
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { checkStoredName } from "../../core/checks.ts";
import { createImage } from "../../core/create.ts";
import { asBlockError, BlockError, strerror } from "../../core/errors.ts";
import { openNode } from "../../core/open.ts";
import type { OptionTable, OptionValues } from "../../core/options.ts";
import { UnsupportedFormatError } from "../../core/probe.ts";
import {
  BACKING_FORMAT,
  type Command,
  FORMAT,
  HELP,
  type Invocation,
  OBJECT,
  OPTIONS,
  QUIET,
} from "../command.ts";
import {
  addBackingOptions,
  backingName,
  createTable,
  OptionList,
} from "../create_options.ts";
import { creating } from "../images.ts";
import { sizeArgument } from "../numbers.ts";
import { describeOptions, printCreateHelp } from "../option_help.ts";
import { type Program, usageError } from "../program.ts";
import { inRelease } from "../qemu_releases.ts";
import { isSameFile, Target } from "../target.ts";

interface Settings {
  format: string;
  filename: string;
  options: OptionList;
  backingFile?: string;
  backingFormat?: string;
  openBacking: boolean;
  size?: number;
}

/** The command. */
export const command: Command = {
  summary: "Create an image",
  operands: "FILE [SIZE]",
  options: [
    HELP,
    QUIET,
    OBJECT,
    { ...FORMAT, help: "format of the image; default: raw" },
    {
      short: "b",
      long: "backing",
      argument: "FILE",
      help: "backing file of the image",
    },
    BACKING_FORMAT,
    {
      short: "u",
      long: "backing-unsafe",
      help: "do not open the backing file",
    },
    OPTIONS,
  ],
  notes: "Without SIZE the image is as large as its backing file.",

  async run(invocation) {
    const { program } = invocation;
    const settings = parse(invocation);
    if (settings.options.asksForHelp) {
      await printCreateHelp(program, settings.format, invocation.operands[0]);
      return 0;
    }
    const [filename, size, surplus] = invocation.operands;
    if (filename === undefined) throw usageError("Expecting image file name");
    if (size !== undefined) settings.size = sizeArgument("image size", size);
    if (surplus !== undefined) {
      throw usageError(`Unexpected argument: ${surplus}`);
    }
    settings.filename = filename;
    try {
      return await create(program, settings, invocation.quiet);
    } catch (error) {
      throw asBlockError(error).prefixed(`${filename}: `);
    }
  },
};

function parse(invocation: Invocation): Settings {
  const settings: Settings = {
    format: "raw",
    filename: "",
    options: new OptionList(),
    openBacking: true,
  };
  for (const [option, argument] of invocation.options()) {
    if (option === "b") settings.backingFile = argument;
    else if (option === "F") settings.backingFormat = argument;
    else if (option === "u") settings.openBacking = false;
    else if (option === "o") settings.options.add(argument);
  }
  settings.format = invocation.image.format ?? "raw";
  return settings;
}

async function create(
  program: Program,
  settings: Settings,
  quiet: boolean,
): Promise<number> {
  const { format, filename } = settings;
  const { table } = await createTable(format, filename);
  const values = createValues(settings, table);
  if (program.isOurs) spareBackingFile(settings, values);
  const detected = await openBackingFile(program, settings, values);
  if (values.backing_file !== undefined && values.backing_fmt === undefined) {
    program.error(`${filename}: Backing file specified without backing format`);
    const end = inRelease("detectedLine");
    if (detected) program.printError(`Detected format of ${detected}.${end}`);
    return 1;
  }
  // A detached header belongs to an existing disk, and a clone to a snapshot.
  const isOfDisk = values["detached-header"] || values.clone_from;
  if (values.size === undefined && !isOfDisk) {
    throw new BlockError("EINVAL", "Image creation needs a size parameter");
  }
  const tell = () => {
    if (quiet) return;
    const given = program.isOurs ? undefined : settings.options;
    const options = describeOptions(table, values, given);
    program.print(`Formatting '${filename}', fmt=${format} ${options}\n`);
    program.output.flush();
  };
  // QEMU prints this beforehand, even if creating fails.
  if (!program.isOurs) tell();
  try {
    await makeWhole(
      program,
      filename,
      (onPart) =>
        createImage(format, filename, values, { ...creating(program), onPart }),
    );
  } catch (error) {
    const why = asBlockError(error);
    // QEMU blames the format for limits of the system, VMDK excepted.
    const isTold = program.isOurs || format === "vmdk";
    throw isTold && isOfSystem(why, format, values)
      ? why
      : explainTooLarge(why, format, table, values);
  }
  if (program.isOurs) tell();
  return 0;
}

/** Remove the file if creating the image fails. */
async function makeWhole(
  program: Program,
  filename: string,
  make: (onPart: (name: string) => void) => Promise<void>,
): Promise<void> {
  using target = new Target(program, filename);
  await target.make(() => make((name) => target.addPart(name)));
  target.complete();
}

/**
 * QEMU recognises the backing file only by its name as given, and empties
 * others.
 */
function spareBackingFile(settings: Settings, values: OptionValues): void {
  const { backing_file: backing, data_file: dataFile } = values;
  if (backing === undefined) return;
  const file = backingName(settings.filename, String(backing));
  const made = dataFile === undefined ? [] : [String(dataFile)];
  for (const name of [settings.filename, ...made]) {
    if (!isSameFile(file, name)) continue;
    throw new BlockError("EINVAL", "It would overwrite its own backing file");
  }
}

/** The options of the image, collected from the command line. */
function createValues(settings: Settings, table: OptionTable): OptionValues {
  const values = settings.options.parse(table);
  if (values.size === undefined) {
    if (settings.size !== undefined) values.size = settings.size;
  } else if (settings.size !== undefined) {
    throw new BlockError(
      "EINVAL",
      "The image size must be specified only once",
    );
  }
  addBackingOptions(values, table, settings);
  checkStoredName(values.backing_file);
  const { backing_file: backing } = values;
  if (backing === settings.filename) {
    throw new BlockError(
      "EINVAL",
      "Error: Trying to create an image with the same filename as the " +
        "backing file",
    );
  }
  if (backing === "") {
    throw new BlockError(
      "EINVAL",
      "Expected backing file name, got empty string",
    );
  }
  return values;
}

/**
 * Check that the backing file can be opened, and take the size from it if none
 * was given.
 *
 * @returns its format, if it was probed.
 */
async function openBackingFile(
  { maxChain, secrets }: Program,
  settings: Settings,
  values: OptionValues,
): Promise<string | undefined> {
  const { backing_file: backing, backing_fmt: format } = values;
  if (backing === undefined || !settings.openBacking) return undefined;
  try {
    const node = await openNode(
      backingName(settings.filename, String(backing)),
      {
        ...(format !== undefined && { format: String(format) }),
        readOnly: true,
        forceShare: true,
        gate: "allow",
        maxChain,
        secrets,
        // Only the size is read.
        withoutKeys: true,
      },
    );
    values.size ??= roundUp(node.size, SECTOR_SIZE);
    const detected = node.driver.name;
    await node.close();
    return detected;
  } catch (thrown) {
    if (thrown instanceof UnsupportedFormatError && format === undefined) {
      return thrown.format;
    }
    const error = asBlockError(thrown);
    const hints = [error.hint, "Could not open backing image."];
    throw new BlockError(error.code, error.message, {
      cause: error,
      hint: hints.filter((hint) => hint !== undefined).join("\n"),
    });
  }
}

/** Whether the system, not the format, limits the size of the file. */
function isOfSystem(
  { code, message }: BlockError,
  format: string,
  { preallocation = "off" }: OptionValues,
): boolean {
  return message.endsWith(strerror(code)) &&
    (format === "raw" || format === "vmdk" || preallocation !== "off");
}

/** Replace a driver's message about too large a size by a more helpful one. */
function explainTooLarge(
  error: BlockError,
  format: string,
  table: OptionTable,
  values: OptionValues,
): BlockError {
  if (error.code !== "EFBIG") return error;
  const clusterSize = values.cluster_size ?? table.cluster_size?.default;
  return new BlockError(
    "EFBIG",
    `The image size is too large for file format '${format}'` +
      (clusterSize ? " (try using a larger cluster size)" : ""),
    { cause: error },
  );
}
