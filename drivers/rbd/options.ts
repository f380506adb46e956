/**
 * The driver's traits and options, needed before it is loaded.
 *
 * @module
 */
import type { OptionTable } from "../../core/options.ts";
import type { DriverTraits } from "../../core/traits.ts";
import { parseRbdFilename } from "./names.ts";

/** The options of new images. */
export const RBD_CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  cluster_size: { type: "size", help: "RBD object size" },
  object_size: { type: "size", help: "The same, in Ceph's words" },
  clone_from: {
    type: "string",
    help: "Protected snapshot to be a clone of: POOL/NAMESPACE/IMAGE@SNAPSHOT",
  },
  "encrypt.format": {
    type: "string",
    unsupported: true,
    help: "Encrypt the image, format choices: 'luks', 'luks2'",
  },
  "encrypt.cipher-alg": {
    type: "string",
    unsupported: true,
    help:
      "Name of encryption cipher algorithm (allowed values: aes-128, aes-256)",
  },
  "encrypt.key-secret": {
    type: "string",
    unsupported: true,
    help: "ID of secret providing LUKS passphrase",
  },
  "password-secret": {
    type: "string",
    unsupported: true,
    help: "ID of secret providing the password",
  },
};

/** The driver's traits. */
export const RBD_TRAITS: DriverTraits = {
  name: "rbd",
  role: "protocol",
  createOptions: RBD_CREATE_OPTIONS,
  // Creating an existing image fails.
  createsZeroes: true,
  strongOptions: [
    "pool",
    "namespace",
    "image",
    "conf",
    "snapshot",
    "user",
    "server.",
  ],
  parseFilename: parseRbdFilename,
  plainName: () => undefined,
};
