/**
 * Credentials for encrypted connections: certificates and the authorities to
 * trust, or keys shared in advance.
 *
 * @module
 */
import { BlockError, invalid } from "./errors.ts";
import { platform } from "./platform/mod.ts";
import type { ByteStream } from "./platform/sockets.ts";
import type { SharedKeys, Tls, TlsIdentity } from "./platform/tls.ts";
import { parseSharedKeys } from "./shared_keys.ts";

/**
 * What {@linkcode TlsCredentials} are made of: certificates, all in PEM, or
 * `keys`.
 *
 * @category Security
 */
export interface TlsCredentialsOptions extends TlsIdentity {
  /** Which end of a connection they belong to. */
  readonly endpoint: "client" | "server";
  /**
   * Keys shared in advance (PSK), instead of certificates: the text of a file
   * that GnuTLS's `psktool` makes, a line `name:key` for each user, with the
   * key in hexadecimal. They need Node.js; Deno and Bun have none.
   */
  readonly keys?: string;
  /** Which of the keys a client has. Default: `qemu`. */
  readonly username?: string;
}

/**
 * Credentials for one end of connections.
 *
 * @example
 * ```ts ignore
 * import { openImage, TlsCredentials } from "@bdrv/bdrv";
 * const ca = await Deno.readTextFile("ca-cert.pem");
 * await using disk = await openImage({
 *   driver: "nbd",
 *   server: { type: "inet", host: "storage.example", port: "10809" },
 *   "tls-creds": new TlsCredentials({ endpoint: "client", ca }),
 * });
 * ```
 *
 * @category Security
 */
export class TlsCredentials {
  /** Which end of a connection they belong to. */
  readonly endpoint: "client" | "server";
  readonly #identity: TlsIdentity | SharedKeys;

  /**
   * Create credentials. Certificates and their keys are not checked before they
   * are used.
   *
   * @throws {BlockError} EINVAL if a server has no certificate, or `keys` are
   * malformed or lack the client's; ENOTSUP if the runtime has no `keys`.
   */
  constructor(
    { endpoint, keys, username, ...identity }: TlsCredentialsOptions,
  ) {
    const isServer = endpoint === "server";
    this.endpoint = endpoint;
    if (keys !== undefined) {
      if (Object.values(identity).some((value) => value !== undefined)) {
        throw invalid("Keys shared in advance replace certificates");
      }
      this.#identity = sharedKeys(isServer, keys, username);
      return;
    }
    if (username !== undefined) throw invalid("A username needs keys");
    if (isServer && !(identity.certificate && identity.key)) {
      throw invalid("A server needs a certificate and its key");
    }
    this.#identity = identity;
  }

  /** Whether they are certificates rather than keys shared in advance. */
  get hasCertificates(): boolean {
    return !("keys" in this.#identity);
  }

  /**
   * Encrypt a connection as its client. The server's certificate must be for
   * `host`; with keys, there is none.
   *
   * @throws {BlockError} EACCES if it is not, ENOTSUP if the runtime cannot.
   */
  async connect(stream: ByteStream, host: string): Promise<ByteStream> {
    return await (await tls()).connect(stream, this.#identity, host);
  }

  /**
   * Encrypt a connection as its server.
   *
   * @param authorize Whether to accept a client, by the subject of its
   * certificate as GnuTLS writes it: `O=Acme,CN=client`.
   * @throws {BlockError} EACCES if the client is not accepted or has no
   * certificate.
   */
  async accept(
    stream: ByteStream,
    authorize?: (name: string) => boolean,
  ): Promise<ByteStream> {
    return await (await tls()).accept(stream, this.#identity, authorize);
  }
}

function sharedKeys(
  isServer: boolean,
  text: string,
  username?: string,
): SharedKeys {
  if (!platform().hasSharedKeys) {
    throw new BlockError(
      "ENOTSUP",
      "TLS with keys shared in advance (PSK) needs Node.js; Deno and Bun have only certificates",
    );
  }
  const keys = parseSharedKeys(text);
  if (isServer) {
    if (username === undefined) return { keys };
    throw invalid("username should not be set when endpoint=server");
  }
  const key = keys.get(username ?? "qemu");
  if (key) return { keys: new Map([[username ?? "qemu", key]]) };
  throw invalid(`No key of user '${username ?? "qemu"}'`);
}

async function tls(): Promise<Tls> {
  const { tls } = platform();
  if (tls) return await tls();
  throw new BlockError("ENOTSUP", "This runtime cannot encrypt connections");
}

const known = new Map<string, TlsCredentials>();

/**
 * Register credentials under a name.
 *
 * @throws {BlockError} EEXIST if the name is taken.
 */
export function defineTlsCredentials(
  id: string,
  credentials: TlsCredentials,
): void {
  if (known.has(id)) {
    throw new BlockError(
      "EEXIST",
      `attempt to add duplicate property '${id}' to object (type 'container')`,
    );
  }
  known.set(id, credentials);
}

/**
 * Resolve the value of an option to credentials for one end: a name, or
 * credentials.
 *
 * @throws {BlockError} EINVAL if there are none, or only for the other end.
 */
export function findTlsCredentials(
  named: unknown,
  endpoint: "client" | "server",
): TlsCredentials {
  const found = named instanceof TlsCredentials
    ? named
    : known.get(String(named));
  if (!found) throw invalid(`No TLS credentials with id '${named}'`);
  if (found.endpoint === endpoint) return found;
  throw invalid(`Expected TLS credentials for a ${endpoint} endpoint`);
}
