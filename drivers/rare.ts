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
import { httpFacts } from "./http/options.ts";
import { LUKS_FACTS } from "./luks/options.ts";
import { NBD_FACTS } from "./nbd/options.ts";
import { RBD_FACTS } from "./rbd/options.ts";
import { hasBlocks, S3_FACTS } from "./s3/names.ts";
import { VDI_CREATE_OPTIONS } from "./vdi/create_options.ts";
import { VHDX_CREATE_OPTIONS } from "./vhdx/create_options.ts";
import { VPC_CREATE_OPTIONS, VPC_OPEN_OPTIONS } from "./vpc/create_options.ts";
import { isStream, VMDK_CREATE_OPTIONS } from "./vmdk/create_options.ts";

type Facts = Omit<BlockDriver, "open" | "create" | "stream" | "store">;

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
    ...(facts.storesWhole && {
      store: async (options, chunks, context) =>
        await (await load()).store!(options, chunks, context),
    }),
    ...(facts.isStream && {
      stream: async function* (options, source) {
        yield* (await load()).stream!(options, source);
      },
    }),
  };
}

/** Protocols of QEMU's that are refused by name, and their other schemes. */
const ABSENT: { readonly [name: string]: readonly string[] } = {
  ftp: [],
  ftps: [],
  gluster: ["gluster+tcp", "gluster+unix", "gluster+rdma"],
  iscsi: ["iser"],
  nfs: [],
  nvme: [],
  sheepdog: ["sheepdog+tcp", "sheepdog+unix"],
  ssh: [],
  vxhs: [],
};

function absentDriver(name: string): BlockDriver {
  const facts: Facts = {
    name,
    role: "protocol",
    schemes: [name, ...ABSENT[name]],
    isAbsent: true,
    parseFilename: (filename) => ({ filename }),
  };
  const load = async () => (await import("./absent.ts")).absentDriver(facts);
  return {
    ...lazily(facts, load),
    create: async (...given) => await (await load()).create!(...given),
  };
}

/** The drivers, to be registered. */
export const rareDrivers: readonly BlockDriver[] = [
  ...Object.keys(ABSENT).map(absentDriver),
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
    httpFacts("http"),
    async () => (await import("./http/driver.ts")).httpDriver,
  ),
  lazily(
    httpFacts("https"),
    async () => (await import("./http/driver.ts")).httpsDriver,
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
    { name: "preallocate", role: "filter" },
    async () => (await import("./preallocate.ts")).preallocateDriver,
  ),
  lazily(
    { name: "quorum", role: "format" },
    async () => (await import("./quorum.ts")).quorumDriver,
  ),
  lazily(
    RBD_FACTS,
    async () => (await import("./rbd/driver.ts")).rbdDriver,
  ),
  lazily(
    { ...S3_FACTS, storesWhole: (options) => !hasBlocks(options) },
    async () => (await import("./s3/driver.ts")).s3Driver,
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
