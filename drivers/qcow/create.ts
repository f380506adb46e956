/**
 * Creating qcow images.
 *
 * @module
 */
import { roundUp, SECTOR_SIZE } from "../../core/bytes.ts";
import { legacyEncryption } from "../../core/crypto/legacy_aes.ts";
import type { CreateContext } from "../../core/driver.ts";
import { invalid } from "../../core/errors.ts";
import { notAmong, type OptionValues } from "../../core/options.ts";
import { findDriver } from "../../core/registry.ts";
import { valueText } from "../../core/values.ts";
import { CRYPT, newHeader } from "./header.ts";

/** Create an image. */
export async function createQcow(
  options: OptionValues,
  context: CreateContext,
): Promise<void> {
  if (options.size === undefined) {
    throw invalid("Image creation needs a size parameter");
  }
  const format = options.backing_fmt as string | undefined;
  if (format !== undefined && !findDriver(format)) {
    throw invalid(`unrecognized backing format ${valueText(format)}`);
  }
  const isEncrypted = isToBeEncrypted(options);
  const { bytes, fileSize } = newHeader({
    size: roundUp(options.size as number, SECTOR_SIZE),
    backingFile: options.backing_file as string | undefined,
    cryptMethod: isEncrypted ? CRYPT.AES : CRYPT.NONE,
  });
  if (isEncrypted) {
    // Nothing is encrypted yet, but the secret must exist.
    const id = options["encrypt.key-secret"] as string | undefined;
    await legacyEncryption(id, context);
  }
  const file = await context.createFile(0);
  await file.writev!(0, [bytes]);
  await file.truncate!(fileSize);
}

/** @throws {BlockError} EINVAL if the options are invalid. */
function isToBeEncrypted(options: OptionValues): boolean {
  const { encryption } = options;
  const given = options["encrypt.format"] as string | undefined;
  const format = given === "qcow" ? "aes" : given;
  if (encryption && format !== undefined) {
    throw invalid(
      "'encrypt.format' and its alias 'encryption' can't be used at the same time",
    );
  }
  if (format === "luks") throw invalid("Unsupported encryption format");
  if (format !== undefined && format !== "aes") {
    throw notAmong(
      `Parameter 'format' does not accept value ${valueText(format)}`,
      ["aes"],
    );
  }
  const isWanted = encryption === true || format === "aes";
  if (!isWanted && options["encrypt.key-secret"] !== undefined) {
    throw invalid("Parameter 'encrypt.format' is missing");
  }
  return isWanted;
}
