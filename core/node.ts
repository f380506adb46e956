/**
 * The node contract: one opened layer of a stack.
 *
 * A node leaves out the verbs it does not support; callers check for them. All
 * offsets and lengths are in bytes.
 *
 * **Buffer ownership.** The parts of a vector are lent for one request. Until
 * its promise settles, the caller neither changes them nor reads those being
 * filled; the node may use them in any order and in parts. Afterwards, even
 * after a failure, they belong to the caller again: a node that needs the bytes
 * for longer copies them, and settles only when no child can touch them any
 * more. A node never changes bytes that it writes. The list of parts is lent
 * likewise, and nobody changes it. Objects that a node returns (an extent, a
 * description) belong to the caller.
 *
 * @module
 */
import type { IoVector } from "./bytes.ts";
import type { OptionValues } from "./options.ts";
import type { DriverTraits, Permissions } from "./traits.ts";

/**
 * A disk to work on: an {@linkcode Image}, or the node at the top of a stack.
 *
 * @category Images
 */
export type Disk = BlockNode | { readonly node: BlockNode };

/**
 * An opened driver: one layer of a stack. Only the first five properties and
 * three verbs are mandatory; the groups at the end concern few drivers.
 *
 * @category Drivers
 */
export interface BlockNode {
  /** The driver that made it. */
  readonly driver: DriverTraits;
  /** The user's name for it, for messages. */
  readonly filename: string;
  /** The size it presents now, in bytes. */
  readonly size: number;
  /** Whether it refuses writes. */
  readonly readOnly: boolean;
  /** The nodes below it, by role. */
  readonly children: { readonly [role: string]: BlockNode | undefined };
  /** Limits that requests must keep to, if any. */
  readonly limits?: RequestLimits;

  /**
   * Fill `iov` with the bytes from `offset` on. A protocol returns zeroes past
   * its end; of a format, only ranges within `size` may be read. `iov` is the
   * node's until the promise settles; if it rejects, the content of the parts
   * is undefined.
   */
  readv(offset: number, iov: IoVector, flags?: ReadFlags): Promise<void>;
  /** The first extent of the range from `offset`. */
  status(
    offset: number,
    length: number,
    flags?: RequestFlags,
  ): Promise<Extent>;
  /**
   * Make everything durable that can be, and finish. The graph closes the
   * children afterwards, if they have no other user. A caller that opened a
   * node releases it with this; the node closes with its last user.
   */
  close(): Promise<void>;

  /**
   * Write the bytes of `iov`. A protocol grows when written past its end. The
   * bytes must not change until the promise settles, whether or not
   * `flags.placed` has been called; the node does not change them.
   */
  writev?(offset: number, iov: IoVector, flags?: WriteFlags): Promise<void>;
  /** Make a range read as zeroes. */
  writeZeroes?(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void>;
  /** Discard a range; what it then reads as depends on the format. */
  discard?(
    offset: number,
    length: number,
    flags?: DiscardFlags,
  ): Promise<void>;
  /** Make everything written before durable. */
  flush?(flags?: RequestFlags): Promise<void>;
  /** Change the size, in bytes. */
  truncate?(size: number, options?: TruncateOptions): Promise<void>;
  /** Describe the image. */
  info?(): Promise<NodeInfo>;

  /**
   * Store whole clusters compressed; the disk's last one may be shorter.
   * Clusters are stored in the order of the calls. The bytes must not change
   * until the promise settles.
   */
  writeCompressed?(
    offset: number,
    iov: IoVector,
    options?: CompressOptions,
  ): Promise<void>;
  /**
   * Copy offload: have the system copy the bytes of a protocol node from
   * `sourceOffset` on, from file to file.
   *
   * @throws {BlockError} ENOTSUP if that cannot be done; part of the range may
   * have been written.
   */
  copyFrom?(
    offset: number,
    source: BlockNode,
    sourceOffset: number,
    length: number,
  ): Promise<void>;
  /**
   * Make the claims on it known to other processes. For protocols whose files
   * others can open.
   *
   * @throws {BlockError} EAGAIN if they conflict with another process's.
   */
  setPermissions?(permissions: Permissions): void;
  /**
   * Change the access mode, keeping all locks. For protocols only; absent if
   * the node must be closed and reopened for that.
   *
   * @throws {BlockError} EACCES … if it cannot; nothing is changed then.
   */
  setMode?(mode: AccessMode): Promise<void>;
  /**
   * Switch to another child that holds the same bytes; no request is under way.
   * Absent if the node cannot do so.
   *
   * @throws {BlockError} EINVAL if it does not fit; nothing is changed then.
   */
  replaceChild?(role: string, child: BlockNode): void;
  /** Read everything anew: another program changed the image. */
  invalidate?(): Promise<void>;
  /**
   * Change its options: all those of its driver, without the children. Generic
   * options such as `read-only` need a new node.
   *
   * @throws {BlockError} EINVAL if they make no sense; nothing is changed then.
   */
  reopen?(options: OptionValues): Promise<void>;

  /** Snapshots within the image; absent where its format has none. */
  readonly snapshots?: SnapshotOperations;
  /** Operations on an image as a whole; absent where there is none. */
  readonly image?: ImageOperations;
  /** VM state stored with the disk. */
  readonly vmState?: VmStateOperations;
  /** Hooks into the steps of the node above; for test filters. */
  readonly debug?: DebugOperations;
}

/**
 * How a protocol accesses what it presents.
 *
 * @category Drivers
 */
export interface AccessMode {
  /** Whether to refuse to write. */
  readonly readOnly: boolean;
  /** Whether a flush does nothing. */
  readonly noFlush: boolean;
  /** Whether to bypass the page cache where the system can. */
  readonly direct: boolean;
}

/**
 * Flags of any request.
 *
 * @category Drivers
 */
export interface RequestFlags {
  /**
   * Cancels the request. It fails with ECANCELED, the signal's reason as the
   * cause, as soon as nobody touches its buffers any more; what it has done by
   * then stays done. A node that cannot be interrupted completes it.
   */
  signal?: AbortSignal;
}

/**
 * Flags of a read.
 *
 * @category Drivers
 */
export interface ReadFlags extends RequestFlags {
  /** As of writes: other requests are under way. */
  background?: boolean;
}

/**
 * Flags of a discard.
 *
 * @category Drivers
 */
export type DiscardFlags = RequestFlags;

/**
 * Flags of a write.
 *
 * @category Drivers
 */
export interface WriteFlags extends RequestFlags {
  /** Reach the disk before the promise is fulfilled. */
  fua?: boolean;
  /**
   * Other requests are under way: let them run, even if this one takes longer.
   */
  background?: boolean;
  /**
   * Called once all of the write has its place, so that later writes are placed
   * as if it had completed. Copies wait for this, or for the end, before the
   * next write. It implies neither an order of the transfers nor their success.
   * A node that cannot tell does not call it.
   */
  placed?(): void;
}

/**
 * Flags of a write of zeroes.
 *
 * @category Drivers
 */
export interface ZeroFlags extends RequestFlags, Pick<WriteFlags, "fua"> {
  /** The space may be freed. */
  unmap?: boolean;
  /** Fail with ENOTSUP rather than write zeroes as data. */
  noFallback?: boolean;
}

/**
 * Options of compression.
 *
 * @category Drivers
 */
export interface CompressOptions extends RequestFlags {
  /**
   * Compression level: 0 to 9 for zlib, 1 to 22 for zstd. Default: about as
   * small as QEMU's output.
   */
  level?: number;
  /** Fail (EIO) rather than replace compressed data. Default: false. */
  onlyEmpty?: boolean;
}

/**
 * How much of a new area is allocated in advance.
 *
 * @category Drivers
 */
export type Preallocation = "off" | "metadata" | "falloc" | "full";

/**
 * Flags of a change of size.
 *
 * @category Drivers
 */
export interface TruncateOptions extends RequestFlags {
  /** How to preallocate the new area. */
  preallocation?: Preallocation;
  /** Whether the size must be exact, even if the driver would round it. */
  exact?: boolean;
  /** Whether the new area must read as zeroes. Default: true. */
  zero?: boolean;
}

/**
 * A range of a node in one uniform state.
 *
 * @category Drivers
 */
export interface Extent {
  /** Bytes from the offset that was asked for. */
  length: number;
  /** Whether the node itself determines its content. */
  allocated: boolean;
  /**
   * Whether it is known to read as zeroes. An extent that is neither zero nor
   * allocated is read from the backing file (zeroes without one).
   */
  zero: boolean;
  /** Whether it is stored compressed. Default: false. */
  compressed?: boolean;
  /** Where in `file` the range lies, if it is stored plainly. */
  hostOffset?: number;
  /** The child that `hostOffset` refers to. */
  file?: BlockNode;
  /** Parts of this data may be holes in `file`. */
  recurse?: boolean;
  /** As `recurse`, but only for copying: maps of the disk show it as data. */
  sparse?: boolean;
  /**
   * For compressed data, how many bytes of the disk are compressed together.
   */
  unit?: number;
}

/**
 * Limits on the requests to a node. It never sees others once it has been
 * opened, or passed to `openImage` or to a parent: the core wraps it to round
 * and to split them. 0 means no limit.
 *
 * @category Drivers
 */
export interface RequestLimits {
  /**
   * Offsets and lengths of reads and writes must be multiples of this, in
   * bytes: a power of two up to 1 GiB. Default 1. If the size is not a multiple,
   * requests may extend to the next one.
   */
  requestAlignment?: number;
  /** Largest read or write, in bytes; a multiple of `requestAlignment`. */
  maxTransfer?: number;
  /**
   * Writing zeroes is best done in multiples of this, in bytes; a multiple of
   * `requestAlignment`.
   */
  writeZeroesAlignment?: number;
  /** Largest write of zeroes, in bytes; at least one such unit. */
  maxWriteZeroes?: number;
  /**
   * Discarding is best done in multiples of this, in bytes; a multiple of
   * `requestAlignment`.
   */
  discardAlignment?: number;
  /** Largest discard, in bytes; at least one such unit. */
  maxDiscard?: number;
}

/**
 * A driver's description of an image.
 *
 * @category Drivers
 */
export interface NodeInfo {
  /** The size of the disk is unknown, since its format has no driver. */
  sizeUnknown?: boolean;
  /** Bytes of a cluster, for formats that have clusters. */
  clusterSize?: number;
  /** Whether it was not closed properly; absent where that makes no sense. */
  dirty?: boolean;
  /** Whether its content is encrypted. */
  encrypted?: boolean;
  /** Whether it holds only compressed clusters (streaming formats). */
  compressed?: boolean;
  /** Bytes of storage it takes up; of a protocol. */
  actualSize?: number;
  /** The backing file's name as the image has it. */
  backingFile?: string;
  /** The backing file's format as the image has it. */
  backingFormat?: string;
  /** Bitmaps kept in the image; absent if it cannot keep any. */
  bitmaps?: readonly BitmapInfo[];
  /** Why the image's bitmaps cannot be listed. */
  bitmapsFault?: string;
  /** Offset of VM state, for formats that have it. */
  vmStateOffset?: number;
  /** Details of this format, in the field names of QEMU's QAPI. */
  specific?: { type: string; data: Record<string, unknown> };
}

/**
 * A bitmap stored in an image: which parts of the disk were written.
 *
 * @category Bitmaps
 */
export interface BitmapInfo {
  /** Its name, unique in the image. */
  name: string;
  /** Bytes of the disk per bit. */
  granularity: number;
  /**
   * `in-use`: it was not saved properly. `auto`: it records writes whenever the
   * image is open.
   */
  flags: ("in-use" | "auto")[];
}

/**
 * How to create a bitmap.
 *
 * @category Bitmaps
 */
export interface BitmapOptions {
  /**
   * Bytes of the disk that a bit stands for: a power of two from 512 to 2 GiB.
   * Default: the format's choice.
   */
  granularity?: number;
  /** Whether it records what is written from now on. Default: true. */
  enabled?: boolean;
}

/**
 * A range of a disk, in bytes.
 *
 * @category Bitmaps
 */
export interface DirtyExtent {
  /** Its first byte. */
  offset: number;
  /** How many there are. */
  length: number;
}

/**
 * Bitmaps kept in an image, which record the parts of the disk that are
 * written, zeroed or discarded. Closing the image stores them; if it is not
 * closed properly, those that have changed stay marked as in use.
 *
 * Methods reject with ENOENT if there is no bitmap of the name; those that use
 * its bits, with EINVAL if it is in use.
 *
 * @category Bitmaps
 */
export interface BitmapOperations {
  /** All bitmaps. */
  list(): Promise<BitmapInfo[]>;
  /**
   * Add an empty bitmap.
   *
   * @throws {BlockError} EINVAL if the name is taken, or the format cannot keep
   * the bitmap.
   */
  add(name: string, options?: BitmapOptions): Promise<void>;
  /** Remove a bitmap, whatever its state. */
  remove(name: string): Promise<void>;
  /** Clear a bitmap. */
  clear(name: string): Promise<void>;
  /** Start recording writes in a bitmap. */
  enable(name: string): Promise<void>;
  /** Stop recording writes in a bitmap; its bits stay. */
  disable(name: string): Promise<void>;
  /**
   * Record ranges in a bitmap, enabled or not, rounded to its granularity. They
   * may come from another bitmap of the same image.
   */
  merge(name: string, extents: AsyncIterable<DirtyExtent>): Promise<void>;
  /**
   * The dirty extents of a range, in order; neighbours are merged. Writes made
   * meanwhile may be missed.
   */
  dirty(
    name: string,
    offset: number,
    length: number,
  ): AsyncIterable<DirtyExtent>;
}

/**
 * A snapshot within an image.
 *
 * @category Drivers
 */
export interface Snapshot {
  /** A number as text, unique in the image. */
  id: string;
  /** The name its user gave it; need not be unique. */
  name: string;
  /** When it was taken: seconds since 1970. */
  dateSeconds: number;
  /** Nanoseconds past that. */
  dateNanoseconds: number;
  /** How long the guest had been running, in nanoseconds. */
  vmClockNanoseconds: bigint;
  /** Bytes of VM state saved with it; 0 without any. */
  vmStateSize: number;
  /** Size of the disk at the time, in bytes. */
  diskSize: number;
  /** Instructions the guest had executed, if they were counted. */
  icount?: bigint;
}

/**
 * Facts to record with a new snapshot.
 *
 * @category Drivers
 */
export interface SnapshotRequest {
  /** Its name; may be empty. */
  name: string;
  /** When it was taken, in milliseconds since 1970. Default: now. */
  date?: number;
  /** How long the guest had been running, in nanoseconds. Default: 0. */
  vmClockNanoseconds?: bigint;
  /** Bytes of VM state already written by `vmState.save`. Default: 0. */
  vmStateSize?: number;
  /** Instructions the guest had executed. Default: not counted. */
  icount?: bigint;
}

/**
 * Snapshots within an image. `idOrName` is matched against ids first, then
 * against names, the first match counting.
 *
 * @category Drivers
 */
export interface SnapshotOperations {
  /** All snapshots, oldest first. */
  list(): Promise<Snapshot[]>;
  /** Take a snapshot of the disk. */
  create(request: SnapshotRequest): Promise<Snapshot>;
  /** Revert the disk to a snapshot; its current content is lost. */
  apply(idOrName: string): Promise<void>;
  /** Delete a snapshot. */
  delete(idOrName: string): Promise<void>;
  /**
   * Present a snapshot in place of the disk, until the node is closed.
   * Read-only nodes only.
   */
  loadTemporary(idOrName: string): Promise<void>;
}

/**
 * Operations on an image as a whole. Those that a format cannot do are absent.
 *
 * @category Drivers
 */
export interface ImageOperations {
  /** Check, and on demand repair, the image's metadata. */
  check?(options?: CheckOptions): Promise<CheckResult>;
  /**
   * Change options of the image in place; they are the driver's `amendOptions`.
   */
  amend?(options: OptionValues, how?: AmendOptions): Promise<void>;
  /** Record another backing file in the image; `undefined` removes it. */
  changeBacking?(name?: string, format?: string): Promise<void>;
  /**
   * Free all of the image's own data, apart from snapshots: the disk then reads
   * as its backing file, or as zeroes without one.
   */
  makeEmpty?(): Promise<void>;
  /**
   * What each byte of the image's file is used for; absent if the format cannot
   * tell. This runs a check, and changes nothing.
   *
   * @throws {BlockError} if the tables cannot be read.
   */
  layout?(options?: RequestFlags): Promise<ImageLayout>;
  /** Bitmaps kept in the image. */
  readonly bitmaps?: BitmapOperations;
}

/**
 * VM state, which is not part of the disk. Offsets are from its start.
 *
 * @category Drivers
 */
export interface VmStateOperations {
  /** Write the bytes of `iov`, lent as for `writev`. */
  save(offset: number, iov: IoVector): Promise<void>;
  /** Fill `iov`, lent as for `readv`. */
  load(offset: number, iov: IoVector): Promise<void>;
}

/**
 * How to check.
 *
 * @category Drivers
 */
export interface CheckOptions extends RequestFlags {
  /** What to repair. */
  repair?: { leaks: boolean; corruptions: boolean };
  /**
   * Receives the findings, a line each. `named` marks an error message, which a
   * program prefixes with its name.
   */
  report?(line: string, named?: boolean): void;
}

/**
 * The result of a check, in the terms of `qemu-img check`.
 *
 * @category Drivers
 */
export interface CheckResult {
  /** Inconsistent references: data may be damaged. */
  corruptions: number;
  /** Clusters that nothing refers to: space is wasted, nothing lost. */
  leaks: number;
  /** Structures that could not be checked. */
  checkErrors: number;
  /** Corruptions that were repaired. */
  corruptionsFixed: number;
  /** Leaks that were repaired. */
  leaksFixed: number;
  /** End of the last cluster in use, in bytes. */
  imageEndOffset: number;
  /** Guest clusters of the disk. */
  totalClusters: number;
  /** Guest clusters that are allocated in the file. */
  allocatedClusters: number;
  /** Allocated clusters that do not follow their predecessor in the file. */
  fragmentedClusters: number;
  /** Compressed clusters. */
  compressedClusters: number;
}

/**
 * What a part of an image's file is used for.
 *
 * @category Drivers
 */
export type HostUse =
  /** Nothing. */
  | "free"
  /** Data of the disk as it is now. */
  | "data"
  /** The same, but compressed. */
  | "compressed"
  /** Data that only snapshots refer to. */
  | "snapshot-data"
  | "header"
  | "l1-table"
  | "l2-table"
  /** Refcount blocks, and their table. */
  | "refcounts"
  | "snapshot-table"
  /** Bitmaps with their directory and tables. */
  | "bitmaps"
  | "encryption-header";

/**
 * A range of an image's file that is used for one thing.
 *
 * @category Drivers
 */
export interface HostRun {
  /** Bytes from the start of the file. */
  offset: number;
  /** Bytes. */
  length: number;
  /** What it is used for. */
  use: HostUse;
  /** Whether it has several users, such as snapshots. */
  shared: boolean;
  /** Whether its refcount is higher than its number of users. */
  leaked: boolean;
  /** Whether its refcount is lower than its number of users. */
  corrupt: boolean;
}

/**
 * What the parts of an image's file were used for at the time of the call.
 *
 * @category Drivers
 */
export interface ImageLayout {
  /** Bytes that are accounted for, from the start of the file. */
  readonly size: number;
  /** The result of the check. */
  readonly check: CheckResult;
  /** The first findings of the check. */
  readonly findings: readonly string[];
  /** Snapshots, and how many bytes of the file deleting each would free. */
  readonly snapshots: readonly { id: string; name: string; frees: number }[];
  /** The first run of the range, which is within the file. */
  runAt(offset: number, length: number): HostRun;
}

/**
 * How to change options of an image.
 *
 * @category Drivers
 */
export interface AmendOptions {
  /** Also do what makes the image unusable, or may do so. Default: false. */
  force?: boolean;
  /**
   * Receives the progress. `total` is an estimate until the number of passes
   * over the tables is known.
   */
  progress?(done: number, total: number): void;
}

/**
 * What test filters offer to the node above.
 *
 * @category Drivers
 */
export interface DebugOperations {
  /**
   * The node above announces its next step, by QEMU's `blkdebug` name for it.
   * This fails or waits as configured.
   */
  event(name: string): Promise<void> | void;
  /** Absent where requests cannot be stopped. */
  readonly breakpoints?: Breakpoints;
}

/**
 * Suspending requests at given steps.
 *
 * @category Drivers
 */
export interface Breakpoints {
  /**
   * Suspend the next request that reaches `event`, until `tag` is resumed.
   *
   * @throws {BlockError} ENOENT if there is no such event.
   */
  breakpoint(event: string, tag: string): void;
  /**
   * Resume one of the requests suspended under `tag`.
   *
   * @throws {BlockError} ENOENT if there is none.
   */
  resume(tag: string): void;
  /**
   * Remove the breakpoints called `tag`, and resume all requests they
   * suspended.
   *
   * @throws {BlockError} ENOENT if no breakpoint of that name is still to be
   * reached; suspended requests are resumed nevertheless.
   */
  removeBreakpoint(tag: string): void;
  /** Whether a request is suspended under `tag`. */
  isSuspended(tag: string): boolean;
  /** Wait until a request is suspended under `tag`. */
  waitSuspended(tag: string): Promise<void>;
  /** Receives a line when a request is suspended or resumed. */
  report?: (line: string) => void;
}
