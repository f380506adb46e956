/**
 * The options of encrypted disks. What uses them is loaded when it is used.
 *
 * @module
 */
import {
  LUKS_AMEND_OPTIONS,
  LUKS_CREATE_OPTIONS,
  LUKS_OPEN_OPTIONS,
} from "../../core/crypto/luks_option_tables.ts";
import type { OptionTable } from "../../core/options.ts";

/** The options of `open`. */
export const OPEN_OPTIONS: OptionTable = {
  "key-secret": {
    type: "string",
    help: "ID of the secret that provides the keyslot passphrase",
  },
  ...LUKS_OPEN_OPTIONS,
};

/** The options of `create`, in the order in which they are shown. */
export const CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  "key-secret": {
    type: "string",
    help: "ID of the secret that provides the keyslot passphrase",
  },
  ...LUKS_CREATE_OPTIONS,
  "detached-header": {
    type: "boolean",
    help: "Create a detached LUKS header",
  },
  preallocation: {
    type: "enum",
    values: ["off", "falloc", "full"],
    help: "Preallocation mode (allowed values: off, falloc, full)",
  },
};

/** The traits of the driver, needed before it is loaded. */
export const LUKS_FACTS = {
  name: "luks",
  role: "format",
  openOptions: OPEN_OPTIONS,
  strongOptions: ["key-secret"],
  createOptions: CREATE_OPTIONS,
  // Zeroes in the file are not what zeroes of the disk are encrypted to.
  createsZeroes: false,
  amendOptions: LUKS_AMEND_OPTIONS,
} as const;
