/**
 * **bdrv**: a block layer for disk images. Drivers for raw, qcow2 and other
 * formats are stacked declaratively on files or memory, and used through one
 * handle.
 *
 * ## Open an image, and read its disk
 *
 * {@linkcode openImage} takes a file name and finds the format itself. The
 * {@linkcode Image} it returns is the *disk* inside the file, byte for byte: any
 * offset, any length.
 *
 * ```ts ignore
 * import { openImage } from "@bdrv/bdrv";
 * await using disk = await openImage("disk.qcow2", { readOnly: true });
 * const bootSector = await disk.read(0, 512);
 * ```
 *
 * ## Make one, and write to it
 *
 * {@linkcode createImage} makes an image. Instead of a file name, this takes the
 * *description* of a file: here one in memory, so that the example runs
 * anywhere, browsers included. `await using` closes the image in the end, which
 * makes all of it durable; {@linkcode Image.flush} does so at once.
 *
 * ```ts
 * import { createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 *
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: "10G", compression_type: "zstd" });
 * await using disk = await openImage({ driver: "qcow2", file });
 * await disk.write(5_000_000_001, new TextEncoder().encode("any byte"));
 * console.log(disk.size, file.store.size); // 10737418240 389641
 * ```
 *
 * ## What is where
 *
 * A new disk reads as zeroes and takes up next to nothing.
 * {@linkcode Image.extents} tells what is stored, and in which layer.
 *
 * ```ts
 * import { createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 *
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: "1M" });
 * await using disk = await openImage({ driver: "qcow2", file });
 * await disk.write(100_000, new Uint8Array(10).fill(1));
 * for await (const { offset, length, zero } of disk.extents()) {
 *   console.log(offset, length, zero);
 * }
 * // 0 65536 true
 * // 65536 65536 false
 * // 131072 917504 true
 * ```
 *
 * ## Overlays
 *
 * An overlay stores what differs from its backing file, which stays as it is. By
 * default an image may name only files in or below its own folder
 * ({@linkcode Gate}); a node that is already open needs no permission.
 *
 * ```ts
 * import { commit, createImage, MemoryStore, openImage } from "@bdrv/bdrv";
 *
 * const base = { driver: "memory", store: new MemoryStore(1 << 20) };
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: 1 << 20 });
 * await using overlay = await openImage({
 *   driver: "qcow2",
 *   file,
 *   backing: { driver: "raw", file: base, "read-only": false },
 * });
 * await overlay.write(0, new TextEncoder().encode("new"));
 * await commit(overlay); // Moves what is in the overlay into the base.
 * ```
 *
 * ## Jobs
 *
 * {@linkcode convert}, {@linkcode compare}, {@linkcode commit},
 * {@linkcode rebase} and {@linkcode measure} work on any disks. They report
 * their progress, and end when a signal says so.
 *
 * ```ts
 * import {
 *   compare, convert, createImage, MemoryStore, openImage,
 * } from "@bdrv/bdrv";
 *
 * const [from, to] = [new MemoryStore(1 << 20), new MemoryStore()]
 *   .map((store) => ({ driver: "memory", store }));
 * await createImage("vmdk", to, { size: 1 << 20 });
 * await using source = await openImage({ driver: "raw", file: from });
 * await using target = await openImage({ driver: "vmdk", file: to });
 * await convert(source, target, {
 *   targetIsZero: true,
 *   signal: AbortSignal.timeout(60_000),
 *   progress: (done, total) => console.log(`${done} of ${total} bytes`),
 * });
 * console.log(await compare(source, target)); // { outcome: "identical" }
 * ```
 *
 * ## Errors
 *
 * Whatever is wrong with an image, a request or an option is a
 * {@linkcode BlockError} with a POSIX `code` and a message of one line.
 *
 * ```ts
 * import { BlockError, MemoryStore, openImage } from "@bdrv/bdrv";
 *
 * const file = { driver: "memory", store: new MemoryStore(512) };
 * try {
 *   await openImage({ driver: "qcow2", file });
 * } catch (error) {
 *   if (!(error instanceof BlockError)) throw error;
 *   console.log(error.code, error.message);
 *   // EINVAL Could not open '…': Image is not in qcow2 format
 * }
 * ```
 *
 * ## Further
 *
 * - Descriptions of stacks are QEMU's `blockdev` JSON: {@linkcode parseStack}
 *   reads its other spelling. Each driver's options are in
 *   `docs/drivers.md` of the repository.
 * - {@linkcode Image.bitmaps} records what is written, for incremental backups.
 * - {@linkcode serveNbd} offers a disk to other programs; {@linkcode streamImage}
 *   makes a download of one, and {@linkcode convertStream} takes an upload.
 * - {@linkcode insertFilter} and {@linkcode replaceChild} change what is in use.
 * - {@linkcode registerDriver} adds a driver of yours.
 *
 * @module
 */
import "./drivers/all.ts";
import "./drivers/held.ts";
import "./drivers/preload.ts";

export * from "./subpaths/core.ts";
export {
  ThrottleGroup,
  type ThrottleKind,
  type ThrottleLimit,
  type ThrottleLimits,
} from "./core/throttle_group.ts";
export * from "./core/jobs/inspect.ts";
export { type Difference, drawDifference } from "./core/picture/difference.ts";
export {
  type Base,
  type Look,
  type LookName,
  LOOKS,
  type Mark,
} from "./core/picture/looks.ts";
export {
  drawPicture,
  type Picture,
  type PictureOptions,
} from "./core/picture/picture.ts";
export { pictureToPng } from "./core/picture/png.ts";
export { type Share, Space } from "./core/picture/space.ts";
export { pictureToSvg } from "./core/picture/svg.ts";
export { pictureToText } from "./core/picture/text.ts";
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
