import type { OptionTable } from "../../core/options.ts";

/** Options of new QED images. The code that uses them is loaded on demand. */
export const QED_CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  backing_file: { type: "string", help: "File name of a base image" },
  backing_fmt: { type: "string", help: "Image format of the base image" },
  cluster_size: {
    type: "size",
    default: 65536,
    help: "Cluster size (in bytes)",
  },
  table_size: { type: "size", help: "L1/L2 table size (in clusters)" },
};
