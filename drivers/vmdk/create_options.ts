/**
 * Options of new VMDK images. The code that uses them is loaded on demand.
 *
 * @module
 */
import type { OptionTable, OptionValues } from "../../core/options.ts";

/** Options of `create`, in the order in which help shows them. */
export const VMDK_CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  adapter_type: {
    type: "string",
    help: "Virtual adapter type, can be one of ide (default), lsilogic, " +
      "buslogic or legacyESX",
  },
  backing_file: { type: "string", help: "File name of a base image" },
  backing_fmt: { type: "string", help: "Must be 'vmdk' if present" },
  compat6: {
    type: "boolean",
    default: false,
    help: "VMDK version 6 image",
  },
  hwversion: {
    type: "string",
    default: "undefined",
    help: "VMDK hardware version",
  },
  toolsversion: { type: "string", help: "VMware guest tools version" },
  subformat: {
    type: "string",
    help: "VMDK flat extent format, can be one of {monolithicSparse " +
      "(default) | monolithicFlat | twoGbMaxExtentSparse | " +
      "twoGbMaxExtentFlat | streamOptimized} ",
  },
  zeroed_grain: {
    type: "boolean",
    help: "Enable efficient zero writes using the zeroed-grain GTE feature",
  },
};

/** Whether a new image can be written front to back as a stream. */
export function isStream({ subformat, backing_file }: OptionValues): boolean {
  return subformat === "streamOptimized" && backing_file === undefined;
}
