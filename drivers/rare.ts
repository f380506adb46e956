/**
 * Drivers that few stacks use: known by name, loaded when one is opened.
 *
 * Every start of the command line would pay for their code otherwise.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { parseBlkdebugFilename } from "./blkdebug/filename.ts";
import { parseNullFilename } from "./null_filename.ts";

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
  lazily(
    { name: "compress", role: "filter" },
    async () => (await import("./compress.ts")).compressDriver,
  ),
  lazily(
    { name: "copy-on-read", role: "filter" },
    async () => (await import("./copy_on_read.ts")).copyOnReadDriver,
  ),
  lazily(
    {
      name: "null-aio",
      role: "protocol",
      parseFilename: (name) => parseNullFilename("null-aio", name),
    },
    async () => (await import("./null.ts")).nullAioDriver,
  ),
  lazily(
    {
      name: "null-co",
      role: "protocol",
      parseFilename: (name) => parseNullFilename("null-co", name),
    },
    async () => (await import("./null.ts")).nullCoDriver,
  ),
  lazily(
    { name: "preallocate", role: "filter" },
    async () => (await import("./preallocate.ts")).preallocateDriver,
  ),
  lazily(
    { name: "throttle", role: "filter" },
    async () => (await import("./throttle.ts")).throttleDriver,
  ),
];
