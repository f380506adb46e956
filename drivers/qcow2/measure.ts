/**
 * Measuring how large the file of a new image would become.
 *
 * @module
 */
import { roundUp } from "../../core/bytes.ts";
import type { MeasureContext, Measurement } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import { chainStatus } from "../../core/extents.ts";
import type { BitmapInfo, BlockNode } from "../../core/node.ts";
import { notAmong, type OptionValues } from "../../core/options.ts";
import { shortened, valueText } from "../../core/values.ts";
import { bitmapClusters, bitmapEntryLength } from "./bitmaps/directory.ts";
import {
  clusterBitsOf,
  estimateFileSize,
  refcountOrderOf,
  tooSmallForSubclusters,
} from "./create.ts";
import { ENTRY_SIZE, Incompatible, MAX_L1_BYTES } from "./format.ts";
import { Geometry } from "./geometry.ts";

/** The new image according to the options. */
interface Plan {
  version: 2 | 3;
  geometry: Geometry;
  /** Whether space for all data is reserved at once. */
  reserves: boolean;
  hasBacking: boolean;
}

/** Measure a new image as QEMU does, with all tables at full size. */
export async function measure(
  options: OptionValues,
  source?: BlockNode,
  context?: MeasureContext,
): Promise<Measurement> {
  const plan = planOf(options);
  const { geometry } = plan;
  const { clusterSize, l2 } = geometry;
  const wanted = roundUp(options.size as number ?? 0, clusterSize);
  const l2Tables = geometry.clustersFor(wanted / clusterSize * l2.entrySize);
  if (l2Tables * ENTRY_SIZE > MAX_L1_BYTES) {
    throw new BlockError(
      "EFBIG",
      "The image size is too large (try using a larger cluster size)",
    );
  }
  const size = source ? roundUp(source.size, clusterSize) : wanted;
  const header = await encryptionHeaderBytes(options, context);
  const fullyAllocated = estimateFileSize(size, geometry) +
    geometry.clusterEnd(header);
  const data = plan.reserves
    ? size
    : source
    ? await dataOf(source, plan, size, context)
    : 0;
  const info = await source?.info?.();
  const bitmaps = plan.version >= 3 && info?.bitmapsFault === undefined
    ? info?.bitmaps
    : undefined;
  return {
    required: fullyAllocated - size + data,
    fullyAllocated,
    ...(source && bitmaps && {
      bitmaps: bitmapBytes(bitmaps, source.size, clusterSize),
    }),
  };
}

function planOf(options: OptionValues): Plan {
  const clusterBits = clusterBitsOf(options);
  const isExtended = options.extended_l2 === true;
  if (isExtended && clusterBits < 14) {
    throw tooSmallForSubclusters();
  }
  const version = versionOf(options.compat as string | undefined);
  const refcountOrder = refcountOrderOf(options, version, "compat=1.1");
  const { preallocation = "off" } = options;
  const modes = ["off", "metadata", "falloc", "full"];
  if (!modes.includes(String(preallocation))) {
    throw notAmong(
      `invalid parameter value: ${shortened(String(preallocation), 80)}`,
      modes,
    );
  }
  return {
    version,
    geometry: new Geometry(
      clusterBits,
      refcountOrder,
      isExtended ? Incompatible.EXTENDED_L2 : 0,
    ),
    reserves: preallocation === "falloc" || preallocation === "full",
    hasBacking: options.backing_file !== undefined,
  };
}

/** Bytes that a LUKS header takes, if the options ask for one. */
async function encryptionHeaderBytes(
  options: OptionValues,
  context?: MeasureContext,
): Promise<number> {
  if (options["encrypt.format"] !== "luks") return 0;
  const { measureLuks } = await import("./luks.ts");
  return await measureLuks(options, context);
}

/** QEMU's `measure` knows only the older names of versions. */
function versionOf(compat: string | undefined): 2 | 3 {
  if (compat === "0.10") return 2;
  if (compat === undefined || compat === "1.1") return 3;
  throw new BlockError(
    "EINVAL",
    `Invalid compatibility level: ${valueText(compat)}`,
  );
}

/** Bytes of the clusters needed for the content of the source. */
async function dataOf(
  source: BlockNode,
  { hasBacking, geometry }: Plan,
  size: number,
  context?: MeasureContext,
): Promise<number> {
  const status = context?.status ?? chainStatus.bind(undefined, source);
  // How much of it equals the backing file is not known.
  if (hasBacking) return size;
  let data = 0;
  for (let offset = 0; offset < source.size;) {
    const extent = await status(offset, source.size - offset);
    let end = offset + extent.length;
    if (!extent.zero) {
      end = geometry.clusterEnd(end);
      data += end - geometry.clusterStart(offset);
    }
    offset = end;
  }
  return data;
}

/** Bytes of bitmaps if every bit of them is stored. */
function bitmapBytes(
  bitmaps: readonly BitmapInfo[],
  diskSize: number,
  clusterSize: number,
): number {
  let bytes = 0;
  let directory = 0;
  for (const { name, granularity } of bitmaps) {
    const clusters = bitmapClusters(diskSize, granularity, clusterSize);
    bytes += clusters * clusterSize;
    bytes += roundUp(clusters * ENTRY_SIZE, clusterSize);
    directory += bitmapEntryLength(new TextEncoder().encode(name).length);
  }
  return bytes + roundUp(directory, clusterSize);
}
