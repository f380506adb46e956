/**
 * The format driver `vmdk`: VMware's disk images, in one file or several.
 *
 * @module
 */
import type { BlockDriver } from "../../core/driver.ts";
import { isStream, VMDK_CREATE_OPTIONS } from "./create_options.ts";
import { openVmdk } from "./node.ts";

/** VMware's format. */
export const vmdkDriver: BlockDriver = {
  name: "vmdk",
  role: "format",
  openOptions: {},
  createOptions: VMDK_CREATE_OPTIONS,
  isStream,
  open: (options, context) => openVmdk(vmdkDriver, options, context),
  create: async (options, context) =>
    await (await import("./create.ts")).create(options, context),
  stream: async function* (options, source, _target, filename) {
    const { streamImage } = await import("./stream.ts");
    yield* streamImage(options, source, filename);
  },
};
