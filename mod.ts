/**
 * **bdrv**: a block layer for disk images. Drivers for raw, qcow2 and other
 * formats are stacked declaratively on files or memory, and used through one
 * handle.
 *
 * @example Read a disk inside a qcow2 image
 * ```ts ignore
 * import { openImage } from "@bdrv/bdrv";
 * await using image = await openImage("disk.qcow2", { readOnly: true });
 * const bootSector = await image.read(0, 512);
 * ```
 *
 * @module
 */
import "./drivers/all.ts";
import "./drivers/held.ts";
import "./drivers/preload.ts";

export * from "./subpaths/core.ts";
export type {
  ByteStream,
  Listener,
  SocketAddress,
} from "./core/platform/sockets.ts";
export type { DirtyRange, NbdBitmap } from "./drivers/nbd/export.ts";
export type { BlockSizes } from "./drivers/nbd/wire.ts";
export {
  TlsCredentials,
  type TlsCredentialsOptions,
} from "./core/tls_credentials.ts";
export type { TlsIdentity } from "./core/platform/tls.ts";
export {
  listExports,
  type ListOptions,
  type NbdListing,
} from "./drivers/nbd/listing.ts";
export type { WebStreams } from "./drivers/nbd/bytes.ts";
export {
  NbdServer,
  type NbdServerOptions,
  type NbdTransport,
  serveNbd,
} from "./drivers/nbd/server.ts";
