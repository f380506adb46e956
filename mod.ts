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

export * from "./core/create.ts";
export { drain } from "./core/drain.ts";
export type * from "./core/driver.ts";
export {
  asBlockError,
  BlockError,
  type BlockErrorOptions,
  type ErrorCode,
  strerror,
} from "./core/errors.ts";
export type { ChainExtent } from "./core/extents.ts";
export type { IoVector } from "./core/bytes.ts";
export type { Gate, ImplicitOpen } from "./core/gate.ts";
export {
  insertFilter,
  removeFilter,
  replaceChild,
} from "./core/graph_changes.ts";
export {
  type ByteCounters,
  Image,
  openImage,
  type StreamOptions,
} from "./core/image.ts";
export type { HeldBrowserFile, HeldFile, HeldSource } from "./core/held.ts";
export { MemoryStore } from "./core/memory_store.ts";
export type {
  CacheMode,
  OpenOptions,
  UnlockProgress,
} from "./core/open_options.ts";
export { ImageBitmaps } from "./core/bitmaps.ts";
export { bench, type BenchOptions } from "./core/jobs/bench.ts";
export * from "./core/jobs/commit.ts";
export * from "./core/jobs/compare.ts";
export { convert, type ConvertOptions } from "./core/jobs/convert.ts";
export {
  convertStream,
  type ConvertStreamOptions,
} from "./core/jobs/convert_stream.ts";
export { measure, type MeasureOptions } from "./core/jobs/measure.ts";
export { streamImage, type StreamImageOptions } from "./core/jobs/stream.ts";
export * from "./core/jobs/rebase.ts";
export type * from "./core/node.ts";
export {
  type OptionSpec,
  type OptionTable,
  type OptionValues,
  parseKeyValueList,
  parseSize,
} from "./core/options.ts";
export type { ReopenOptions } from "./core/reopen.ts";
export { ACCESS, ALL_ACCESS } from "./core/permissions.ts";
export {
  findDriver,
  getDriver,
  listDrivers,
  loadDriver,
  registerDriver,
} from "./core/registry.ts";
export type { Secret, SecretRequest, SecretSource } from "./core/secrets.ts";
export { parseStack, type Source, type StackObject } from "./core/spec.ts";
export type * from "./core/traits.ts";
export {
  ThrottleGroup,
  type ThrottleKind,
  type ThrottleLimit,
  type ThrottleLimits,
} from "./core/throttle_group.ts";
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
