/**
 * Converting: copying disks into another one.
 *
 * @module
 */
import { SECTOR_SIZE } from "../bytes.ts";
import {
  AMOUNT,
  checkOptions,
  type OptionKind,
  writableNodeOf,
} from "../checks.ts";
import { asBlockError, BlockError, invalid } from "../errors.ts";
import { backingOf } from "../extents.ts";
import type { BlockNode, Disk } from "../node.ts";
import { Concatenation, sourceNodes } from "./concatenation.ts";
import { valueText } from "../values.ts";
import type { ConvertOptions } from "./convert_options.ts";
import { copy } from "./copy.ts";
import type { CopyTargetOptions } from "./copy_target.ts";
import { Job } from "./job.ts";
import type { ZeroRunOptions } from "./zero_runs.ts";

/**
 * Copy a disk, or several one after the other, into `target`, which must be
 * large enough.
 * Holes are not read, and zeroes are not written where the target reads as
 * zeroes already.
 *
 * @throws {BlockError} the error of the first failed request, prefixed with its
 * position; ENOTSUP if `target` cannot store compressed clusters.
 *
 * @example
 * ```ts
 * import { convert, createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 *
 * const from = { driver: "memory", store: new MemoryStore() };
 * const to = { driver: "memory", store: new MemoryStore() };
 * await createImage("raw", from, { size: 1 << 20 });
 * await createImage("qcow2", to, { size: 1 << 20 });
 * await using source = await openImage({ driver: "raw", file: from });
 * await using target = await openImage({ driver: "qcow2", file: to });
 * await convert(source, target, { targetIsZero: true });
 * ```
 *
 * @category Jobs
 */
export async function convert(
  sources: Disk | readonly Disk[],
  target: Disk,
  options: ConvertOptions = {},
): Promise<void> {
  const from = sourceNodes(sources);
  const to = writableNodeOf("Cannot convert", target);
  checkOptions("convert", options, CONVERT_OPTIONS);
  const { parallel = 8 } = options;
  if (!(parallel >= 1 && parallel <= 16 && Number.isInteger(parallel))) {
    throw invalid(`Cannot have ${valueText(parallel)} requests in flight`);
  }
  try {
    await convertNodes(from, to, options);
  } catch (error) {
    throw asBlockError(error);
  }
}

/** The kinds of the options of {@linkcode convert}. */
export const CONVERT_OPTIONS: { readonly [name: string]: OptionKind } = {
  sparseSize: { least: 0, unit: SECTOR_SIZE },
  targetIsZero: "boolean",
  targetIsNew: "boolean",
  onlyDifferences: "boolean",
  compressed: "boolean",
  compressionLevel: { least: 0, most: 22 },
  outOfOrder: "boolean",
  rateLimit: AMOUNT,
  salvage: "boolean",
  warn: "function",
  copyOffload: "boolean",
  flags: "object",
  signal: "object",
  progressBy: ["data", "disk"],
  progress: "function",
};

async function convertNodes(
  sources: readonly BlockNode[],
  target: BlockNode,
  options: ConvertOptions,
): Promise<void> {
  await using job = new Job(options.signal);
  const source = await Concatenation.of(sources, job);
  if (source.size > target.size) {
    throw new BlockError("EINVAL", "output file is smaller than input file");
  }
  const { onlyDifferences = false } = options;
  const targetBacking = onlyDifferences && options.targetIsNew
    ? backingOf(target)
    : undefined;
  const first = source.partAt(0)?.disk;
  await copy(job, source, job.use(target), {
    ...options,
    ...await copyTargetOptions(target, options),
    baseOf: onlyDifferences && first ? () => backingOf(first.node) : undefined,
    backingEnd: targetBacking?.size,
  });
}

/**
 * How to write to `target`, by the options of the conversion.
 *
 * @throws {BlockError} ENOTSUP if it cannot store compressed clusters.
 */
export async function copyTargetOptions(
  target: BlockNode,
  options: ConvertOptions,
): Promise<CopyTargetOptions> {
  const { sparseSize = 4096, targetIsZero, flags } = options;
  return {
    zeroes: sparseSize === 0 ? "fill" : zeroRuns(sparseSize, target),
    targetIsZero: targetIsZero && sparseSize > 0,
    flags,
    ...((options.compressed || await onlyCompressed(target)) && {
      compression: {
        clusterSize: await compressedClusterSize(target),
        level: options.compressionLevel,
      },
    }),
  };
}

/** Whether a target stores only compressed clusters. */
async function onlyCompressed(target: BlockNode): Promise<boolean> {
  if (!target.writeCompressed) return false;
  return (await target.info?.())?.compressed === true;
}

async function compressedClusterSize(target: BlockNode): Promise<number> {
  if (!target.writeCompressed) {
    throw new BlockError(
      "ENOTSUP",
      "Compression not supported for this file format",
    );
  }
  const { clusterSize = 0 } = await target.info?.() ?? {};
  if (clusterSize < SECTOR_SIZE) {
    throw new BlockError("EINVAL", "invalid cluster size");
  }
  return clusterSize;
}

/** Which zeroes within data are left out, for `sparseSize`. */
function zeroRuns(sparseSize: number, target: BlockNode): ZeroRunOptions {
  const { requestAlignment = 1 } = target.limits ?? {};
  const unit = 2 ** Math.floor(Math.log2(sparseSize));
  return {
    minimum: sparseSize,
    alignment: Math.max(unit, requestAlignment),
  };
}
