/**
 * Encrypted images, of the legacy kind: AES in CBC mode with a key of 16
 * bytes. (Specification: "Data Encryption", method 1.) Guest data is
 * encrypted in sectors of 512 bytes by their place on the disk; tables,
 * snapshots and compressed clusters are not.
 *
 * @module
 */
import type { CreateContext, OpenContext } from "../../core/driver.ts";
import { Encryption } from "../../core/encryption.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { OptionTable, OptionValues } from "../../core/options.ts";
import { Crypt } from "./format.ts";
import type { Header } from "./header.ts";

const FORMATS = ["aes", "luks"] as const;

/** The options of `open` below `encrypt`. */
export const ENCRYPT_OPTIONS: OptionTable = {
  "encrypt.format": {
    type: "enum",
    values: FORMATS,
    unsupported: ["luks"],
    help: "Encryption format that the image must have",
  },
  "encrypt.key-secret": {
    type: "string",
    help: "ID of the secret that holds the key",
  },
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
    unsupported: ["luks"],
    help: "Encrypt the image, format choices: 'aes'",
  },
  "encrypt.key-secret": {
    type: "string",
    help: "ID of secret providing qcow AES key",
  },
};

/** What an image to be opened is encrypted with, if it is. */
export async function openEncryption(
  header: Header,
  options: OptionValues,
  context: OpenContext,
): Promise<Encryption | undefined> {
  const format = options["encrypt.format"] as string | undefined;
  const secret = options["encrypt.key-secret"] as string | undefined;
  if (header.cryptMethod === Crypt.NONE) {
    if (format === undefined) return undefined;
    throw invalid(
      `No encryption in image header, but options specified format '${format}'`,
    );
  }
  const actual = header.cryptMethod === Crypt.AES ? "aes" : "luks";
  if (format !== undefined && format !== actual) {
    throw invalid(
      `Header reported '${actual}' encryption format but options specify '${format}'`,
    );
  }
  if (context.purpose === "info") return undefined;
  return await withKey(secret, context);
}

/** The encryption that the options of `create` ask for, if they do. */
export async function createEncryption(
  options: OptionValues,
  context: CreateContext,
): Promise<Encryption | undefined> {
  const { encryption } = options;
  const format = options["encrypt.format"] as string | undefined;
  const secret = options["encrypt.key-secret"] as string | undefined;
  if (encryption && format !== undefined) {
    throw invalid(
      "'encrypt.format' and its alias 'encryption' can't be used at the same time",
    );
  }
  if (!encryption && format === undefined) {
    if (secret === undefined) return undefined;
    throw invalid("Parameter 'encrypt.format' is missing");
  }
  if (format === "luks") {
    throw new BlockError("ENOTSUP", "LUKS encryption is not supported");
  }
  return await withKey(secret, context);
}

async function withKey(
  id: string | undefined,
  context: OpenContext | CreateContext,
): Promise<Encryption> {
  const secret = await context.secret(id);
  if (!secret) {
    throw invalid("Parameter 'encrypt.key-secret' is required for cipher");
  }
  const key = keyOf(secret, id);
  const { aes, cbcPlain64 } = await import("../../core/ciphers.ts");
  return new Encryption(cbcPlain64(await aes(key)));
}

/** The key that a passphrase stands for: its first 16 bytes, or zeroes after. */
function keyOf(secret: Uint8Array, id: string | undefined): Uint8Array {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(secret);
  } catch (cause) {
    const name = id === undefined ? "" : ` ${id}`;
    throw new BlockError(
      "EINVAL",
      `Data from secret${name} is not valid UTF-8`,
      {
        cause,
      },
    );
  }
  const end = secret.indexOf(0);
  const key = new Uint8Array(16);
  key.set(secret.subarray(0, end < 0 ? 16 : Math.min(end, 16)));
  return key;
}
