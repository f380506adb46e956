/** `dd`: copy part of an image, block by block. @module */
import "../../drivers/creating.ts";
import { createImage } from "../../core/create.ts";
import { allocate, roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { asBlockError, reasonOf } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { findDriver } from "../../core/registry.ts";
import {
  type Command,
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
} from "../command.ts";
import { createTable } from "../create_options.ts";
import { creating, openImageArgument, usingNodes } from "../images.ts";
import { INT32_MAX, sizeArgument } from "../numbers.ts";
import { CommandError, type Program } from "../program.ts";
import { Target } from "../target.ts";

class Settings {
  outputFormat = "raw";
  input?: string;
  output?: string;
  blockSize = 512;
  /** Blocks from the start of the input, including those skipped. */
  count = Infinity;
  skip = 0;
}

/** The command. */
export const command: Command = {
  summary: "Copy part of an image, block by block",
  operands: "if=FILE of=TARGET [bs=SIZE] [count=N] [skip=N]",
  options: [
    HELP,
    OBJECT,
    IMAGE_OPTS,
    FORCE_SHARE,
    FORMAT,
    {
      short: "O",
      long: "output-format",
      argument: "FMT",
      help: "format of TARGET; default: raw",
    },
  ],
  notes:
    "bs is the size of a block, by default 512 bytes; skip is the number of\n" +
    "blocks to leave out, count where to stop. TARGET is newly created.",

  async run(invocation) {
    const { program } = invocation;
    const { input, output, ...settings } = parse(invocation);
    if (input === undefined || output === undefined) {
      throw new CommandError("Must specify both input and output files");
    }
    const source = await openImageArgument(program, input, invocation.image);
    return await usingNodes([source], async () => {
      if (!findDriver(settings.outputFormat)) {
        throw new CommandError("Unknown file format");
      }
      await createTable(settings.outputFormat, output);
      const size = roundUp(source.size, SECTOR_SIZE);
      const end = Math.min(size, settings.count * settings.blockSize);
      const start = settings.skip * settings.blockSize;
      using target = new Target(program, output, [source]);
      const length = Math.max(0, end - start);
      const node = await makeTarget(program, target, output, settings, length);
      await usingNodes([node], async () => {
        if (start > end) {
          program.error(`${input}: cannot skip to specified offset`);
        }
        await copy(source, node, { start, end, blockSize: settings.blockSize });
      });
      target.complete();
      return 0;
    });
  },
};

function parse(invocation: Invocation): Settings {
  const settings = new Settings();
  for (const [option, argument] of invocation.options()) {
    if (option === "O") settings.outputFormat = argument;
  }
  for (const operand of invocation.operands) {
    const equals = operand.indexOf("=");
    const name = equals < 0 ? operand : operand.slice(0, equals);
    const value = operand.slice(equals + 1);
    if (equals < 0) throw unrecognized(name);
    if (name === "if") settings.input = value;
    else if (name === "of") settings.output = value;
    else if (name === "bs") {
      settings.blockSize = sizeArgument("bs", value, 1, INT32_MAX);
    } else if (name === "count") settings.count = sizeArgument("count", value);
    else if (name === "skip") settings.skip = sizeArgument("skip", value);
    else throw unrecognized(name);
  }
  return settings;
}

function unrecognized(name: string): CommandError {
  return new CommandError(`unrecognized operand ${name}`);
}

async function makeTarget(
  program: Program,
  target: Target,
  filename: string,
  { outputFormat: format }: Pick<Settings, "outputFormat">,
  size: number,
): Promise<BlockNode> {
  try {
    const how = creating(program);
    await target.make(() => createImage(format, filename, { size }, how));
  } catch (error) {
    throw asBlockError(error).prefixed(
      `${filename}: error while creating output image: `,
    );
  }
  return await openImageArgument(program, filename, {
    format,
    writable: true,
  });
}

async function copy(
  source: BlockNode,
  target: BlockNode,
  part: { start: number; end: number; blockSize: number },
): Promise<void> {
  const { start, end, blockSize } = part;
  const block = allocate(Math.min(blockSize, Math.max(0, end - start)));
  for (let at = start; at < end; at += blockSize) {
    const bytes = block.subarray(0, Math.min(blockSize, end - at));
    await orFail("reading from input", source.readv(at, [bytes]));
    await orFail("writing to output", target.writev!(at - start, [bytes]));
  }
}

async function orFail(what: string, request: Promise<void>): Promise<void> {
  try {
    await request;
  } catch (error) {
    const reason = reasonOf(error);
    throw new CommandError(`error while ${what} image file: ${reason}`);
  }
}
