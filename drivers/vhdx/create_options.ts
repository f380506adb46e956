import type { OptionTable } from "../../core/options.ts";

/** Options of new VHDX images. The code that uses them is loaded on demand. */
export const VHDX_CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size; max of 64TB." },
  log_size: {
    type: "size",
    default: 1024 * 1024,
    help: "Log size; min 1MB.",
  },
  block_size: {
    type: "size",
    default: 0,
    help: "Block Size; min 1MB, max 256MB. " +
      "0 means auto-calculate based on image size.",
  },
  subformat: {
    type: "enum",
    values: ["dynamic", "fixed"],
    help: "VHDX format type, can be either 'dynamic' or 'fixed'. " +
      "Default is 'dynamic'.",
  },
  block_state_zero: {
    type: "boolean",
    help: "Force use of payload blocks of type 'ZERO'. " +
      "Non-standard, but default.  Do not set to 'off' when " +
      "using 'qemu-img convert' with subformat=dynamic.",
  },
};
