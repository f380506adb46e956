/**
 * Encrypted images, of the legacy kind: AES in CBC mode with a key of 16
 * bytes. (Specification: "Data Encryption", method 1.) Guest data is
 * encrypted in sectors of 512 bytes by their place on the disk; tables,
 * snapshots and compressed clusters are not.
 *
 * @module
 */
import {
  allocate,
  copyIntoVector,
  flattenVector,
  type IoVector,
  SECTOR_SIZE,
  sliceVector,
  vectorLength,
} from "../../core/bytes.ts";
import type { SectorCipher } from "../../core/ciphers.ts";
import type { CreateContext, OpenContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode, ReadFlags, WriteFlags } from "../../core/node.ts";
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
  return new Encryption(cbcPlain64(aes(key)));
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

/** Bytes encrypted at a time: many sectors make good use of the cipher. */
const BATCH = 256 * 1024;
/** Buffers kept for writes under way together. */
const KEPT_BUFFERS = 4;

/** Moves guest data between the caller and the file, where it is encrypted. */
export class Encryption {
  readonly #cipher: SectorCipher;
  readonly #buffers: Uint8Array[] = [];

  constructor(cipher: SectorCipher) {
    this.#cipher = cipher;
  }

  /** Read whole sectors from `hostOffset` of the file and decrypt them. */
  async readv(
    file: BlockNode,
    hostOffset: number,
    guestOffset: number,
    iov: IoVector,
  ): Promise<void> {
    let sector = sectorOf(guestOffset, vectorLength(iov));
    await file.readv(hostOffset, iov);
    if (!iov.every((part) => part.length % SECTOR_SIZE === 0)) {
      const flat = flattenVector(iov);
      this.#cipher.decrypt(flat, sector);
      return copyIntoVector(iov, 0, flat);
    }
    for (const part of iov) {
      this.#cipher.decrypt(part, sector);
      sector += part.length / SECTOR_SIZE;
    }
  }

  /**
   * Encrypt whole sectors and write them to `hostOffset` of the file. The
   * caller's buffers stay as they are.
   */
  async writev(
    file: BlockNode,
    hostOffset: number,
    guestOffset: number,
    iov: IoVector,
  ): Promise<void> {
    const length = vectorLength(iov);
    const sector = sectorOf(guestOffset, length);
    const buffer = this.#buffers.pop() ?? allocate(BATCH);
    try {
      for (let done = 0; done < length; done += BATCH) {
        const part = sliceVector(iov, done, Math.min(BATCH, length - done));
        const batch = buffer.subarray(0, vectorLength(part));
        let at = 0;
        for (const bytes of part) {
          batch.set(bytes, at);
          at += bytes.length;
        }
        this.#cipher.encrypt(batch, sector + done / SECTOR_SIZE);
        await file.writev!(hostOffset + done, [batch]);
      }
    } finally {
      if (this.#buffers.length < KEPT_BUFFERS) this.#buffers.push(buffer);
    }
  }
}

function sectorOf(guestOffset: number, length: number): number {
  if (guestOffset % SECTOR_SIZE !== 0 || length % SECTOR_SIZE !== 0) {
    throw invalid("Encrypted data is read and written in whole sectors");
  }
  return guestOffset / SECTOR_SIZE;
}

/** Where guest data lies, and how. */
export interface DataPlace {
  readonly file: BlockNode;
  readonly encryption?: Encryption;
}

/** Read guest data from its place in the file. */
export function readData(
  { file, encryption }: DataPlace,
  hostOffset: number,
  guestOffset: number,
  iov: IoVector,
  flags?: ReadFlags,
): Promise<void> {
  return encryption
    ? encryption.readv(file, hostOffset, guestOffset, iov)
    : file.readv(hostOffset, iov, flags);
}

/** Write guest data to its place in the file. */
export function writeData(
  { file, encryption }: DataPlace,
  hostOffset: number,
  guestOffset: number,
  iov: IoVector,
  flags?: WriteFlags,
): Promise<void> {
  return encryption
    ? encryption.writev(file, hostOffset, guestOffset, iov)
    : file.writev!(hostOffset, iov, flags);
}
