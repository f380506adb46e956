/**
 * The encryption that `qcow` has, and `qcow2` had before LUKS: AES in CBC mode
 * with a key of 16 bytes, by the place of a sector on the disk.
 *
 * @module
 */
import type { CreateContext, OpenContext } from "../driver.ts";
import { Encryption } from "../encryption.ts";
import { aes } from "./ciphers.ts";
import { findPassphrase } from "./passphrase.ts";
import { cbc, plain64 } from "./sector_ciphers.ts";

/**
 * What encrypts an image with the passphrase of a secret.
 *
 * @param id The name of the secret; `undefined` for what the user offers.
 * @throws {BlockError} EINVAL if there is none, or if it is no text.
 */
export async function legacyEncryption(
  id: string | undefined,
  { secret }: OpenContext | CreateContext,
): Promise<Encryption> {
  const key = keyOf(await findPassphrase(secret, id, "encrypt.key-secret"));
  return new Encryption(cbc(await aes(key), plain64), "offset");
}

/** The key that a passphrase stands for: its first 16 bytes, or zeroes after. */
function keyOf(passphrase: Uint8Array): Uint8Array {
  const key = new Uint8Array(16);
  key.set(passphrase.subarray(0, 16));
  return key;
}
