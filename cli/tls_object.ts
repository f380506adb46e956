/**
 * `--object tls-creds-x509` and `tls-creds-psk`: certificates, or keys shared in
 * advance, in a folder.
 *
 * @module
 */
import { parseBoolean } from "../core/options.ts";
import { asBlockError, invalid, strerror } from "../core/errors.ts";
import { process } from "../core/platform/this_process.ts";
import { parseSharedKeys } from "../core/shared_keys.ts";
import {
  defineTlsCredentials,
  TlsCredentials,
} from "../core/tls_credentials.ts";
import { CommandError } from "./command_error.ts";
import { checkCertificates } from "./tls_certificates.ts";

/** What `--object tls-creds-x509,help` prints. */
export const TLS_HELP = `tls-creds-x509 options:
  dir=<string>
  endpoint=<QCryptoTLSCredsEndpoint>
  passwordid=<string>
  verify-peer=<bool>
`;

/** What `--object tls-creds-psk,help` prints. */
export const SHARED_KEYS_HELP = `tls-creds-psk options:
  dir=<string>
  endpoint=<QCryptoTLSCredsEndpoint>
  username=<string>
  verify-peer=<bool>
`;

/**
 * Define the credentials that the properties of a `tls-creds-x509` describe.
 *
 * @param secret Finds a secret by its id.
 */
export function defineTlsObject(
  id: string,
  properties: ReadonlyMap<string, string>,
  secret: (id: string) => Uint8Array | undefined,
): void {
  const { endpoint, verifyPeer, dir } = parse(properties, "passwordid");
  const isServer = endpoint === "server";
  const passwordId = properties.get("passwordid");
  const password = passwordId === undefined ? undefined : secret(passwordId);
  if (passwordId !== undefined && !password) {
    throw invalid(`No secret with id '${passwordId}'`);
  }
  if (isThere(`${dir}/ca-crl.pem`)) {
    throw new CommandError(
      `Lists of revoked certificates are not supported: ${dir}/ca-crl.pem`,
    );
  }
  const needsCa = !isServer || verifyPeer;
  const ca = read(`${dir}/ca-cert.pem`, needsCa);
  const certificate = read(`${dir}/${endpoint}-cert.pem`, isServer);
  const key = read(`${dir}/${endpoint}-key.pem`, certificate !== undefined);
  const identity = {
    endpoint,
    ca,
    certificate,
    key,
    ...(password && { passphrase: new TextDecoder().decode(password) }),
  };
  checkCertificates({ ...identity, dir });
  defineTlsCredentials(id, new TlsCredentials({ ...identity, verifyPeer }));
}

/** Define the credentials that the properties of a `tls-creds-psk` describe. */
export function defineSharedKeysObject(
  id: string,
  properties: ReadonlyMap<string, string>,
): void {
  // Whoever has a key has been verified.
  const { endpoint, dir } = parse(properties, "username");
  const username = properties.get("username");
  const path = `${dir}/keys.psk`;
  const keys = read(path, true)!;
  const users = usersIn(path, keys);
  if (endpoint === "client" && !users.has(username ?? "qemu")) {
    throw invalid(
      `Username ${username ?? "qemu"} not found in PSK file ${path}`,
    );
  }
  defineTlsCredentials(id, new TlsCredentials({ endpoint, keys, username }));
}

function usersIn(path: string, text: string): ReadonlyMap<string, unknown> {
  try {
    return parseSharedKeys(text);
  } catch (error) {
    throw asBlockError(error).prefixed(`${path}: `);
  }
}

/** What all credentials have, and another property. */
function parse(properties: ReadonlyMap<string, string>, other: string) {
  const known = ["id", "qom-type", "dir", "endpoint", "verify-peer", other];
  for (const name of properties.keys()) {
    if (name === "priority") {
      throw invalid("Parameter 'priority' is not supported");
    }
    if (known.includes(name)) continue;
    throw invalid(`Parameter '${name}' is unexpected`);
  }
  const endpoint = properties.get("endpoint") ?? "client";
  if (endpoint !== "client" && endpoint !== "server") {
    throw invalid(`Parameter 'endpoint' does not accept value '${endpoint}'`);
  }
  const dir = properties.get("dir");
  if (dir === undefined) throw invalid("Missing 'dir' property value");
  const verifyPeer = flag(properties.get("verify-peer") ?? "on");
  return { endpoint, verifyPeer, dir } as const;
}

function flag(value: string): boolean {
  const parsed = parseBoolean(value);
  if (parsed !== undefined) return parsed;
  throw invalid("Parameter 'verify-peer' expects 'on' or 'off'");
}

function isThere(path: string): boolean {
  try {
    process.status(path);
    return true;
  } catch {
    return false;
  }
}

function read(path: string, isNeeded: boolean): string | undefined {
  if (!isNeeded && !isThere(path)) return undefined;
  try {
    return new TextDecoder().decode(process.readFile(path));
  } catch (error) {
    const { code, hint } = asBlockError(error);
    throw invalid(
      `Unable to access credentials ${path}: ${strerror(code)}`,
      hint,
    );
  }
}
