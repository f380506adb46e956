/**
 * Encrypted images: which encryption the options and the header select, and the
 * legacy one, AES-128 in CBC mode. (Specification: "Data Encryption".) Guest
 * data is encrypted in sectors of 512 bytes; tables, snapshots and compressed
 * clusters are not. The IV depends on the sector's guest offset with the legacy
 * encryption, on its host offset with LUKS.
 *
 * @module
 */
import type { CreateContext, OpenContext } from "../../core/driver.ts";
import { Encryption, LOCKED } from "../../core/encryption.ts";
import { invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import type { OptionValues } from "../../core/options.ts";
import { ENCRYPT_CREATE_OPTIONS, type FORMATS } from "./option_tables.ts";
import { Crypt } from "./format.ts";
import type { Header } from "./header.ts";
import type { ImageEncryption } from "./luks.ts";

/** The encryption of an image to be opened, if it has any. */
export async function openEncryption(
  file: BlockNode,
  header: Header,
  options: OptionValues,
  context: OpenContext,
): Promise<ImageEncryption> {
  const format = options["encrypt.format"] as string | undefined;
  const secret = options["encrypt.key-secret"] as string | undefined;
  if (header.cryptMethod === Crypt.NONE) {
    if (format === undefined) return {};
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
  if (actual === "luks") {
    const { openLuks } = await import("./luks.ts");
    const time = options["encrypt.max-unlock-time"] as number | undefined;
    return await openLuks(file, header, { secret, time }, context);
  }
  if (context.withoutKeys) return { data: new Encryption(LOCKED, "offset") };
  return { data: await withAesKey(secret, context) };
}

/** The encryption of a new image, if the options ask for it. */
export async function createEncryption(
  options: OptionValues,
  context: CreateContext,
): Promise<"luks" | Encryption | undefined> {
  const format = encryptionFormat(options);
  if (format !== "aes") return format;
  return await withAesKey(
    options["encrypt.key-secret"] as string | undefined,
    context,
  );
}

/**
 * Which encryption the options of a new image ask for.
 *
 * @throws {BlockError} EINVAL if they contradict each other.
 */
export function encryptionFormat(
  options: OptionValues,
): typeof FORMATS[number] | undefined {
  const { encryption } = options;
  const given = options["encrypt.format"] as
    | typeof FORMATS[number]
    | "qcow"
    | undefined;
  const format = given === "qcow" ? "aes" : given;
  if (encryption && format !== undefined) {
    throw invalid(
      "'encrypt.format' and its alias 'encryption' can't be used at the same time",
    );
  }
  const others = Object.keys(ENCRYPT_CREATE_OPTIONS).filter((name) =>
    name.startsWith("encrypt.") && name !== "encrypt.format" &&
    options[name] !== undefined
  );
  if (!encryption && format === undefined) {
    if (others.length === 0) return undefined;
    throw invalid("Parameter 'encrypt.format' is missing");
  }
  if (format === "luks") return format;
  const unexpected = others.find((name) => name !== "encrypt.key-secret");
  if (unexpected === undefined) return "aes";
  throw invalid(`Parameter '${unexpected}' is unexpected`);
}

async function withAesKey(
  id: string | undefined,
  context: OpenContext | CreateContext,
): Promise<Encryption> {
  const { legacyEncryption } = await import("../../core/crypto/legacy_aes.ts");
  return await legacyEncryption(id, context);
}
