/**
 * The options of encrypted images. What encrypts is loaded when it is used.
 *
 * @module
 */
import {
  LUKS_CREATE_OPTIONS,
  LUKS_OPEN_OPTIONS,
  withPrefix,
} from "../../core/crypto/luks_option_tables.ts";
import type { OptionTable } from "../../core/options.ts";

/** The kinds of encryption. */
export const FORMATS = ["aes", "luks"] as const;

/** The options of `open` below `encrypt`. */
export const ENCRYPT_OPTIONS: OptionTable = {
  "encrypt.format": {
    type: "string",
    help: "Encryption format that the image must have: 'aes', 'luks'",
  },
  "encrypt.key-secret": {
    type: "string",
    help: "ID of secret providing qcow AES key or LUKS passphrase",
  },
  ...withPrefix("encrypt.", LUKS_OPEN_OPTIONS),
};

/** The options of `create`, before all others. */
export const ENCRYPT_CREATE_OPTIONS: OptionTable = {
  encryption: {
    type: "boolean",
    help:
      "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
  },
  "encrypt.format": {
    type: "enum",
    values: FORMATS,
    help: "Encrypt the image, format choices: 'aes', 'luks'",
  },
  "encrypt.key-secret": {
    type: "string",
    help: "ID of secret providing qcow AES key or LUKS passphrase",
  },
  ...withPrefix("encrypt.", LUKS_CREATE_OPTIONS),
};
