/** `convert`: copy images into a new one. @module */
import { createImage } from "../../core/create.ts";
import type { BlockNode } from "../../core/driver.ts";
import { asBlockError } from "../../core/errors.ts";
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { convert } from "../../core/jobs/convert.ts";
import { nestOptions, type OptionValues } from "../../core/options.ts";
import type { SecretSource } from "../../core/secrets.ts";
import {
  type Command,
  FORCE_SHARE,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
  PROGRESS,
  QUIET,
  SOURCE_CACHE,
} from "../command.ts";
import { createTable, OptionList, printCreateHelp } from "../create_options.ts";
import { cacheMode, openImageArgument, usingNodes } from "../images.ts";
import { sizeArgument } from "../numbers.ts";
import { Progress } from "../progress.ts";
import { CommandError, type Program } from "../program.ts";
import { showSnapshot } from "../snapshots.ts";
import { Target } from "../target.ts";
import { addBackingOptions } from "./create.ts";

const MAX_SPARSE_SIZE = 16 * 1024 * 1024;

class Wish {
  format?: string;
  snapshot?: string;
  outputFormat?: string;
  backingFile?: string;
  backingFormat?: string;
  readonly options = new OptionList();
  sourceCache = "writeback";
  targetCache = "unsafe";
  imageOpts = false;
  targetImageOpts = false;
  targetIsZero = false;
  skipCreate = false;
  compressed = false;
  outOfOrder = false;
  progress = false;
  quiet = false;
  sparseSize = 4096;
  parallel = 8;
}

/** The command. */
export const command: Command = {
  summary: "Copy images, one after the other, into a new one",
  operands: "FILE… TARGET",
  options: [
    HELP,
    QUIET,
    PROGRESS,
    OBJECT,
    IMAGE_OPTS,
    FORCE_SHARE,
    { short: "f", argument: "FMT", help: "format of the images to read" },
    { short: "O", argument: "FMT", help: "format of TARGET; default: raw" },
    {
      short: "o",
      argument: "NAME=VALUE,…",
      help: "options of that format; -o help lists them",
    },
    { short: "c", help: "store clusters compressed" },
    {
      short: "l",
      argument: "SNAPSHOT",
      help: "copy a snapshot: its id, its name, or snapshot.name=NAME",
    },
    {
      short: "B",
      argument: "FILE",
      help: "backing file of TARGET; copy only what differs from it",
    },
    { short: "F", argument: "FMT", help: "format of that backing file" },
    { short: "n", help: "do not create TARGET: it is there" },
    {
      long: "target-image-opts",
      help: "TARGET is a description, as with --image-opts",
    },
    { long: "target-is-zero", help: "TARGET is known to be all zero" },
    {
      short: "S",
      argument: "SIZE",
      help: "shortest run of zeroes to leave out; 0 writes all",
    },
    { short: "m", argument: "N", help: "requests in flight, 1 to 16" },
    { short: "W", help: "writes may be made out of order" },
    {
      short: "t",
      argument: "CACHE",
      help: "how to cache what is written; default: unsafe",
    },
    SOURCE_CACHE,
  ],

  async run(invocation) {
    const { program } = invocation;
    const wish = parse(invocation);
    const sources = invocation.operands.slice(0, -1);
    const target = sources.length > 0 ? invocation.operands.at(-1) : undefined;
    if (wish.options.asksForHelp) {
      if (wish.targetImageOpts && wish.outputFormat === undefined) {
        throw new CommandError("Option help requires a format be specified");
      }
      printCreateHelp(program, wish.outputFormat ?? "raw", target);
      return 0;
    }
    if (target === undefined) {
      throw new CommandError("Must specify image file name");
    }
    const sourceCache = cacheMode(wish.sourceCache, "source cache option");
    const progress = new Progress(program, wish.progress && !wish.quiet, 1);
    const nodes: BlockNode[] = [];
    try {
      return await usingNodes(nodes, async () => {
        for (const source of sources) {
          const { format, imageOpts } = wish;
          nodes.push(
            await openImageArgument(program, source, {
              format,
              imageOpts,
              cache: sourceCache,
            }),
          );
        }
        if (wish.snapshot !== undefined) {
          if (nodes.length > 1) {
            throw new CommandError(
              "No support for concatenating multiple snapshot",
            );
          }
          await showSnapshot(nodes[0], wish.snapshot);
        }
        await convertInto(program, wish, nodes, target, progress);
        progress.complete();
        return 0;
      });
    } finally {
      progress.end();
    }
  },
};

function parse(invocation: Invocation): Wish {
  const wish = new Wish();
  for (const [option, argument] of invocation.options()) {
    if (option === "f") wish.format = argument;
    else if (option === "O") wish.outputFormat = argument;
    else if (option === "o") wish.options.add(argument);
    else if (option === "B") wish.backingFile = argument;
    else if (option === "F") wish.backingFormat = argument;
    else if (option === "l") wish.snapshot = argument;
    else if (option === "c") wish.compressed = true;
    else if (option === "n") wish.skipCreate = true;
    else if (option === "p") wish.progress = true;
    else if (option === "q") wish.quiet = true;
    else if (option === "W") wish.outOfOrder = true;
    else if (option === "t") wish.targetCache = argument;
    else if (option === "T") wish.sourceCache = argument;
    else if (option === "S") wish.sparseSize = parseSparseSize(argument);
    else if (option === "m") wish.parallel = parseParallel(argument);
    else if (option === "image-opts") wish.imageOpts = true;
    else if (option === "target-image-opts") wish.targetImageOpts = true;
    else if (option === "target-is-zero") wish.targetIsZero = true;
  }
  checkCombination(wish);
  return wish;
}

function checkCombination(wish: Wish): void {
  if (wish.targetImageOpts && !wish.skipCreate) {
    throw new CommandError("--target-image-opts requires use of -n flag");
  }
  if (wish.skipCreate && wish.options.isGiven) {
    throw new CommandError("-o has no effect when skipping image creation");
  }
  if (wish.targetIsZero && !wish.skipCreate) {
    throw new CommandError("--target-is-zero requires use of -n flag");
  }
}

function parseSparseSize(text: string): number {
  const size = sizeArgument("buffer size for sparse output", text);
  if (size % SECTOR_SIZE !== 0 || size > MAX_SPARSE_SIZE) {
    throw new CommandError(
      "Invalid buffer size for sparse output specified. Valid sizes are " +
        `multiples of ${SECTOR_SIZE} up to ${MAX_SPARSE_SIZE}. Select 0 to ` +
        "disable sparse detection (fully allocates output).",
    );
  }
  return size;
}

function parseParallel(text: string): number {
  const count = /^\s*\+?\d+$/.test(text) ? Number(text) : 0;
  if (count < 1 || count > 16) {
    throw new CommandError(
      "Invalid number of coroutines. Allowed number of coroutines is " +
        "between 1 and 16",
    );
  }
  return count;
}

/** Make the target, unless it is there, and copy the sources into it. */
async function convertInto(
  program: Program,
  wish: Wish,
  sources: readonly BlockNode[],
  filename: string,
  progress: Progress,
): Promise<void> {
  const size = sources.reduce(
    (sum, { size }) => sum + roundUp(size, SECTOR_SIZE),
    0,
  );
  const created = wish.skipCreate
    ? undefined
    : createValues(wish, filename, size);
  const backing = created?.backing_file ?? wish.backingFile;
  checkBacking(wish, backing !== undefined, sources.length);
  const cache = cacheMode(wish.targetCache, "cache option");
  using target = new Target(program, filename);
  const { secrets } = program;
  if (created) await makeTarget(target, wish, filename, created, secrets);
  else target.use();
  const node = await openImageArgument(program, filename, {
    format: wish.targetImageOpts
      ? wish.outputFormat
      : wish.outputFormat ?? "raw",
    imageOpts: wish.targetImageOpts,
    writable: true,
    cache,
    options: created && keyOptions(created),
  });
  const isThrough = cache === "writethrough" || cache === "directsync";
  await usingNodes([node], async () => {
    await convert(sources, node, {
      parallel: wish.parallel,
      sparseSize: wish.sparseSize,
      targetIsZero: wish.targetIsZero ||
        (created !== undefined && backing === undefined &&
          readsAsZero(target, node, created)),
      targetIsNew: created !== undefined,
      onlyDifferences: backing !== undefined,
      compressed: wish.compressed,
      outOfOrder: wish.outOfOrder,
      ...(isThrough && { flags: { fua: true } }),
      progress: (done, total) => progress.update(done, total),
    });
    await node.flush?.();
  });
  target.complete();
}

/** The options of the new image. */
function createValues(
  wish: Wish,
  filename: string,
  size: number,
): OptionValues {
  const { outputFormat: format = "raw" } = wish;
  const { table } = createTable(format, filename);
  const values = { ...wish.options.parse(table), size };
  addBackingOptions(values, table, { ...wish, format });
  return values;
}

/** What of a new image's options tells its keys: it takes them to open it. */
function keyOptions(created: OptionValues): OptionValues | undefined {
  const keys = Object.entries(created)
    .filter(([name]) => name.endsWith("key-secret"));
  return keys.length ? nestOptions(Object.fromEntries(keys)) : undefined;
}

function checkBacking(wish: Wish, hasBacking: boolean, sources: number): void {
  if (!hasBacking) return;
  if (wish.targetIsZero) {
    throw new CommandError(
      "Cannot use --target-is-zero when the destination image has a backing " +
        "file",
    );
  }
  if (sources > 1) {
    throw new CommandError(
      "Having a backing file for the target makes no sense when " +
        "concatenating multiple input images",
    );
  }
}

async function makeTarget(
  target: Target,
  wish: Wish,
  filename: string,
  values: OptionValues,
  secrets: SecretSource,
): Promise<void> {
  const { outputFormat: format = "raw", compressed } = wish;
  if (values.backing_file !== undefined && values.backing_fmt === undefined) {
    throw new CommandError(
      "Use of backing file requires explicit backing format",
    );
  }
  if (compressed && (values.encryption || values["encrypt.format"])) {
    throw new CommandError(
      "Compression and encryption not supported at the same time",
    );
  }
  if (compressed && (values.preallocation ?? "off") !== "off") {
    throw new CommandError(
      "Compression and preallocation not supported at the same time",
    );
  }
  try {
    await target.make(() => createImage(format, filename, values, { secrets }));
  } catch (thrown) {
    const error = asBlockError(thrown);
    throw error.prefixed(`${filename}: error while converting ${format}: `);
  }
}

/** Whether an image that was just made, without backing, is zero all over. */
function readsAsZero(
  target: Target,
  node: BlockNode,
  created: OptionValues,
): boolean {
  if (target.isPlainFile) return true;
  // On a device, only what the format has not allocated is sure to be zero.
  return node.driver.name !== "raw" &&
    (created.preallocation ?? "off") === "off";
}
