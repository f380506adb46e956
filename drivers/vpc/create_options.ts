import type { OptionTable } from "../../core/options.ts";

/** Options of new VHD images. The code that uses them is loaded on demand. */
export const VPC_CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  subformat: {
    type: "enum",
    values: ["dynamic", "fixed"],
    help:
      "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} ",
  },
  force_size: {
    type: "boolean",
    help:
      "Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based calculation",
  },
};

/** Options of opening VHD images. */
export const VPC_OPEN_OPTIONS: OptionTable = {
  force_size_calc: {
    type: "string",
    help: "Force disk size calculation to use either CHS geometry, or use " +
      "the disk current_size specified in the VHD footer. {chs, current_size}",
  },
};
