/**
 * The node of an open file.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import {
  allocate,
  type IoVector,
  roundUp,
  SECTOR_SIZE,
  vectorLength,
} from "../../core/bytes.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { asBlockError, BlockError, invalid } from "../../core/errors.ts";
import type {
  AccessMode,
  BlockNode,
  Extent,
  NodeInfo,
  ReadFlags,
  RequestFlags,
  TruncateOptions,
  WriteFlags,
  ZeroFlags,
} from "../../core/node.ts";
import type { AioMode, Permissions } from "../../core/traits.ts";
import { ACCESS } from "../../core/permissions.ts";
import type { HostFile } from "../../core/platform/files.ts";
import { localFiles } from "../../core/platform/mod.ts";
import { FileLock, type Locking } from "./lock.ts";
import { WriteQueue } from "./write_queue.ts";

/** Bytes written at once when writing zeroes as data. */
const FILL_CHUNK = 256 * 1024;

/**
 * Bytes from which on another thread makes a background read or write: handing
 * over smaller ones would not pay (see bench/RESULTS.md).
 */
const BULK = 32 * 1024;
const BULK_READ = 128 * 1024;
/** Background writes at a time: one at work, and one that is next at once. */
const MOST_WRITES = 2;

/** Devices zero and discard whole sectors, of at most this size. */
const DEVICE_UNIT = 4096;

/** What the node needs besides the open file. */
export interface FileNodeOptions {
  readonly driver: BlockDriver;
  readonly filename: string;
  readonly readOnly: boolean;
  /** Whether a flush does nothing. */
  readonly noFlush: boolean;
  /** If set, other threads make all reads, writes and flushes. */
  readonly aio?: AioMode;
  /** Whether it is a device, which has a fixed size and no holes. */
  readonly fixedSize: boolean;
  readonly locking: Locking;
  /** Open the file again. */
  reopen(readOnly: boolean): HostFile;
  /** Called if a file open for writing cannot be locked. */
  unlocked(why: string): void;
}

/**
 * The node of an open file. Its verbs do their work synchronously, which is
 * much faster here, except for large ones in the background, and return settled
 * promises.
 */
export class FileNode implements BlockNode {
  readonly driver: BlockDriver;
  readonly filename: string;
  readOnly: boolean;
  readonly children = {};
  readonly limits;
  #noFlush: boolean;
  readonly #fixedSize: boolean;
  readonly #usesThreads: boolean;
  readonly #lock: FileLock | undefined;
  readonly #reopen: (readOnly: boolean) => HostFile;
  /** Transfers under way in other threads. */
  readonly #transfers = new Set<Promise<void>>();
  readonly #writes = new WriteQueue(MOST_WRITES);
  #host: HostFile | undefined;
  #size: number;
  /**
   * The last range of data found. Holes are queried each time: a stale hole
   * would lose data that somebody else wrote, stale data costs only a read.
   */
  #dataStart = 0;
  #dataEnd = 0;

  constructor(host: HostFile, options: FileNodeOptions) {
    this.driver = options.driver;
    this.filename = options.filename;
    this.readOnly = options.readOnly;
    this.#noFlush = options.noFlush;
    this.#fixedSize = options.fixedSize;
    this.#reopen = options.reopen;
    const { alignment } = host;
    // Without the page cache, each request waits for the disk.
    this.#usesThreads = options.aio !== undefined || alignment !== undefined;
    if (options.fixedSize || alignment) {
      this.limits = {
        ...(options.fixedSize && {
          writeZeroesAlignment: DEVICE_UNIT,
          discardAlignment: DEVICE_UNIT,
        }),
        ...(alignment && { requestAlignment: alignment }),
      };
    }
    this.#host = host;
    this.#size = host.size();
    if (host.copyFrom) this.copyFrom = this.#copyFrom;
    if (options.locking !== "off") {
      const { descriptor } = host;
      this.#lock = new FileLock({ ...options, descriptor });
    }
  }

  get size(): number {
    return this.#size;
  }

  /** The open file. */
  get #open(): HostFile {
    if (this.#host) return this.#host;
    throw new BlockError("EBADF", `'${this.filename}' is closed`);
  }

  // deno-lint-ignore require-await -- the interface is asynchronous
  async readv(
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void> {
    const host = this.#open;
    const isBulk = flags?.background && host.descriptor !== undefined &&
      vectorLength(iov) >= BULK_READ;
    if (this.#usesThreads || isBulk) {
      return this.#settle(host.preadvLater(offset, iov));
    }
    host.preadv(offset, iov);
  }

  async writev(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    const host = this.#open;
    const end = offset + vectorLength(iov);
    try {
      const isBulk = flags?.background && end - offset >= BULK;
      if (this.#usesThreads || (isBulk && host.descriptor !== undefined)) {
        const write = this.#usesThreads
          ? host.pwritevLater(offset, iov)
          : this.#writes.write(host, offset, iov);
        flags?.placed?.();
        await this.#settle(write);
      } else host.pwritev(offset, iov);
    } catch (error) {
      // A failed write may have extended the file.
      if (this.#host && end > this.#size) {
        this.#size = Math.max(this.#size, host.size());
      }
      throw error;
    }
    if (end > this.#size) this.#size = end;
    if (flags?.fua) await this.flush();
  }

  async #settle(transfer: Promise<void>): Promise<void> {
    this.#transfers.add(transfer);
    try {
      await transfer;
    } finally {
      this.#transfers.delete(transfer);
    }
  }

  /** Present if the system supports it. */
  copyFrom?: BlockNode["copyFrom"];

  // deno-lint-ignore require-await
  async #copyFrom(
    offset: number,
    source: BlockNode,
    sourceOffset: number,
    length: number,
  ): Promise<void> {
    if (!(source instanceof FileNode)) throw new BlockError("ENOTSUP");
    this.#open.copyFrom!(offset, source.#open, sourceOffset, length);
    this.#size = Math.max(this.#size, offset + length);
  }

  async writeZeroes(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> {
    if (offset + length > this.#size && this.#transfers.size > 0) {
      await this.#finishTransfers();
    }
    const inside = Math.min(length, this.#size - offset);
    if (inside > 0) this.#zero(offset, inside, flags);
    if (offset + length > this.#size) {
      if (this.#fixedSize) throw new BlockError("ENOSPC");
      this.#resize(offset + length);
    }
    if (flags?.fua) await this.flush();
  }

  /**
   * Wait for transfers before changing the size, since they may change it too.
   */
  async #finishTransfers(): Promise<void> {
    await Promise.allSettled(this.#transfers);
    this.#size = Math.max(this.#size, this.#open.size());
  }

  #zero(
    offset: number,
    length: number,
    { unmap = false, noFallback = false }: ZeroFlags = {},
  ): void {
    const host = this.#open;
    this.#dataEnd = 0;
    // For devices without support, the system writes zeroes.
    if (this.#fixedSize && noFallback && !unmap) {
      throw new BlockError("ENOTSUP");
    }
    if (!unmap && host.zeroRange) {
      try {
        return host.zeroRange(offset, length);
      } catch (error) {
        if (asBlockError(error).code !== "ENOTSUP") throw error;
      }
    }
    if (!host.punchHole) throw new BlockError("ENOTSUP");
    host.punchHole(offset, length);
    if (!unmap) host.allocate?.(offset, length);
  }

  // deno-lint-ignore require-await
  async discard(offset: number, length: number): Promise<void> {
    const inside = Math.min(length, this.#size - offset);
    if (inside <= 0 || !this.#open.punchHole) return;
    this.#dataEnd = 0;
    try {
      this.#open.punchHole(offset, inside);
    } catch (error) {
      // A discard is a hint; file systems without holes ignore it.
      if (asBlockError(error).code !== "ENOTSUP") throw error;
    }
  }

  // deno-lint-ignore require-await
  async flush(flags?: RequestFlags): Promise<void> {
    checkSignal(flags?.signal);
    const host = this.#open;
    if (this.readOnly || this.#noFlush) return;
    if (this.#usesThreads) return this.#settle(host.syncLater());
    host.sync();
  }

  async truncate(size: number, options: TruncateOptions = {}): Promise<void> {
    const { preallocation = "off" } = options;
    if (this.#transfers.size > 0) await this.#finishTransfers();
    if (this.#fixedSize) return this.#checkFixedSize(size, options);
    if (preallocation === "metadata") {
      throw new BlockError(
        "ENOTSUP",
        `Unsupported preallocation mode: ${preallocation}`,
      );
    }
    if (preallocation !== "off" && size < this.#size) {
      throw new BlockError(
        "ENOTSUP",
        "Cannot use preallocation for shrinking files",
      );
    }
    const grownFrom = this.#size;
    if (preallocation === "off") return this.#resizeTo(size);
    try {
      if (preallocation === "full" || !this.#reserve(grownFrom, size)) {
        // A size that the system refuses must not fill the disk first.
        this.#resizeTo(size);
        await this.#fill(grownFrom, size);
      }
    } catch (error) {
      this.#resize(grownFrom);
      throw error;
    }
    this.#size = size;
  }

  #checkFixedSize(
    size: number,
    { preallocation = "off", exact }: TruncateOptions,
  ): void {
    if (preallocation !== "off") {
      throw new BlockError(
        "ENOTSUP",
        `Preallocation mode '${preallocation}' unsupported for this ` +
          "non-regular file",
      );
    }
    if (exact && size !== this.#size) {
      throw new BlockError("ENOTSUP", "Cannot resize device files");
    }
    if (size > this.#size) {
      throw new BlockError("EINVAL", "Cannot grow device files");
    }
  }

  /** Resize, with a message of its own for failures. */
  #resizeTo(size: number): void {
    try {
      this.#resize(size);
    } catch (error) {
      throw asBlockError(error).prefixed("Could not resize file: ");
    }
  }

  #resize(size: number): void {
    this.#open.truncate(size);
    this.#dataEnd = 0;
    this.#size = size;
  }

  /** Let the file system allocate space, if it can. */
  #reserve(start: number, end: number): boolean {
    const host = this.#open;
    if (!host.allocate) return false;
    if (start === end) return true;
    try {
      host.allocate(start, end - start);
      return true;
    } catch (error) {
      const failure = asBlockError(error);
      if (failure.code === "ENOTSUP") return false;
      throw failure.prefixed("Could not preallocate new data: ");
    }
  }

  async #fill(start: number, end: number): Promise<void> {
    const { alignment = 1 } = this.#open;
    const zeroes = allocate(FILL_CHUNK);
    const stop = roundUp(end, alignment);
    // The rest of the last unit exists already.
    for (let at = roundUp(start, alignment); at < stop;) {
      const take = Math.min(zeroes.length, stop - at);
      await this.writev(at, [zeroes.subarray(0, take)]);
      at += take;
    }
    if (this.#open.size() !== end) this.#open.truncate(end);
    await this.flush();
  }

  // deno-lint-ignore require-await
  async status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent> {
    checkSignal(flags?.signal);
    const place = { allocated: true, hostOffset: offset, file: this };
    if (offset >= this.#size) return { length, zero: true, ...place };
    length = Math.min(length, this.#size - offset);
    const hole = this.#findHole(offset, length);
    if (hole > 0) {
      return { length: Math.min(length, hole), zero: true, ...place };
    }
    const data = this.#dataEnd - offset;
    return { length: Math.min(length, data), zero: false, ...place };
  }

  /** Length of the hole at `offset`; 0 for data, which is then remembered. */
  #findHole(offset: number, length: number): number {
    if (offset >= this.#dataStart && offset < this.#dataEnd) return 0;
    const host = this.#open;
    this.#dataStart = offset;
    this.#dataEnd = this.#size;
    if (this.#fixedSize || !host.seekData || !host.seekHole) return 0;
    try {
      const data = host.seekData(offset);
      if (data === undefined || data > offset) {
        this.#dataEnd = 0;
        return data === undefined ? length : data - offset;
      }
      // Somebody else may have punched a hole here meanwhile.
      const hole = host.seekHole(offset);
      if (hole > offset) this.#dataEnd = hole;
    } catch {
      // If holes cannot be found for any reason, treat everything as data.
    }
    return 0;
  }

  setPermissions(permissions: Permissions): void {
    this.#checkAlignment(permissions);
    // Without these locks, another process may have changed the size.
    if (this.#lock?.set(permissions)) this.#size = this.#open.size();
  }

  /**
   * Writing the last unit whole makes the file longer. Sizes count in sectors:
   * completing the last one is no change of size.
   */
  #checkAlignment({ needs }: Permissions): void {
    const unit = this.#host?.alignment ?? 1;
    const isWrittenOnly = needs & ACCESS.WRITE && !(needs & ACCESS.RESIZE);
    if (!isWrittenOnly || roundUp(this.#size, SECTOR_SIZE) % unit === 0) return;
    throw invalid(
      "Cannot get 'write' permission without 'resize': Image size is not a " +
        "multiple of request alignment",
    );
  }

  async setMode({ readOnly, noFlush }: AccessMode): Promise<void> {
    if (readOnly !== this.readOnly) {
      await Promise.all(this.#transfers);
      const before = this.#open;
      const host = this.#reopen(readOnly);
      try {
        this.#lock?.moveTo(host.descriptor);
      } catch (error) {
        host.close();
        throw error;
      }
      this.#host = host;
      this.readOnly = readOnly;
      before.close();
    }
    this.#noFlush = noFlush;
  }

  // deno-lint-ignore require-await
  async info(): Promise<NodeInfo> {
    const actualSize = this.#actualSize();
    // Nothing is known about the state of an optical medium.
    if (this.driver.name === "host_cdrom") return { actualSize };
    return { dirty: false, actualSize };
  }

  /** Bytes on disk, if the path still leads to the file. */
  #actualSize(): number | undefined {
    try {
      return localFiles().stat(this.filename).actualSize;
    } catch {
      return undefined;
    }
  }

  async close(): Promise<void> {
    const host = this.#host;
    this.#host = undefined;
    // Wait: the system may reuse the descriptor for another file at once.
    if (this.#transfers.size > 0) await Promise.allSettled(this.#transfers);
    if (host) this.#lock?.close();
    host?.close();
  }
}
