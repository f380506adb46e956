/**
 * The options of `convert`.
 *
 * @module
 */
import { SECTOR_SIZE } from "../core/bytes.ts";
import type { OptionValues } from "../core/options.ts";
import {
  FORCE_SHARE,
  HELP,
  IMAGE_OPTS,
  type ImageSettings,
  type Invocation,
  OBJECT,
  PROGRESS,
  QUIET,
  SOURCE_CACHE,
} from "./command.ts";
import { OptionList } from "./create_options.ts";
import type { OptionSpec } from "./getopt.ts";
import { valueText } from "../core/values.ts";
import { CommandError } from "./program.ts";

const loadNumbers = () => import("./numbers.ts");

const MAX_SPARSE_SIZE = 16 * 1024 * 1024;
const MAX_PARALLEL = 16;

/** The options of `convert`. */
export const CONVERT_OPTIONS: readonly OptionSpec[] = [
  HELP,
  QUIET,
  PROGRESS,
  OBJECT,
  IMAGE_OPTS,
  FORCE_SHARE,
  {
    short: "f",
    long: "source-format",
    argument: "FMT",
    help: "format of the images to read",
  },
  {
    short: "O",
    long: "target-format",
    argument: "FMT",
    help: "format of TARGET; default: raw",
  },
  {
    short: "o",
    long: "target-format-options",
    argument: "NAME=VALUE,…",
    help: "options of that format; -o help lists them",
  },
  { short: "c", long: "compress", help: "store clusters compressed" },
  {
    short: "l",
    long: "snapshot",
    argument: "SNAPSHOT",
    help: "copy a snapshot: its id, its name, or snapshot.name=NAME",
  },
  {
    short: "b",
    alias: "B",
    long: "backing",
    argument: "FILE",
    help: "backing file of TARGET; copy only what differs from it",
  },
  {
    short: "F",
    long: "backing-format",
    argument: "FMT",
    help: "format of that backing file",
  },
  { short: "n", long: "no-create", help: "write to an existing TARGET" },
  {
    long: "target-image-opts",
    help: "TARGET is a description, as with --image-opts",
  },
  { long: "target-is-zero", help: "TARGET is known to be all zero" },
  {
    short: "S",
    long: "sparse-size",
    argument: "SIZE",
    help: "shortest run of zeroes to leave out; 0 writes all",
  },
  {
    short: "m",
    long: "parallel",
    argument: "N",
    help: "requests in flight, 1 to 16",
  },
  { short: "W", long: "oob-writes", help: "permit writing out of order" },
  {
    short: "r",
    long: "rate-limit",
    argument: "SIZE",
    help: "most bytes written per second",
  },
  {
    short: "C",
    long: "copy-range-offloading",
    help: "let the system copy from file to file, where it can",
  },
  { long: "salvage", help: "replace unreadable sectors with zeroes" },
  { long: "bitmaps", help: "copy the source's bitmaps as well" },
  { long: "skip-broken-bitmaps", help: "leave out inconsistent bitmaps" },
  {
    short: "t",
    long: "target-cache",
    argument: "CACHE",
    help: "cache mode for writing; default: unsafe",
  },
  { ...SOURCE_CACHE, long: "source-cache" },
];

/** The parsed options of `convert`. */
export class ConvertSettings {
  /** How to open the source images. */
  image: ImageSettings = {};
  quiet = false;
  snapshot?: string;
  outputFormat?: string;
  backingFile?: string;
  backingFormat?: string;
  readonly options = new OptionList();
  sourceCache = "writeback";
  targetCache = "unsafe";
  targetImageOpts = false;
  targetIsZero = false;
  skipCreate = false;
  compressed = false;
  outOfOrder = false;
  copyOffload = false;
  salvage = false;
  bitmaps = false;
  skipBrokenBitmaps = false;
  /** In bytes; `undefined` if not given. */
  sparseSize?: number;
  parallel = 8;
  /** Bytes per second; 0 for no limit. */
  rateLimit = 0;

  /** The format of the target, if the target is not a description. */
  get targetFormat(): string {
    return this.outputFormat ?? "raw";
  }
}

/** Parse the options, and refuse contradictions. */
export async function parseConvert(
  invocation: Invocation,
): Promise<ConvertSettings> {
  const settings = new ConvertSettings();
  for (const [option, argument] of invocation.options()) {
    if (option === "O") settings.outputFormat = argument;
    else if (option === "o") settings.options.add(argument);
    else if (option === "b") settings.backingFile = argument;
    else if (option === "F") settings.backingFormat = argument;
    else if (option === "l") {
      const { snapshotArgument } = await import("./snapshots.ts");
      settings.snapshot = snapshotArgument(invocation.program, argument);
    } else if (option === "c") settings.compressed = true;
    else if (option === "n") settings.skipCreate = true;
    else if (option === "C") settings.copyOffload = true;
    else if (option === "W") settings.outOfOrder = true;
    else if (option === "t") settings.targetCache = argument;
    else if (option === "T") settings.sourceCache = argument;
    else if (option === "S") {
      settings.sparseSize = await parseSparseSize(argument);
    } else if (option === "m") {
      settings.parallel = await parseParallel(argument);
    } else if (option === "r") {
      const { sizeArgument } = await loadNumbers();
      settings.rateLimit = sizeArgument("rate limit", argument);
    } else if (option === "salvage") settings.salvage = true;
    else if (option === "bitmaps") settings.bitmaps = true;
    else if (option === "skip-broken-bitmaps") {
      settings.skipBrokenBitmaps = true;
    } else if (option === "target-image-opts") settings.targetImageOpts = true;
    else if (option === "target-is-zero") settings.targetIsZero = true;
  }
  settings.image = invocation.image;
  settings.quiet = invocation.quiet;
  const mistake = findMistake(settings);
  if (mistake !== undefined) throw new CommandError(mistake);
  return settings;
}

/** The first contradiction, in QEMU's order. */
function findMistake(settings: ConvertSettings): string | undefined {
  if (settings.skipBrokenBitmaps && !settings.bitmaps) {
    return "Use of --skip-broken-bitmaps requires --bitmaps";
  }
  if (settings.copyOffload) {
    const cannot = "Cannot enable copy offloading when";
    if (settings.compressed) return `${cannot} -c is used`;
    if (settings.sparseSize !== undefined) return `${cannot} -S is used`;
    if (settings.salvage) return "Cannot use copy offloading in salvaging mode";
  }
  if (settings.skipCreate) {
    if (settings.options.isGiven) {
      return "-o has no effect when skipping image creation";
    }
  } else if (settings.targetImageOpts) {
    return "--target-image-opts requires use of -n flag";
  } else if (settings.targetIsZero) {
    return "--target-is-zero requires use of -n flag";
  }
}

/** Refuse options that conflict with a backing file of the target. */
export function checkBacking(
  settings: ConvertSettings,
  hasBacking: boolean,
  sources: number,
): void {
  if (!hasBacking) return;
  if (settings.targetIsZero) {
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

/** Refuse options that conflict with those of a new image. */
export function checkCreation(
  settings: ConvertSettings,
  values: OptionValues,
): void {
  if (values.backing_file !== undefined && values.backing_fmt === undefined) {
    throw new CommandError(
      "Use of backing file requires explicit backing format",
    );
  }
  if (!settings.compressed) return;
  if (values.encryption || values["encrypt.format"]) {
    throw new CommandError(
      "Compression and encryption not supported at the same time",
    );
  }
  if ((values.preallocation ?? "off") !== "off") {
    throw new CommandError(
      "Compression and preallocation not supported at the same time",
    );
  }
}

async function parseSparseSize(text: string): Promise<number> {
  const { sizeArgument } = await loadNumbers();
  const size = sizeArgument("buffer size for sparse output", text);
  if (size % SECTOR_SIZE !== 0 || size > MAX_SPARSE_SIZE) {
    const detail = ` ${valueText(text)}`;
    throw new CommandError(
      `Invalid buffer size for sparse output${detail} specified. Valid sizes ` +
        `are multiples of ${SECTOR_SIZE} up to ${MAX_SPARSE_SIZE}. Select 0 ` +
        "to disable sparse detection (fully allocates output).",
      { detail },
    );
  }
  return size;
}

async function parseParallel(text: string): Promise<number> {
  const { cInteger, numberArgument, quotesNumbers } = await loadNumbers();
  if (quotesNumbers()) {
    return numberArgument("number of coroutines", text, 1, MAX_PARALLEL);
  }
  const count = cInteger(text) ?? 0;
  if (count < 1 || count > MAX_PARALLEL) {
    const detail = ` ${valueText(text)}`;
    throw new CommandError(
      `Invalid number of coroutines${detail}. Allowed number of coroutines ` +
        `is between 1 and ${MAX_PARALLEL}`,
      { detail },
    );
  }
  return count;
}
