/**
 * Creating VHD images.
 *
 * @module
 */
import { divideUp, roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import type { CreateContext } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";
import { writeNewTable } from "./block_table.ts";
import {
  DYNAMIC_HEADER_SIZE,
  FOOTER_SIZE,
  newDynamicHeader,
  newFooter,
  TYPE,
} from "./footer.ts";
import { roundedGeometry } from "./geometry.ts";

/** Bytes of a block, the only size used in practice. */
const BLOCK_SIZE = 2 * 1024 * 1024;

/** Create an image; `options` are those of `VPC_CREATE_OPTIONS`. */
export async function createVhd(
  options: OptionValues,
  context: CreateContext,
): Promise<void> {
  if (options.size === undefined) {
    throw new BlockError("EINVAL", "Image creation needs a size parameter");
  }
  const isFixed = options.subformat === "fixed";
  const isExact = options.force_size === true;
  const { geometry, size } = roundedGeometry(options.size as number, isExact);
  const file = await context.createFile(0);
  const footer = newFooter({
    type: isFixed ? TYPE.FIXED : TYPE.DYNAMIC,
    geometry,
    size,
    creator: isExact ? "qem2" : "qemu",
  });
  if (isFixed) {
    await file.truncate!(size + FOOTER_SIZE);
    return await file.writev!(size, [footer]);
  }
  const tableOffset = FOOTER_SIZE + DYNAMIC_HEADER_SIZE;
  const entries = divideUp(size, BLOCK_SIZE);
  const header = newDynamicHeader({
    tableOffset,
    entries,
    blockSize: BLOCK_SIZE,
  });
  await file.writev!(0, [footer, header]);
  await writeNewTable(file, tableOffset, entries);
  const end = tableOffset + roundUp(4 * entries, SECTOR_SIZE);
  await file.writev!(end, [footer]);
}
