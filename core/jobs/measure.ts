/**
 * Measuring how large the file of a new image would become.
 *
 * @module
 */
import { checkSignal } from "../abort.ts";
import type { Measurement } from "../driver.ts";
import { checkNode, checkOptions } from "../checks.ts";
import { asBlockError, BlockError } from "../errors.ts";
import { wrapNode } from "../filter.ts";
import type { BlockNode } from "../node.ts";
import {
  defaultOptions,
  newImageOptions,
  optionNames,
  type OptionValues,
  parseOption,
  UnknownOptionError,
} from "../options.ts";
import { findDriver, loadFormat } from "../registry.ts";
import { findSecret, type SecretSource } from "../secrets.ts";

/** How to measure. */
export interface MeasureOptions {
  /** Where the keys of encrypted images come from. */
  secrets?: SecretSource;
  /** Ends the job with ECANCELED. */
  signal?: AbortSignal;
}

/**
 * Compute how large the file of a new image would become: an upper bound, for
 * reserving storage before converting onto it.
 *
 * @param format A registered format, such as `qcow2` or `raw`.
 * @param options The format's create options; `size` in bytes.
 * @param source The disk that the image is to hold; its size takes precedence.
 * @throws {BlockError} EINVAL for invalid options, ENOTSUP if the format cannot
 * be measured, EFBIG if it cannot hold such a disk.
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
  { signal, secrets }: MeasureOptions = {},
): Promise<Measurement> {
  const driver = await loadFormat(format);
  checkOptions("measure", options, {});
  checkOptions("measure", { signal }, { signal: "object" });
  if (source !== undefined) checkNode("The source", source);
  if (!driver.measure || !driver.createOptions) {
    throw new BlockError(
      "ENOTSUP",
      `Block driver '${format}' does not support size measurement`,
    );
  }
  // As if for a file: what is said of that does not change its size.
  const table = newImageOptions(driver, findDriver("file"));
  const values = defaultOptions(table);
  for (const [name, value] of Object.entries(options)) {
    if (!Object.hasOwn(table, name)) {
      throw new UnknownOptionError(name, optionNames(table));
    }
    const spec = table[name];
    // Few enumerations affect the size; the driver checks those that do.
    const isLeft = spec.type === "enum" && typeof value === "string";
    values[name] = isLeft || value === undefined
      ? value
      : parseOption(name, spec, value);
  }
  try {
    checkSignal(signal);
    return await driver.measure(
      values,
      source && signal ? endable(source, signal) : source,
      { secret: (id) => findSecret(secrets, { id, filename: format }) },
    );
  } catch (error) {
    throw asBlockError(error);
  }
}

/** A source whose `status` fails once the job is cancelled. */
function endable(source: BlockNode, signal: AbortSignal): BlockNode {
  return wrapNode(source, {
    status(offset, length) {
      checkSignal(signal);
      return source.status(offset, length);
    },
  });
}
