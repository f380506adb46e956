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
import type { FileInfo } from "../../core/platform/files.ts";
import { deviceNumbers } from "../../core/platform/system_calls.ts";
import { platform } from "../../core/platform/mod.ts";
import {
  createOptions,
  type DeviceTraits,
  HOST_CDROM,
  HOST_DEVICE,
  isDevice,
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

/** Devices of the host: disks, partitions, loop devices. */
export const hostDeviceDriver: PathDriver = deviceDriver(HOST_DEVICE);

/** Optical drives. */
export const hostCdromDriver: PathDriver = deviceDriver(HOST_CDROM);

function deviceDriver(facts: DeviceTraits): PathDriver {
  const driver: PathDriver = {
    ...facts,
    kind: "either a character or block device",
    isKind: isDevice,
    checkWritable,
    openOptions: OPEN_OPTIONS,
    createOptions: CREATE_OPTIONS,
    open: (options, context) => openPath(driver, options, context),

    async create(options, context) {
      const { size, preallocation, ...file } = createOptions(driver, options);
      if (preallocation !== "off") {
        throw new BlockError(
          "ENOTSUP",
          `Unsupported preallocation mode '${preallocation}'`,
        );
      }
      const node = await openExisting(driver, file, context);
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
async function openExisting(
  driver: PathDriver,
  file: Parameters<typeof openToCreate>[1],
  context: CreateContext,
): Promise<FileNode> {
  try {
    return await openToCreate(driver, file, context);
  } catch (error) {
    throw asBlockError(error).prefixed(
      `Protocol driver '${driver.name}' does not support creating new images, so ` +
        "an existing image must be selected as the target; however, opening " +
        "the given target as an existing image failed: ",
    );
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
