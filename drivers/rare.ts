/**
 * Rarely used drivers: registered by name, loaded on first use.
 *
 * Otherwise every start of the command line would load their code.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { BlockError } from "../core/errors.ts";
import type { OptionValues } from "../core/options.ts";
import { protocolStack } from "../core/sources.ts";
import { LUKS_FACTS } from "./luks/options.ts";
import { NBD_FACTS } from "./nbd/options.ts";
import { PARALLELS_CREATE_OPTIONS } from "./parallels/create_options.ts";
import {
  QCOW_CREATE_OPTIONS,
  QCOW_OPEN_OPTIONS,
} from "./qcow/create_options.ts";
import { QED_CREATE_OPTIONS } from "./qed/create_options.ts";
import { VDI_CREATE_OPTIONS } from "./vdi/create_options.ts";
import { VHDX_CREATE_OPTIONS } from "./vhdx/create_options.ts";
import { VPC_CREATE_OPTIONS, VPC_OPEN_OPTIONS } from "./vpc/create_options.ts";
import { isStream, VMDK_CREATE_OPTIONS } from "./vmdk/create_options.ts";

type Facts = Omit<BlockDriver, "open" | "create" | "stream">;

/** A driver whose code is loaded when it is first used. */
function lazily(facts: Facts, load: () => Promise<BlockDriver>): BlockDriver {
  return {
    ...facts,
    open: async (options, context) =>
      await (await load()).open(options, context),
    ...(facts.createOptions && {
      create: async (options, context) =>
        await (await load()).create!(options, context),
    }),
    ...(facts.isStream && {
      stream: async function* (options, source) {
        yield* (await load()).stream!(options, source);
      },
    }),
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
    NBD_FACTS,
    async () => (await import("./nbd/driver.ts")).nbdDriver,
  ),
  lazily(
    {
      ...LUKS_FACTS,
      measure: async (...args) =>
        await (await import("./luks/driver.ts")).luksDriver.measure!(...args),
    },
    async () => (await import("./luks/driver.ts")).luksDriver,
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
    {
      name: "parallels",
      role: "format",
      createOptions: PARALLELS_CREATE_OPTIONS,
    },
    async () => (await import("./parallels/driver.ts")).parallelsDriver,
  ),
  lazily(
    { name: "preallocate", role: "filter" },
    async () => (await import("./preallocate.ts")).preallocateDriver,
  ),
  lazily(
    {
      name: "qcow",
      role: "format",
      openOptions: QCOW_OPEN_OPTIONS,
      strongOptions: ["encrypt.key-secret"],
      createOptions: QCOW_CREATE_OPTIONS,
    },
    async () => (await import("./qcow/driver.ts")).qcowDriver,
  ),
  lazily(
    { name: "qed", role: "format", createOptions: QED_CREATE_OPTIONS },
    async () => (await import("./qed/driver.ts")).qedDriver,
  ),
  lazily(
    { name: "quorum", role: "format" },
    async () => (await import("./quorum.ts")).quorumDriver,
  ),
  lazily(
    { name: "throttle", role: "filter" },
    async () => (await import("./throttle.ts")).throttleDriver,
  ),
  lazily(
    { name: "vdi", role: "format", createOptions: VDI_CREATE_OPTIONS },
    async () => (await import("./vdi/driver.ts")).vdiDriver,
  ),
  lazily(
    { name: "vhdx", role: "format", createOptions: VHDX_CREATE_OPTIONS },
    async () => (await import("./vhdx/driver.ts")).vhdxDriver,
  ),
  lazily(
    {
      name: "vpc",
      role: "format",
      openOptions: VPC_OPEN_OPTIONS,
      strongOptions: ["force_size_calc"],
      createOptions: VPC_CREATE_OPTIONS,
    },
    async () => (await import("./vpc/driver.ts")).vpcDriver,
  ),
  lazily(
    {
      name: "vmdk",
      role: "format",
      createOptions: VMDK_CREATE_OPTIONS,
      isStream,
    },
    async () => (await import("./vmdk/driver.ts")).vmdkDriver,
  ),
];

/**
 * The options of `blkdebug:CONFIG:FILENAME`. CONFIG may be empty; a name
 * without the prefix is the image's.
 */
function parseBlkdebugFilename(filename: string): OptionValues {
  if (!filename.startsWith("blkdebug:")) {
    return { image: protocolStack(filename) };
  }
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
    image: protocolStack(rest.slice(colon + 1)),
  };
}

/** Check the only permitted file name; there are no options. */
function parseNullFilename(
  driver: string,
  filename: string,
): OptionValues {
  if (filename === `${driver}://`) return {};
  throw new BlockError(
    "EINVAL",
    `The only allowed filename for this driver is '${driver}://'`,
  );
}
