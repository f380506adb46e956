/**
 * Creating VHDX images. The file has the headers, the log, the block allocation
 * table, the metadata, some spare space, and the blocks of a fixed image.
 *
 * @module
 */
import { isPowerOfTwo, roundUp } from "../../core/bytes.ts";
import type { CreateContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";
import { STATE, TableShape, writeNewTable } from "./block_table.ts";
import { MAX_BLOCK_SIZE, MIB, writeNewHeaders } from "./headers.ts";
import { MAX_SIZE, SECTOR, writeNewMetadata } from "./metadata.ts";
import { writeNewRegions } from "./regions.ts";

const GIB = 1024 * MIB;
/**
 * Bytes between the table and the first block, including one MiB of metadata.
 */
const ROOM = 5 * MIB;

/** Create an image; `options` are those of `VHDX_CREATE_OPTIONS`. */
export async function createVhdx(
  options: OptionValues,
  context: CreateContext,
): Promise<void> {
  if (options.size === undefined) {
    throw new BlockError("EINVAL", "Image creation needs a size parameter");
  }
  const size = roundUp(options.size as number, SECTOR);
  if (size > MAX_SIZE) throw invalid("Image size too large; max of 64TB");
  const log = { offset: MIB, length: logSize(options.log_size as number) };
  const blockSize = blockSizeOf(options.block_size as number, size);
  const isFixed = options.subformat === "fixed";
  const metadata = { size, blockSize };
  const { blocks, entries } = new TableShape(metadata);
  const bat = {
    offset: log.offset + log.length,
    length: Math.max(MIB, roundUp(8 * entries, MIB)),
  };
  const metadataRegion = { offset: bat.offset + bat.length, length: MIB };
  const dataOffset = bat.offset + bat.length + ROOM;
  const file = await context.createFile(0);
  await file.truncate!(dataOffset + (isFixed ? blocks * blockSize : 0));
  await writeNewHeaders(file, log);
  await writeNewRegions(file, bat, metadataRegion);
  await writeNewMetadata(file, metadataRegion, { ...metadata, isFixed });
  await writeNewTable(file, bat.offset, {
    metadata,
    state: isFixed
      ? STATE.PRESENT
      : options.block_state_zero === false
      ? STATE.NOT_PRESENT
      : STATE.ZERO,
    dataOffset,
  });
}

function logSize(wanted: number): number {
  const size = roundUp(wanted, MIB);
  if (size >= 2 ** 32) throw invalid("Log size must be smaller than 4 GB");
  if (size === 0) throw invalid("Log size must be a multiple of 1 MB");
  return size;
}

/** Bytes of a block: as requested, or large enough to keep the table small. */
function blockSizeOf(wanted: number, size: number): number {
  if (wanted === 0) {
    if (size > 32 * 1024 * GIB) return 64 * MIB;
    if (size > 100 * GIB) return 32 * MIB;
    return size > GIB ? 16 * MIB : 8 * MIB;
  }
  const blockSize = Math.min(MAX_BLOCK_SIZE, roundUp(wanted, MIB));
  if (isPowerOfTwo(blockSize)) return blockSize;
  throw invalid("Block size must be a power of two");
}
