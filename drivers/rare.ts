/**
 * Drivers that few stacks use: known by name, loaded when one is opened.
 *
 * Every start of the command line would pay for their code otherwise.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { parseBlkdebugFilename } from "./blkdebug/filename.ts";

type Facts = Omit<BlockDriver, "open">;

/** A driver of which only what names it is known yet. */
function lazily(facts: Facts, load: () => Promise<BlockDriver>): BlockDriver {
  return {
    ...facts,
    open: async (options, context) =>
      await (await load()).open(options, context),
  };
}

/** The drivers, to be registered. */
export const rareDrivers: readonly BlockDriver[] = [
  lazily(
    {
      name: "blkdebug",
      role: "filter",
      schemes: ["blkdebug"],
      parseFilename: parseBlkdebugFilename,
    },
    async () => (await import("./blkdebug/driver.ts")).blkdebugDriver,
  ),
];
