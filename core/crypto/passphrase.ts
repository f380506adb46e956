/**
 * Passphrases of encrypted images.
 *
 * @module
 */
import type { MeasureContext } from "../driver.ts";
import { BlockError } from "../errors.ts";

/** Finds a secret; `undefined` if none is named and none is offered. */
export type SecretFinder = (
  id: string | undefined,
) => Promise<Uint8Array | undefined>;

/** Secrets for measuring, where nobody is asked for a nameless one. */
export function namedSecrets(context?: MeasureContext): SecretFinder {
  return async (id) => id === undefined ? undefined : await context?.secret(id);
}

/**
 * A passphrase, by the id of its secret.
 *
 * @param option The option that gives the id, for the message if it is missing.
 * @throws {BlockError} EINVAL if there is none, or if it is not text.
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

/** Whether it is UTF-8 without zeroes, which would end it in QEMU. */
function isText(bytes: Uint8Array): boolean {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return !bytes.includes(0);
  } catch {
    return false;
  }
}
