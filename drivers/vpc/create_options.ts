import type { OptionTable } from "../../core/options.ts";

/** The options of new VHD images. What makes them is loaded when it is used. */
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

/** The options with which VHD images are opened. */
export const VPC_OPEN_OPTIONS: OptionTable = {
  force_size_calc: {
    type: "string",
    help: "Force disk size calculation to use either CHS geometry, or use " +
      "the disk current_size specified in the VHD footer. {chs, current_size}",
  },
};
