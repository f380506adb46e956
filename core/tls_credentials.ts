/**
 * What connections are encrypted with: certificates, and whom to trust.
 *
 * @module
 */
import { BlockError, invalid } from "./errors.ts";
import { platform } from "./platform/mod.ts";
import type { ByteStream } from "./platform/sockets.ts";
import type { Tls, TlsIdentity } from "./platform/tls.ts";

/** What {@linkcode TlsCredentials} are made of; all in PEM. */
export interface TlsCredentialsOptions extends TlsIdentity {
  /** Which end of a connection they are for. */
  readonly endpoint: "client" | "server";
}

/**
 * Certificates of one end of connections.
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
 */
export class TlsCredentials {
  /** Which end of a connection they are for. */
  readonly endpoint: "client" | "server";
  readonly #identity: TlsIdentity;

  /**
   * Take certificates and a key. They are looked at when they are used.
   *
   * @throws {BlockError} EINVAL if a server has no certificate.
   */
  constructor({ endpoint, ...identity }: TlsCredentialsOptions) {
    const isServer = endpoint === "server";
    if (isServer && !(identity.certificate && identity.key)) {
      throw invalid("A server needs a certificate and its key");
    }
    this.endpoint = endpoint;
    this.#identity = identity;
  }

  /**
   * Encrypt a connection as its client. The certificate of the server must be
   * that of `host`.
   *
   * @throws {BlockError} EACCES if it is not, ENOTSUP if the runtime cannot.
   */
  async connect(stream: ByteStream, host: string): Promise<ByteStream> {
    return await (await tls()).connect(stream, this.#identity, host);
  }

  /**
   * Encrypt a connection as its server.
   *
   * @param authorize Whether the client may come in for whom a certificate is,
   * by its distinguished name as GnuTLS writes it: `O=Acme,CN=client`.
   * @throws {BlockError} EACCES if it may not, or shows none.
   */
  async accept(
    stream: ByteStream,
    authorize?: (name: string) => boolean,
  ): Promise<ByteStream> {
    return await (await tls()).accept(stream, this.#identity, authorize);
  }
}

async function tls(): Promise<Tls> {
  const { tls } = platform();
  if (tls) return await tls();
  throw new BlockError("ENOTSUP", "This runtime cannot encrypt connections");
}

const known = new Map<string, TlsCredentials>();

/**
 * Make credentials known by a name.
 *
 * @throws {BlockError} EEXIST if others have it.
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
 * Credentials for one end, as an option has them: by name, or as they are.
 *
 * @throws {BlockError} EINVAL if there are none, or for the other end only.
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
