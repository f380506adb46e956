import type { OptionTable } from "../../core/options.ts";

/** The options of new VDI images, apart from the code that uses them. */
export const VDI_CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  static: {
    type: "boolean",
    default: false,
    help: "VDI static (pre-allocated) image",
  },
};
