/**
 * Creating QED images.
 *
 * @module
 */
import type { CreateContext } from "../../core/driver.ts";
import { invalid } from "../../core/errors.ts";
import { notAmong, type OptionValues } from "../../core/options.ts";
import { findDriver, listDrivers } from "../../core/registry.ts";
import { valueText } from "../../core/values.ts";
import { encodeHeader, newHeader } from "./header.ts";

/** Create an image. */
export async function createQed(
  options: OptionValues,
  context: CreateContext,
): Promise<void> {
  if (options.size === undefined) {
    throw invalid("Image creation needs a size parameter");
  }
  const backingFormat = options.backing_fmt as string | undefined;
  if (backingFormat !== undefined && !findDriver(backingFormat)) {
    throw notAmong(
      `Parameter 'backing-fmt' does not accept value ${
        valueText(backingFormat)
      }`,
      listDrivers().filter(({ isContainer }) => !isContainer)
        .map(({ name }) => name),
    );
  }
  const { header, name } = newHeader({
    size: options.size as number,
    clusterSize: options.cluster_size as number,
    tableSize: options.table_size as number | undefined,
    backingFile: options.backing_file as string | undefined,
    backingFormat,
  });
  const file = await context.createFile(0);
  // Whatever follows its clusters would be taken for more of them, so a device
  // cannot hold it.
  await file.truncate!(0, { exact: true });
  await file.writev!(0, [encodeHeader(header), name]);
  await file.truncate!(header.clusterSize * (1 + header.tableSize));
}
