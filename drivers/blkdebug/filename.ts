/**
 * File names for `blkdebug`.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";

/**
 * The options that `blkdebug:CONFIG:FILENAME` stands for. CONFIG may be empty;
 * a name without the prefix is the image's own.
 */
export function parseBlkdebugFilename(filename: string): OptionValues {
  if (!filename.startsWith("blkdebug:")) return { image: { filename } };
  const rest = filename.slice("blkdebug:".length);
  const colon = rest.indexOf(":");
  if (colon < 0) {
    throw new BlockError(
      "EINVAL",
      "blkdebug requires both config file and image path",
    );
  }
  return {
    ...(colon > 0 && { config: rest.slice(0, colon) }),
    image: { filename: rest.slice(colon + 1) },
  };
}
