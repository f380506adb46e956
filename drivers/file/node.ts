/**
 * A file, opened.
 *
 * @module
 */
import { allocate, type IoVector, vectorLength } from "../../core/bytes.ts";
import type { BlockDriver } from "../../core/driver.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import type {
  AccessMode,
  BlockNode,
  Extent,
  NodeInfo,
  TruncateOptions,
  WriteFlags,
  ZeroFlags,
} from "../../core/node.ts";
import type { Permissions } from "../../core/traits.ts";
import type { HostFile, PendingWrite } from "./host.ts";
import { FileLock, type Locking } from "./lock.ts";
import { noteTransfer, settle } from "./turns.ts";

/** Bytes written at once where zeroes must be written. */
const FILL_CHUNK = 256 * 1024;

/**
 * Bytes of a write from which on it pays to have another thread make it, if
 * there is something else to do: handing it over takes as long as writing 20 KiB.
 */
const BULK = 32 * 1024;

/** Devices zero and discard whole sectors, of which these are the largest. */
const DEVICE_UNIT = 4096;

/** What the node must know apart from the open file. */
export interface FileNodeOptions {
  readonly driver: BlockDriver;
  readonly filename: string;
  readonly readOnly: boolean;
  /** Whether a flush does nothing. */
  readonly noFlush: boolean;
  /** Whether it is a device: its size is given, and nothing in it is a hole. */
  readonly fixedSize: boolean;
  readonly locking: Locking;
  /** Open the file once more. */
  reopen(readOnly: boolean): HostFile;
  /** Learns why a file that is written to cannot be locked. */
  unlocked(why: string): void;
}

/**
 * The node of an open file. Its verbs return promises, but have done their
 * work when they return, but for writes in the background: synchronous I/O is
 * many times faster here.
 */
export class FileNode implements BlockNode {
  readonly driver: BlockDriver;
  readonly filename: string;
  readOnly: boolean;
  readonly children = {};
  readonly limits;
  #noFlush: boolean;
  readonly #fixedSize: boolean;
  readonly #lock: FileLock | undefined;
  readonly #reopen: (readOnly: boolean) => HostFile;
  /** Those that another thread is making. */
  readonly #writes = new Set<PendingWrite>();
  #host: HostFile | undefined;
  #size: number;
  /**
   * The data found last. Holes are asked for each time: a stale hole would
   * lose what somebody else wrote, stale data costs no more than a read.
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
    if (options.fixedSize) {
      this.limits = {
        writeZeroesAlignment: DEVICE_UNIT,
        discardAlignment: DEVICE_UNIT,
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
  async readv(offset: number, iov: IoVector): Promise<void> {
    noteTransfer();
    this.#open.preadv(offset, iov);
  }

  async writev(
    offset: number,
    iov: IoVector,
    flags?: WriteFlags,
  ): Promise<void> {
    noteTransfer();
    const host = this.#open;
    const end = offset + vectorLength(iov);
    const isBulk = flags?.background && iov.length === 1 &&
      iov[0].length >= BULK;
    const write = isBulk ? host.beginWrite?.(offset, iov[0]) : undefined;
    try {
      if (write) {
        flags?.placed?.();
        await this.#settle(write);
      } else host.pwritev(offset, iov);
    } catch (error) {
      // What was written before it failed is there, and is no hole.
      if (this.#host && end > this.#size) {
        this.#size = Math.max(this.#size, host.size());
      }
      throw error;
    }
    if (end > this.#size) this.#size = end;
    if (flags?.fua) this.#sync();
  }

  async #settle(write: PendingWrite): Promise<void> {
    this.#writes.add(write);
    try {
      await settle(write);
    } finally {
      this.#writes.delete(write);
    }
  }

  /** Present where the system has a way to do it. */
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

  // deno-lint-ignore require-await
  async writeZeroes(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void> {
    if (offset + length > this.#size) this.#finishWrites();
    const inside = Math.min(length, this.#size - offset);
    if (inside > 0) this.#zero(offset, inside, flags);
    if (offset + length > this.#size) {
      if (this.#fixedSize) throw new BlockError("ENOSPC");
      this.#resize(offset + length);
    }
    if (flags?.fua) this.#sync();
  }

  /** To be done before the size is changed: they may have changed it as well. */
  #finishWrites(): void {
    if (this.#writes.size === 0) return;
    for (const write of this.#writes) write.wait();
    this.#size = Math.max(this.#size, this.#open.size());
  }

  #zero(
    offset: number,
    length: number,
    { unmap = false, noFallback = false }: ZeroFlags = {},
  ): void {
    const host = this.#open;
    this.#dataEnd = 0;
    // Devices that cannot do it have the system write zeroes.
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
  async flush(): Promise<void> {
    this.#sync();
  }

  #sync(): void {
    if (this.readOnly || this.#noFlush) return;
    this.#open.sync();
  }

  // deno-lint-ignore require-await
  async truncate(size: number, options: TruncateOptions = {}): Promise<void> {
    const { preallocation = "off" } = options;
    this.#finishWrites();
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
    if (preallocation === "off") return this.#resize(size);
    try {
      if (preallocation === "full" || !this.#reserve(grownFrom, size)) {
        this.#fill(grownFrom, size);
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

  #resize(size: number): void {
    this.#open.truncate(size);
    this.#dataEnd = 0;
    this.#size = size;
  }

  /** Have the file system set space aside, if it can. */
  #reserve(start: number, end: number): boolean {
    const host = this.#open;
    if (!host.allocate) return false;
    if (start === end) return true;
    try {
      host.allocate(start, end - start);
      return true;
    } catch (error) {
      if (asBlockError(error).code === "ENOTSUP") return false;
      throw error;
    }
  }

  #fill(start: number, end: number): void {
    const zeroes = allocate(Math.min(FILL_CHUNK, end - start));
    while (start < end) {
      const take = Math.min(zeroes.length, end - start);
      this.#open.pwritev(start, [zeroes.subarray(0, take)]);
      start += take;
    }
    this.#sync();
  }

  // deno-lint-ignore require-await
  async status(offset: number, length: number): Promise<Extent> {
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

  /** Bytes of the hole at `offset`; 0 if data is there, which is then known. */
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
      // Meanwhile somebody else may have made a hole of it.
      const hole = host.seekHole(offset);
      if (hole > offset) this.#dataEnd = hole;
    } catch {
      // Whatever the reason is that holes are not told: data reads as well.
    }
    return 0;
  }

  setPermissions(permissions: Permissions): void {
    // Until now another process may have changed the size.
    if (this.#lock?.set(permissions)) this.#size = this.#open.size();
  }

  // deno-lint-ignore require-await
  async setMode({ readOnly, noFlush }: AccessMode): Promise<void> {
    const before = this.#open;
    if (readOnly !== this.readOnly) {
      for (const write of this.#writes) write.wait();
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
    // A drive's medium is somebody else's: nothing is known of its state.
    if (this.driver.name === "host_cdrom") return { actualSize };
    return { dirty: false, actualSize };
  }

  /** Bytes on the disk, if the file is still where it was opened. */
  #actualSize(): number | undefined {
    try {
      // Not the asynchronous one, whose first call costs far more.
      const { blocks } = Deno.statSync(this.filename);
      // POSIX counts blocks of 512 bytes, whatever the file system's own are.
      return blocks === null ? undefined : blocks * 512;
    } catch {
      return undefined;
    }
  }

  // deno-lint-ignore require-await
  async close(): Promise<void> {
    const host = this.#host;
    this.#host = undefined;
    // The system may give the descriptor to another file at once.
    for (const write of this.#writes) write.wait();
    if (host) this.#lock?.close();
    host?.close();
  }
}
