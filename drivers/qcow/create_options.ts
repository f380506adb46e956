import type { OptionTable } from "../../core/options.ts";

/** Options of new qcow images. The code that uses them is loaded on demand. */
export const QCOW_CREATE_OPTIONS: OptionTable = {
  size: { type: "size", help: "Virtual disk size" },
  backing_file: { type: "string", help: "File name of a base image" },
  backing_fmt: { type: "string", help: "Format of the backing image" },
  encryption: {
    type: "boolean",
    help:
      "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
  },
  "encrypt.format": {
    type: "string",
    help: "Encrypt the image, format choices: 'aes'",
  },
  "encrypt.key-secret": {
    type: "string",
    help: "ID of the secret that provides the AES encryption key",
  },
};

/** Options of opening them. */
export const QCOW_OPEN_OPTIONS: OptionTable = {
  "encrypt.format": {
    type: "string",
    help: "Encryption format that the image must have: 'aes'",
  },
  "encrypt.key-secret": {
    type: "string",
    help: "ID of secret providing qcow AES key",
  },
};
