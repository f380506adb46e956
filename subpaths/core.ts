/**
 * The block layer without any driver: what opens images, and jobs on them.
 * Import the drivers that a program needs beside it, so that it need not load
 * the others; `@bdrv/bdrv` is all of them.
 *
 * @example A page reads a disk in a file that the user has chosen
 * ```ts ignore
 * import { openImage } from "@bdrv/bdrv/core";
 * import "@bdrv/bdrv/blob";
 * import "@bdrv/bdrv/qcow2";
 * await using image = await openImage(input.files[0]);
 * const bootSector = await image.read(0, 512);
 * ```
 *
 * @module
 */
import "../core/platform/on_node.ts";

export * from "../core/create.ts";
export type * from "../core/create_options.ts";
export { drain } from "../core/drain.ts";
export type * from "../core/driver.ts";
export {
  asBlockError,
  BlockError,
  type BlockErrorOptions,
  type ErrorCode,
  strerror,
} from "../core/errors.ts";
export type { ChainExtent } from "../core/extents.ts";
export type { IoVector } from "../core/bytes.ts";
export type { Gate, ImplicitOpen } from "../core/gate.ts";
export {
  insertFilter,
  removeFilter,
  replaceChild,
} from "../core/graph_changes.ts";
export {
  type ByteCounters,
  Image,
  openImage,
  type StreamOptions,
} from "../core/image.ts";
export type { HeldBrowserFile, HeldFile, HeldSource } from "../core/held.ts";
export { MemoryStore } from "../core/memory_store.ts";
export type {
  CacheMode,
  OpenOptions,
  UnlockProgress,
} from "../core/open_options.ts";
export { ImageBitmaps } from "../core/bitmaps.ts";
export { bench, type BenchOptions } from "../core/jobs/bench.ts";
export * from "../core/jobs/commit.ts";
export * from "../core/jobs/compare.ts";
export { convert } from "../core/jobs/convert.ts";
export type { ConvertOptions } from "../core/jobs/convert_options.ts";
export {
  convertStream,
  type ConvertStreamOptions,
} from "../core/jobs/convert_stream.ts";
export { measure, type MeasureOptions } from "../core/jobs/measure.ts";
export { streamImage, type StreamImageOptions } from "../core/jobs/stream.ts";
export * from "../core/jobs/rebase.ts";
export type * from "../core/node.ts";
export {
  type OptionSpec,
  type OptionTable,
  type OptionValues,
  parseKeyValueList,
  parseSize,
} from "../core/options.ts";
export type { ReopenOptions } from "../core/reopen.ts";
export { ACCESS, ALL_ACCESS } from "../core/permissions.ts";
export {
  findDriver,
  getDriver,
  listDrivers,
  loadDriver,
  registerDriver,
} from "../core/registry.ts";
export type { Secret, SecretRequest, SecretSource } from "../core/secrets.ts";
export { parseStack, type Source, type StackObject } from "../core/spec.ts";
export type { FileInfo } from "../core/platform/files.ts";
export type * from "../core/traits.ts";
