/**
 * The objects of `--object`: secrets and throttle groups.
 *
 * @module
 */
import { nativeAes } from "../core/crypto/ciphers.ts";
import { asBlockError, BlockError, invalid } from "../core/errors.ts";
import { notAmong, parseKeyValueList } from "../core/options.ts";
import { process } from "../core/platform/this_process.ts";
import type { SecretRequest } from "../core/secrets.ts";
import { parseJson } from "../core/spec.ts";
import {
  type Authorization,
  authorizationOf,
  AUTHZ_HELP,
} from "./authz_object.ts";
import {
  defineSharedKeysObject,
  defineTlsObject,
  SHARED_KEYS_HELP,
  TLS_HELP,
} from "./tls_object.ts";
import { defineThrottleObject, THROTTLE_HELP } from "./throttle_object.ts";

/** The text of `--object help`. */
const OBJECT_HELP =
  "List of user creatable objects:\n  authz-list\n  authz-simple\n  secret\n  throttle-group\n" +
  "  tls-creds-psk\n  tls-creds-x509\n";

/** The text of `--object secret,help`. */
const SECRET_HELP = `secret options:
  data=<string>
  file=<string>
  format=<QCryptoSecretFormat>
  iv=<string>
  keyid=<string>
`;

const SECRET_PROPERTIES = ["data", "file", "format", "iv", "keyid"];

/** The properties of one `--object`. */
type Properties = Map<string, string>;

/** The secrets of a command line. */
export class Secrets {
  readonly #secrets = new Map<string, Uint8Array>();
  readonly #authorizations = new Map<string, Authorization>();
  readonly #typed = new Map<string, Promise<Uint8Array | undefined>>();

  /**
   * Define an object from the argument of `--object`.
   *
   * @returns the help, if requested.
   */
  define(argument: string): string | undefined {
    const properties = argument.startsWith("{")
      ? propertiesOf(argument)
      : new Map(parseKeyValueList(argument, "qom-type"));
    const type = required(properties, "qom-type");
    if (type === "help") return OBJECT_HELP;
    const isHelp = properties.get("help") === "on";
    if (type === "throttle-group") {
      if (isHelp) return THROTTLE_HELP;
      defineThrottleObject(identifier(properties), properties);
      return undefined;
    }
    if (type === "tls-creds-x509") {
      if (isHelp) return TLS_HELP;
      const secret = (id: string) => this.#secrets.get(id);
      defineTlsObject(identifier(properties), properties, secret);
      return undefined;
    }
    if (type === "tls-creds-psk") {
      if (isHelp) return SHARED_KEYS_HELP;
      defineSharedKeysObject(identifier(properties), properties);
      return undefined;
    }
    if (type === "tls-creds-anon") {
      throw invalid("No runtime has tls-creds-anon: use tls-creds-x509");
    }
    if (type === "authz-simple" || type === "authz-list") {
      if (isHelp) return AUTHZ_HELP[type];
      const id = identifier(properties);
      this.#authorizations.set(id, authorizationOf(type, properties));
      return undefined;
    }
    if (type !== "secret") {
      throw notAmong(
        `Parameter 'qom-type' does not accept value '${type}'`,
        [
          ...["secret", "throttle-group", "tls-creds-x509"],
          ...["tls-creds-psk", "authz-simple", "authz-list"],
        ],
      );
    }
    if (isHelp) return SECRET_HELP;
    this.#add(properties);
    return undefined;
  }

  /**
   * Find a secret for opening or creating an image.
   *
   * @param ask Whether to ask the user if no secret is named.
   */
  find(
    request: SecretRequest,
    ask: boolean,
  ): Uint8Array | undefined | Promise<Uint8Array | undefined> {
    if (request.id !== undefined) return this.#secrets.get(request.id);
    return ask ? this.#askOnce(request) : undefined;
  }

  /** The rules of an `authz-…` object; `undefined` if there is none. */
  authorization(id: string): Authorization | undefined {
    return this.#authorizations.get(id);
  }

  #add(properties: Properties): void {
    const id = identifier(properties);
    for (const name of properties.keys()) {
      if (![...SECRET_PROPERTIES, "qom-type", "id"].includes(name)) {
        throw invalid(`Parameter '${name}' is unexpected`);
      }
    }
    const format = properties.get("format") ?? "raw";
    if (format !== "raw" && format !== "base64") {
      throw notAmong(
        `Parameter 'format' does not accept value '${format}'`,
        ["raw", "base64"],
      );
    }
    const keyId = properties.get("keyid");
    let value = readValue(properties);
    if (format === "base64") value = decodeBase64(latin1.decode(value));
    if (keyId !== undefined) {
      value = decrypt(value, this.#masterKey(keyId), properties.get("iv"));
    }
    if (this.#secrets.has(id)) {
      throw invalid(
        `attempt to add duplicate property '${id}' to object (type 'container')`,
      );
    }
    this.#secrets.set(id, value);
  }

  #masterKey(id: string): Uint8Array {
    const key = this.#secrets.get(id);
    if (!key) throw invalid(`No secret with id '${id}'`);
    if (key.length !== 32) {
      throw invalid("Key should be 32 bytes in length");
    }
    return key;
  }

  /** Ask once for an image that is created and then opened. */
  #askOnce({ filename }: SecretRequest): Promise<Uint8Array | undefined> {
    let typed = this.#typed.get(filename);
    if (!typed) this.#typed.set(filename, typed = ask(filename));
    return typed;
  }
}

const latin1 = new TextDecoder("latin1");

async function ask(filename: string): Promise<Uint8Array | undefined> {
  const answer = await process.askSecret(`Password of '${filename}':`);
  return answer === null ? undefined : new TextEncoder().encode(answer);
}

function propertiesOf(text: string): Properties {
  const properties: Properties = new Map();
  for (const [name, value] of Object.entries(parseJson(text) as object)) {
    if (typeof value !== "string") {
      throw invalid(
        `Invalid parameter type for '${name}', expected: string`,
      );
    }
    properties.set(name, value);
  }
  return properties;
}

function identifier(properties: Properties): string {
  const id = required(properties, "id");
  if (/^[a-z][-._0-9a-z]*$/i.test(id)) return id;
  throw invalid(
    "Parameter 'id' expects an identifier",
    "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
  );
}

function required(properties: Properties, name: string): string {
  const value = properties.get(name);
  if (value === undefined) {
    throw invalid(`Parameter '${name}' is missing`);
  }
  return value;
}

function readValue(properties: Properties): Uint8Array {
  const file = properties.get("file");
  const data = properties.get("data");
  if (file !== undefined && data !== undefined) {
    throw invalid("'file' and 'data' are mutually exclusive");
  }
  if (data !== undefined) return new TextEncoder().encode(data);
  if (file === undefined) {
    throw invalid("Either 'file' or 'data' must be provided");
  }
  try {
    return process.readFile(file);
  } catch (error) {
    const { message, hint } = asBlockError(error);
    throw invalid(
      `Unable to read ${file}: Failed to open file “${file}”: ${message}`,
      hint,
    );
  }
}

/** Decode as QEMU does: line ends are skipped, padding may be missing. */
function decodeBase64(text: string): Uint8Array {
  if (!/^[A-Za-z0-9+/=\n]*$/.test(text)) {
    throw invalid("Base64 data contains invalid characters");
  }
  const digits = text.replace(/[=\n]/g, "");
  const whole = digits.length % 4 === 1 ? digits.slice(0, -1) : digits;
  return Uint8Array.from(atob(whole), (char) => char.charCodeAt(0));
}

/** AES-256 in CBC mode, with PKCS#7 padding. */
function decrypt(
  data: Uint8Array,
  key: Uint8Array,
  ivText: string | undefined,
): Uint8Array {
  if (ivText === undefined) {
    throw invalid("IV is required to decrypt secret");
  }
  const iv = decodeBase64(ivText);
  if (iv.length !== 16) {
    throw invalid(
      `IV should be 16 bytes in length not ${iv.length}`,
    );
  }
  if (data.length % 16 !== 0) {
    throw invalid(
      `Length ${data.length} must be a multiple of block size 16`,
    );
  }
  const cipher = nativeAes(key);
  if (!cipher) throw new BlockError("ENOTSUP");
  const mixed = cipher.decrypt(new Uint32Array(data.slice().buffer));
  const plain = new Uint8Array(mixed.buffer, mixed.byteOffset, data.length)
    .map((byte, i) => byte ^ (i < 16 ? iv[i] : data[i - 16]));
  const padding = plain.at(-1) ?? 0;
  if (padding > 16 || padding > plain.length) {
    throw invalid(
      `Incorrect number of padding bytes (${padding}) found on decrypted data`,
    );
  }
  return plain.subarray(0, plain.length - padding);
}
