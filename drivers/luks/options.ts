/**
 * Option tables of encrypted disks. The code that uses them is loaded on
 * demand.
 *
 * @module
 */
import {
  LUKS_AMEND_OPTIONS,
  LUKS_CREATE_OPTIONS,
  LUKS_OPEN_OPTIONS,
} from "../../core/crypto/luks_option_tables.ts";
import type { OptionTable } from "../../core/options.ts";

/** Options of `open`. */
export const OPEN_OPTIONS: OptionTable = {
  "key-secret": {
    type: "string",
    help: "ID of the secret that provides the keyslot passphrase",
  },
  ...LUKS_OPEN_OPTIONS,
};

/** Options of `create`, in the order in which help shows them. */
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
};

/** The traits of the driver, needed before it is loaded. */
export const LUKS_TRAITS = {
  name: "luks",
  role: "format",
  openOptions: OPEN_OPTIONS,
  strongOptions: ["key-secret"],
  createOptions: CREATE_OPTIONS,
  // Zeroes in the file do not decrypt to zeroes.
  createsZeroes: false,
  amendOptions: LUKS_AMEND_OPTIONS,
} as const;
