/**
 * Listing a server's exports.
 *
 * @module
 */
import type { ByteStream } from "../../core/platform/sockets.ts";
import type { TlsCredentials } from "../../core/tls_credentials.ts";
import { ClientHandshake } from "./client_handshake.ts";
import type { BlockSizes } from "./wire.ts";

/**
 * An export of a server.
 *
 * @category Network
 */
export interface NbdListing {
  /** The name that clients ask for. */
  readonly name: string;
  /** A description for people; may be empty. */
  readonly description: string;
  /** Bytes. */
  readonly size: number;
  /** Transmission flags of the protocol; 0 if not reported. */
  readonly flags: number;
  /** Block size constraints, if reported. */
  readonly blockSizes?: BlockSizes;
  /** Metadata contexts. */
  readonly contexts: readonly string[];
}

/**
 * How to connect to a server for listing.
 *
 * @category Network
 */
export interface ListOptions {
  /** TLS credentials. Default: no encryption. */
  tls?: TlsCredentials;
  /**
   * The name that the server's certificate must be for. Default: `localhost`.
   */
  hostname?: string;
}

/**
 * List the exports of the server at the other end of a connection, and close
 * it.
 *
 * @throws {BlockError} if the server does not list them.
 *
 * @example
 * ```ts ignore
 * import { listExports } from "@bdrv/bdrv";
 * const exports = await listExports(await Deno.connect({ port: 10809 }));
 * console.log(exports.map(({ name, size }) => `${name}: ${size}`));
 * ```
 *
 * @category Network
 */
export async function listExports(
  stream: ByteStream,
  { tls, hostname = "localhost" }: ListOptions = {},
): Promise<NbdListing[]> {
  const handshake = new ClientHandshake(stream, {
    exportName: "",
    replies: "structured",
    tls: tls && { connect: (stream) => tls.connect(stream, hostname) },
  });
  try {
    const exports = await handshake.list();
    return exports.map(({ name, info, contexts }) => ({
      name,
      ...info,
      contexts,
    }));
  } finally {
    await handshake.abandon();
  }
}
