/**
 * Registers the drivers of the package. All but two are loaded on first use:
 * the command line imports this rather than `mod.ts`, and every start would pay
 * for their code.
 *
 * @module
 */
import type { BlockDriver } from "../core/driver.ts";
import { BlockError } from "../core/errors.ts";
import { folderOf, webTraits } from "../core/names.ts";
import type { OptionValues } from "../core/options.ts";
import { protocolStack } from "../core/sources.ts";
import { type DriverFacts, lazily, provideDriver } from "../core/registry.ts";
import { fileDriver, HOST_CDROM, HOST_DEVICE } from "./file/driver.ts";
import { NBD_SCHEMES, parseNbdFilename } from "./nbd/names.ts";
import { qcow2Driver } from "./qcow2/driver.ts";
import { parseRbdFilename } from "./rbd/names.ts";

/** QEMU's protocols that are refused by name, and their other schemes. */
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
  const facts: DriverFacts = {
    name,
    role: "protocol",
    schemes: [name, ...ABSENT[name]],
    isAbsent: true,
    parseFilename: (filename) => ({ filename }),
  };
  return lazily(
    facts,
    async () => (await import("./absent.ts")).absentDriver(facts),
  );
}

const drivers: readonly BlockDriver[] = [
  fileDriver,
  qcow2Driver,
  ...Object.keys(ABSENT).map(absentDriver),
  lazily(
    { name: "asif", role: "format" },
    async () => (await import("./asif.ts")).asifDriver,
  ),
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
    { name: "bochs", role: "format" },
    async () => (await import("./bochs.ts")).bochsDriver,
  ),
  lazily(
    { name: "cloop", role: "format" },
    async () => (await import("./cloop.ts")).cloopDriver,
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
    { name: "dmg", role: "format" },
    async () => (await import("./dmg/driver.ts")).dmgDriver,
  ),
  lazily(
    { name: "gzip", role: "format", isContainer: true },
    async () => (await import("./packed/gzip.ts")).gzipDriver,
  ),
  lazily(
    HOST_CDROM,
    async () => (await import("./file/devices.ts")).hostCdromDriver,
  ),
  lazily(
    HOST_DEVICE,
    async () => (await import("./file/devices.ts")).hostDeviceDriver,
  ),
  lazily(
    webTraits("http"),
    async () => (await import("./http/driver.ts")).httpDriver,
  ),
  lazily(
    webTraits("https"),
    async () => (await import("./http/driver.ts")).httpsDriver,
  ),
  lazily(
    { name: "memory", role: "protocol", parseFilename: () => ({}) },
    async () => (await import("./memory.ts")).memoryDriver,
  ),
  lazily(
    {
      name: "nbd",
      role: "protocol",
      schemes: NBD_SCHEMES,
      parseFilename: parseNbdFilename,
    },
    async () => (await import("./nbd/driver.ts")).nbdDriver,
  ),
  lazily(
    { name: "luks", role: "format" },
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
    { name: "ova", role: "format", isContainer: true },
    async () => (await import("./packed/tar.ts")).ovaDriver,
  ),
  lazily(
    { name: "parallels", role: "format" },
    async () => (await import("./parallels/driver.ts")).parallelsDriver,
  ),
  lazily(
    { name: "preallocate", role: "filter" },
    async () => (await import("./preallocate.ts")).preallocateDriver,
  ),
  lazily(
    { name: "qcow", role: "format" },
    async () => (await import("./qcow/driver.ts")).qcowDriver,
  ),
  lazily(
    { name: "qed", role: "format" },
    async () => (await import("./qed/driver.ts")).qedDriver,
  ),
  lazily(
    { name: "quorum", role: "format" },
    async () => (await import("./quorum.ts")).quorumDriver,
  ),
  lazily(
    // The lowest score: raw is whatever no other format claims.
    { name: "raw", role: "format", probe: () => 1 },
    async () => (await import("./raw.ts")).rawDriver,
  ),
  lazily(
    { name: "rbd", role: "protocol", parseFilename: parseRbdFilename },
    async () => (await import("./rbd/driver.ts")).rbdDriver,
  ),
  lazily(
    {
      name: "s3",
      role: "protocol",
      schemes: ["s3"],
      parseFilename: (url) => ({ url }),
      // Keys are not normalized.
      canonicalName: (name) => name,
      ownFolder: folderOf,
    },
    async () => (await import("./s3/driver.ts")).s3Driver,
  ),
  lazily(
    { name: "tar", role: "format", isContainer: true },
    async () => (await import("./packed/tar.ts")).tarDriver,
  ),
  lazily(
    { name: "throttle", role: "filter" },
    async () => (await import("./throttle.ts")).throttleDriver,
  ),
  lazily(
    { name: "vdi", role: "format" },
    async () => (await import("./vdi/driver.ts")).vdiDriver,
  ),
  lazily(
    { name: "vhdx", role: "format" },
    async () => (await import("./vhdx/driver.ts")).vhdxDriver,
  ),
  lazily(
    { name: "vpc", role: "format" },
    async () => (await import("./vpc/driver.ts")).vpcDriver,
  ),
  lazily(
    { name: "vmdk", role: "format" },
    async () => (await import("./vmdk/driver.ts")).vmdkDriver,
  ),
  lazily(
    { name: "xz", role: "format", isContainer: true },
    async () => (await import("./packed/xz.ts")).xzDriver,
  ),
  lazily(
    { name: "zip", role: "format", isContainer: true },
    async () => (await import("./packed/zip.ts")).zipDriver,
  ),
  lazily(
    { name: "zstd", role: "format", isContainer: true },
    async () => (await import("./packed/zstd.ts")).zstdDriver,
  ),
];

/**
 * The options of `blkdebug:CONFIG:FILENAME`. CONFIG may be empty; a name
 * without the prefix is that of the image.
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

for (const driver of drivers) provideDriver(driver);
