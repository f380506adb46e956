/**
 * What a server has to offer.
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
  /** What it is, for people; may be empty. */
  readonly description: string;
  /** Bytes. */
  readonly size: number;
  /** Transmission flags, as the protocol numbers them; 0 if they are not told. */
  readonly flags: number;
  /** Sizes to which requests must keep, if the server tells. */
  readonly blockSizes?: BlockSizes;
  /** What can be asked of its ranges. */
  readonly contexts: readonly string[];
}

/**
 * How to speak to a server that lists its exports.
 *
 * @category Network
 */
export interface ListOptions {
  /** How the connection is encrypted. Default: not. */
  tls?: TlsCredentials;
  /** The name that the server's certificate must have. Default: `localhost`. */
  hostname?: string;
}

/**
 * List the exports of the server at the other end of a connection, which is
 * closed then.
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
