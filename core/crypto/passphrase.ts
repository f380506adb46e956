/**
 * Passphrases of encrypted images.
 *
 * @module
 */
import type { MeasureContext } from "../driver.ts";
import { BlockError } from "../errors.ts";

/** Finds a secret; `undefined` if none is named, and none is offered. */
export type SecretFinder = (
  id: string | undefined,
) => Promise<Uint8Array | undefined>;

/** Secrets for measuring, which asks nobody for what has no name. */
export function namedSecrets(context?: MeasureContext): SecretFinder {
  return async (id) => id === undefined ? undefined : await context?.secret(id);
}

/**
 * A passphrase by the name of its secret.
 *
 * @param option The option that names it, for the message if it is missing.
 * @throws {BlockError} EINVAL if there is none, or if it is no text.
 */
export async function findPassphrase(
  find: SecretFinder,
  id: string | undefined,
  option: string,
): Promise<Uint8Array> {
  const secret = await find(id);
  if (!secret) {
    throw new BlockError(
      "EINVAL",
      `Parameter '${option}' is required for cipher`,
    );
  }
  if (isText(secret)) return secret;
  const name = id === undefined ? "" : ` ${id}`;
  throw new BlockError(
    "EINVAL",
    `Data from secret${name} is not valid UTF-8`,
  );
}

/** Whether it is UTF-8 without zeroes, at which QEMU's would end. */
function isText(bytes: Uint8Array): boolean {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return !bytes.includes(0);
  } catch {
    return false;
  }
}
