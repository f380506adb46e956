/**
 * Secrets: the keys and passwords of encrypted images.
 *
 * @module
 */
import { BlockError, invalid } from "./errors.ts";
import { shortened, valueText } from "./values.ts";

/**
 * A request for a secret.
 *
 * @category Security
 */
export interface SecretRequest {
  /** The secret's name; absent if the description of the stack names none. */
  readonly id?: string;
  /** The image that needs it. */
  readonly filename: string;
}

/**
 * Where secrets come from: an object of secrets by name, or a function that
 * finds or asks for one and returns `undefined` if it has none. Text is encoded
 * as UTF-8.
 *
 * @example
 * ```ts
 * import { createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 * const file = { driver: "memory", store: new MemoryStore() };
 * const secrets = { sec0: "correct horse" };
 * const encrypt = { format: "aes", "key-secret": "sec0" };
 * await createImage("qcow2", file, {
 *   size: 1 << 20,
 *   "encrypt.format": "aes",
 *   "encrypt.key-secret": "sec0",
 * }, { secrets });
 * await using image = await openImage(
 *   { driver: "qcow2", encrypt, file },
 *   { secrets },
 * );
 * await image.write(0, new TextEncoder().encode("hidden"));
 * ```
 *
 * @category Security
 */
export type SecretSource =
  | { readonly [id: string]: string | Uint8Array }
  | ((
    request: SecretRequest,
  ) => Secret | undefined | Promise<Secret | undefined>);

/**
 * A password or a key; text is encoded as UTF-8.
 *
 * @category Security
 */
export type Secret = string | Uint8Array;

/**
 * Find a secret.
 *
 * @returns its bytes; `undefined` if the request names no secret and none is
 * offered.
 * @throws {BlockError} EINVAL if there is no secret with that name.
 */
export async function findSecret(
  source: SecretSource | undefined,
  request: SecretRequest,
): Promise<Uint8Array | undefined> {
  const { id } = request;
  const secret = typeof source === "function"
    ? await source(request)
    : source && id !== undefined && Object.hasOwn(source, id)
    ? source[id]
    : undefined;
  if (secret === undefined && id !== undefined) {
    throw new BlockError("EINVAL", `No secret with id '${shortened(id, 80)}'`);
  }
  if (secret !== undefined && !isSecret(secret)) {
    throw invalid(
      `The secret of '${request.filename}' must be text or bytes, not ${
        valueText(secret)
      }`,
    );
  }
  return typeof secret === "string" ? new TextEncoder().encode(secret) : secret;
}

function isSecret(value: unknown): value is Secret {
  return typeof value === "string" || value instanceof Uint8Array;
}
