/**
 * The encryption of `qcow`, and of `qcow2` before LUKS: AES-128 in CBC mode, by
 * a sector's offset on the disk.
 *
 * @module
 */
import type { CreateContext, OpenContext } from "../driver.ts";
import { Encryption } from "../encryption.ts";
import { aes } from "./ciphers.ts";
import { findPassphrase } from "./passphrase.ts";
import { cbc, plain64 } from "./sector_ciphers.ts";

/**
 * The encryption of an image with the passphrase in a secret.
 *
 * @param id Id of the secret; `undefined` for a nameless one.
 * @throws {BlockError} EINVAL if there is none, or if it is not text.
 */
export async function legacyEncryption(
  id: string | undefined,
  { secret }: OpenContext | CreateContext,
): Promise<Encryption> {
  const key = keyOf(await findPassphrase(secret, id, "encrypt.key-secret"));
  return new Encryption(cbc(await aes(key), plain64), "offset");
}

/** The key for a passphrase: its first 16 bytes, padded with zeroes. */
function keyOf(passphrase: Uint8Array): Uint8Array {
  const key = new Uint8Array(16);
  key.set(passphrase.subarray(0, 16));
  return key;
}
