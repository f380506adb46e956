/**
 * The protocol drivers `host_device` and `host_cdrom`: the bytes of a block or
 * character device. A plain file name of a device selects them.
 *
 * @module
 */
import { SECTOR_SIZE } from "../../core/bytes.ts";
import type { CreateContext } from "../../core/driver.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import type { OptionTable } from "../../core/options.ts";
import { deviceNumbers, type FileInfo } from "../../core/platform/files.ts";
import { platform } from "../../core/platform/mod.ts";
import {
  canonicalName,
  createOptions,
  OPEN_OPTIONS,
  openPath,
  openToCreate,
  type PathDriver,
} from "./driver.ts";
import type { FileNode } from "./node.ts";

const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  // Other modes are refused with a message of their own.
  preallocation: {
    type: "string",
    help: "Preallocation mode (allowed values: off)",
  },
};

/** Linux's major number of optical drives. */
const CDROM_MAJOR = 11;

/** Devices of the host: disks, partitions, loop devices. */
export const hostDeviceDriver: PathDriver = deviceDriver(
  "host_device",
  (filename) => isDevice(statOf(filename)),
);

/** Optical drives. */
export const hostCdromDriver: PathDriver = deviceDriver(
  "host_cdrom",
  (filename) => {
    const { isBlockDevice, rdev } = statOf(filename) ?? {};
    return isBlockDevice === true &&
      deviceNumbers(rdev ?? 0)[0] === CDROM_MAJOR;
  },
);

function deviceDriver(
  name: string,
  claimsFile: (filename: string) => boolean,
): PathDriver {
  const driver: PathDriver = {
    name,
    role: "protocol",
    kind: "either a character or block device",
    isKind: isDevice,
    checkWritable,
    claimsFile,
    openOptions: OPEN_OPTIONS,
    createOptions: CREATE_OPTIONS,
    canonicalName,
    open: (options, context) => openPath(driver, options, context),

    async create(options, context) {
      const { size, preallocation, ...file } = createOptions(driver, options);
      if (preallocation !== "off") {
        throw new BlockError(
          "ENOTSUP",
          `Unsupported preallocation mode '${preallocation}'`,
        );
      }
      const node = openExisting(driver, file, context);
      try {
        await node.truncate(size);
        // Otherwise probing would find the old content.
        const length = Math.min(SECTOR_SIZE, node.size);
        if (length > 0) await node.writev(0, [new Uint8Array(length)]);
      } finally {
        await node.close();
      }
    },
  };
  return driver;
}

/** Open a device, which must exist already. */
function openExisting(
  driver: PathDriver,
  file: Parameters<typeof openToCreate>[1],
  context: CreateContext,
): FileNode {
  try {
    return openToCreate(driver, file, context);
  } catch (error) {
    throw asBlockError(error).prefixed(
      `Protocol driver '${driver.name}' does not support creating new images, so ` +
        "an existing image must be selected as the target; however, opening " +
        "the given target as an existing image failed: ",
    );
  }
}

function isDevice(info: FileInfo | undefined): boolean {
  return info !== undefined && (info.isBlockDevice || info.isCharDevice);
}

/** The status of a path, if we may query it. */
function statOf(filename: string): FileInfo | undefined {
  try {
    return platform().files?.stat(filename);
  } catch {
    return undefined;
  }
}

/** Linux opens write-protected devices for writing, and fails each write. */
function checkWritable({ isBlockDevice, rdev }: FileInfo): void {
  if (!isBlockDevice) return;
  let isProtected = false;
  try {
    const facts = `/sys/dev/block/${deviceNumbers(rdev).join(":")}/ro`;
    isProtected = platform().files?.readText(facts).trim() === "1";
  } catch {
    // If this is unknown, the writes will fail.
  }
  if (isProtected) {
    throw new BlockError(
      "EACCES",
      "The device is not writable: Permission denied",
    );
  }
}
