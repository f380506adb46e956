/**
 * How large the file of a new image would become.
 *
 * @module
 */
import type { Measurement } from "../driver.ts";
import { checkNode, checkOptions } from "../checks.ts";
import { asBlockError, BlockError } from "../errors.ts";
import type { BlockNode } from "../node.ts";
import {
  defaultOptions,
  optionNames,
  type OptionValues,
  parseOption,
  UnknownOptionError,
} from "../options.ts";
import { getFormat } from "../registry.ts";
import { findSecret, type SecretSource } from "../secrets.ts";

/** What measuring may need besides the format's own options. */
export interface MeasureOptions {
  /** Where the keys of encrypted images come from. */
  secrets?: SecretSource;
}

/**
 * Tell how large the file of a new image would become: an upper bound, for
 * disks to be reserved before an image is converted onto them.
 *
 * @param format A registered format, such as `qcow2` or `raw`.
 * @param options The format's create options; `size` in bytes.
 * @param source The disk that the image is to hold; its size counts instead.
 * @param wishes What else it may need.
 * @throws {BlockError} EINVAL for options that do not fit, ENOTSUP if the
 * format cannot tell, EFBIG if it cannot hold such a disk.
 *
 * @example
 * ```ts
 * import { measure } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const { required, fullyAllocated } = await measure("qcow2", { size: 1 << 30 });
 * assertEquals(required, 393_216);
 * assertEquals(fullyAllocated, 1_074_135_040);
 * ```
 */
export async function measure(
  format: string,
  options: OptionValues = {},
  source?: BlockNode,
  wishes: MeasureOptions = {},
): Promise<Measurement> {
  const driver = getFormat(format);
  checkOptions("measure", options, {});
  checkOptions("measure", wishes, {});
  if (source !== undefined) checkNode("The source", source);
  if (!driver.measure || !driver.createOptions) {
    throw new BlockError(
      "ENOTSUP",
      `Block driver '${format}' does not support size measurement`,
    );
  }
  const table = driver.createOptions;
  const values = defaultOptions(table);
  for (const [name, value] of Object.entries(options)) {
    if (!Object.hasOwn(table, name)) {
      throw new UnknownOptionError(name, optionNames(table));
    }
    const spec = table[name];
    // Many an enumeration makes no difference to the size; those that do are
    // the driver's to check.
    const isLeft = spec.type === "enum" && typeof value === "string";
    values[name] = isLeft || value === undefined
      ? value
      : parseOption(name, spec, value);
  }
  try {
    return await driver.measure(values, source, {
      secret: (id) => findSecret(wishes.secrets, { id, filename: format }),
    });
  } catch (error) {
    throw asBlockError(error);
  }
}
