import type { OptionTable } from "../../core/options.ts";

/**
 * Options of new Parallels images. The code that uses them is loaded on demand.
 */
export const PARALLELS_CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  cluster_size: {
    type: "size",
    default: 1048576,
    help: "Parallels image cluster size",
  },
};
