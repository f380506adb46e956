/**
 * The filter `blkdebug`, for tests: fails or suspends requests at given steps
 * of the driver above it, and imposes limits on them.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import { vectorLength } from "../../core/bytes.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import { childSlot, filterNode } from "../../core/filter.ts";
import type { BlockNode, RequestLimits } from "../../core/node.ts";
import {
  nestOptions,
  type OptionTable,
  type OptionValues,
  parseOptions,
} from "../../core/options.ts";
import { writeZeroes } from "../../core/requests.ts";
import { Debugger } from "./debugger.ts";
import { readRules, RULE_GROUPS } from "./rules.ts";

const OPEN_OPTIONS: OptionTable = {
  config: { type: "string", help: "Path to the configuration file" },
  align: { type: "size", help: "Required alignment in bytes" },
  "max-transfer": { type: "size", help: "Maximum transfer size in bytes" },
  "opt-write-zero": {
    type: "size",
    help: "Optimum write zero alignment in bytes",
  },
  "max-write-zero": {
    type: "size",
    help: "Maximum write zero size in bytes",
  },
  "opt-discard": { type: "size", help: "Optimum discard alignment in bytes" },
  "max-discard": { type: "size", help: "Maximum discard size in bytes" },
};

/**
 * A filter below a format's driver; its child is `image`. Options: rules
 * (`inject-error`, `set-state`: one, or a list), a file `config` with such
 * rules, and limits; or instead of rules `debugger`, the `debug` of another
 * such node, to continue from its state. Its file names are
 * `blkdebug:CONFIG:FILENAME`.
 *
 * @example Fail the first write of data with ENOSPC
 * ```ts
 * import { BlockError, createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 * import { assertRejects } from "@std/assert";
 *
 * const image = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", image, { size: 1 << 20 });
 * const rule = { event: "write_aio", errno: 28, once: true };
 * await using disk = await openImage({
 *   driver: "qcow2",
 *   file: { driver: "blkdebug", image, "inject-error": rule },
 * });
 * await assertRejects(() => disk.write(0, new Uint8Array(1)), BlockError);
 * await disk.write(0, new Uint8Array(1));
 * ```
 */
export const blkdebugDriver: BlockDriver = {
  name: "blkdebug",
  role: "filter",
  schemes: ["blkdebug"],
  childRole: "image",
  openOptions: OPEN_OPTIONS,
  strongOptions: [
    ...Object.keys(OPEN_OPTIONS),
    ...RULE_GROUPS.map((group) => `${group}.`),
  ],
  plainName: ({ config = "", ...others }, image) =>
    image === undefined || Object.keys(others).length > 0
      ? undefined
      : `blkdebug:${config}:${image}`,

  async open(options, context) {
    const nested = nestOptions(options);
    const others = ["image", "debugger", ...RULE_GROUPS];
    const parsed = parseOptions(OPEN_OPTIONS, nested, others);
    const debug = parsed.debugger instanceof Debugger
      ? parsed.debugger
      : await newDebugger(parsed.config as string | undefined, nested);
    const image = childSlot(await context.openChild("image"));
    const limits = parseLimits(parsed, image.limits?.requestAlignment ?? 1);
    return debuggedNode(image, limits, debug);
  },
};

async function newDebugger(
  config: string | undefined,
  options: OptionValues,
): Promise<Debugger> {
  const debug = new Debugger(await readRules(config, options));
  await debug.event("none");
  return debug;
}

/** The limits of the options; each must be a multiple of its alignment. */
function parseLimits(options: OptionValues, below: number): RequestLimits {
  const take = (name: string, unit: number): number | undefined => {
    const value = options[name] as number | undefined;
    if (!value) return undefined;
    if (value >= 2 ** 31 - 1 || value % unit !== 0) {
      throw new BlockError(
        "EINVAL",
        `Cannot meet constraints with ${name} ${value}`,
      );
    }
    return value;
  };
  const requestAlignment = take("align", 1);
  if (requestAlignment && !Number.isInteger(Math.log2(requestAlignment))) {
    throw new BlockError(
      "EINVAL",
      `Cannot meet constraints with align ${requestAlignment}`,
    );
  }
  const unit = Math.max(requestAlignment ?? 1, below);
  const maxTransfer = take("max-transfer", unit);
  const writeZeroesAlignment = take("opt-write-zero", unit);
  const discardAlignment = take("opt-discard", unit);
  return {
    requestAlignment,
    maxTransfer,
    writeZeroesAlignment,
    maxWriteZeroes: take(
      "max-write-zero",
      Math.max(writeZeroesAlignment ?? 0, unit),
    ),
    discardAlignment,
    maxDiscard: take("max-discard", Math.max(discardAlignment ?? 0, unit)),
  };
}

function debuggedNode(
  file: BlockNode,
  limits: RequestLimits,
  debug: Debugger,
): BlockNode {
  const { requestAlignment = 1, writeZeroesAlignment = 1 } = limits;
  const zeroUnit = Math.max(requestAlignment, writeZeroesAlignment);
  /**
   * Whether there is anything to flush; without changes, a flush cannot fail.
   */
  let isChanged = false;
  /** A failed request may have changed something, too. */
  const changing = async (act: () => Promise<void>): Promise<void> => {
    try {
      await act();
    } finally {
      isChanged = true;
    }
  };
  return filterNode(blkdebugDriver, file, {
    limits,
    debug,
    async readv(offset, iov, flags) {
      await debug.check("read", offset, vectorLength(iov));
      await file.readv(offset, iov, flags);
    },
    async status(offset, length, flags) {
      await debug.check("block-status", offset, length);
      return await file.status(offset, length, flags);
    },
    async flush(flags) {
      checkSignal(flags?.signal);
      if (!isChanged) return;
      // Later writes are for the next flush.
      isChanged = false;
      try {
        await debug.check("flush");
        await file.flush?.(flags);
      } catch (error) {
        isChanged = true;
        throw error;
      }
    },
    writev: (offset, iov, flags) =>
      changing(async () => {
        await debug.check("write", offset, vectorLength(iov));
        await file.writev!(offset, iov, flags);
      }),
    async writeZeroes(offset, length, flags) {
      // Pieces that are too small must be written as data: that is tested too.
      if (length < zeroUnit) throw new BlockError("ENOTSUP");
      await changing(async () => {
        await debug.check("write-zeroes", offset, length);
        await writeZeroes(file, offset, length, flags);
      });
    },
    discard: (offset, length, flags) =>
      changing(async () => {
        await debug.check("discard", offset, length);
        await file.discard!(offset, length, flags);
      }),
  }, { writeZeroes: "writev" });
}
