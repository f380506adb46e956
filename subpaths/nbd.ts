/**
 * Network block devices: importing this registers the driver `nbd`; it exports
 * the server, too.
 *
 * @module
 */
import { provideDriver } from "../core/registry.ts";
import { nbdDriver } from "../drivers/nbd/driver.ts";

provideDriver(nbdDriver);

export type {
  ByteStream,
  Listener,
  SocketAddress,
} from "../core/platform/sockets.ts";
export type { DirtyRange, NbdBitmap } from "../drivers/nbd/export.ts";
export type { BlockSizes } from "../drivers/nbd/wire.ts";
export {
  TlsCredentials,
  type TlsCredentialsOptions,
} from "../core/tls_credentials.ts";
export type { TlsIdentity } from "../core/platform/tls.ts";
export {
  listExports,
  type ListOptions,
  type NbdListing,
} from "../drivers/nbd/listing.ts";
export type { WebStreams } from "../drivers/nbd/bytes.ts";
export {
  NbdServer,
  type NbdServerOptions,
  type NbdTransport,
  serveNbd,
} from "../drivers/nbd/server.ts";
export { nbdDriver };
