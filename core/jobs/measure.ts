/**
 * Measuring how large the file of a new image would become.
 *
 * @module
 */
import type { CreateOptionsOf } from "../create_options.ts";
import type { Measurement } from "../driver.ts";
import { checkOptions, nodeOf } from "../checks.ts";
import { asBlockError, BlockError } from "../errors.ts";
import { chainStatus } from "../extents.ts";
import type { Disk } from "../node.ts";
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
import { Job } from "./job.ts";
import { Pace } from "../abort.ts";

/**
 * How to measure.
 *
 * @category Jobs
 */
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
 * @param disk The disk that the image is to hold; its size takes precedence.
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
 *
 * @category Jobs
 */
export async function measure<Format extends string>(
  format: Format,
  options?: CreateOptionsOf<Format>,
  disk?: Disk,
  { signal, secrets }: MeasureOptions = {},
): Promise<Measurement> {
  const driver = await loadFormat(format);
  const given = (options === undefined ? {} : options) as OptionValues;
  checkOptions("measure", given, {});
  checkOptions("measure", { signal }, { signal: "object" });
  const source = disk === undefined ? undefined : nodeOf("The source", disk);
  if (!driver.measure || !driver.createOptions) {
    throw new BlockError(
      "ENOTSUP",
      `Block driver '${format}' does not support size measurement`,
    );
  }
  // As if for a local file: the file's options do not affect the size.
  const table = newImageOptions(driver, findDriver("file"));
  const values = defaultOptions(table);
  for (const [name, value] of Object.entries(given)) {
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
  await using job = new Job(signal);
  const held = source && job.use(source);
  const pace = new Pace(signal);
  try {
    pace.check();
    return await driver.measure(values, held?.node, {
      secret: (id) => findSecret(secrets, { id, filename: format }),
      status: held && (async (offset, length) => {
        if (pace.isDue) await pace.rest();
        return await job.request(() =>
          chainStatus(held.node, offset, length, { signal })
        ).catch((error) => {
          throw asBlockError(error).prefixed("Unable to get block status: ");
        });
      }),
    });
  } catch (error) {
    throw asBlockError(error);
  }
}
