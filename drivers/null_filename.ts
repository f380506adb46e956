/**
 * File names for `null-co` and `null-aio`.
 *
 * @module
 */
import { BlockError } from "../core/errors.ts";
import type { OptionValues } from "../core/options.ts";

/** The options of a file name: none, and there is only one name. */
export function parseNullFilename(
  driver: string,
  filename: string,
): OptionValues {
  if (filename === `${driver}://`) return {};
  throw new BlockError(
    "EINVAL",
    `The only allowed filename for this driver is '${driver}://'`,
  );
}
