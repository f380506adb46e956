/**
 * The options `-b` and `-F`, which name the backing file of a new image.
 *
 * @module
 */
import { BlockError } from "../core/errors.ts";
import { resolveName } from "../core/names.ts";
import type { OptionTable, OptionValues } from "../core/options.ts";
import { filenameOf, protocolStack } from "../core/sources.ts";

/** Add `-b` and `-F`, where given, to the options of a format. */
export function addBackingOptions(
  values: OptionValues,
  table: OptionTable,
  given: { format: string; backingFile?: string; backingFormat?: string },
): void {
  const add = (name: string, value: string | undefined, what: string) => {
    if (value === undefined) return;
    if (!Object.hasOwn(table, name)) {
      throw new BlockError(
        "EINVAL",
        `${what} not supported for file format '${given.format}'`,
      );
    }
    values[name] = value;
  };
  add("backing_file", given.backingFile, "Backing file");
  add("backing_fmt", given.backingFormat, "Backing file format");
}

/** Resolve the name of an image's backing file. */
export function backingName(filename: string, backing: string): string {
  const isDescribed = filename.startsWith("json:");
  const name = isDescribed ? filenameOf(protocolStack(filename)) : filename;
  return resolveName(name, backing);
}
