/**
 * What a node is: the contract of one opened layer of a stack.
 *
 * What a node cannot do, it leaves out, and whoever wants it done asks first.
 * All offsets and lengths are in bytes.
 *
 * **Whose a buffer is.** The parts of a vector are lent for one request. Until
 * its promise settles, the caller neither changes them nor looks at what is to
 * be filled, and the node may go on using them, in any order and in parts.
 * Afterwards, whether it failed or not, they are the caller's again: a node that
 * needs the bytes for longer has copied them, and settles only when no child can
 * touch them any more. A node never changes bytes that it is to write. The list
 * of parts is lent in the same way, and changed by nobody. What a node answers
 * (an extent, a description) is the caller's.
 *
 * @module
 */
import type { IoVector } from "./bytes.ts";
import type { OptionValues } from "./options.ts";
import type { DriverTraits, Permissions } from "./traits.ts";

/**
 * An opened driver: one layer of a stack. The first five properties and three
 * verbs are all that it takes; the groups at the end are for few.
 */
export interface BlockNode {
  /** The driver that made it. */
  readonly driver: DriverTraits;
  /** The name under which the user knows it, for messages. */
  readonly filename: string;
  /** Bytes it presents now. */
  readonly size: number;
  /** Whether it refuses to be written to. */
  readonly readOnly: boolean;
  /** The nodes below it, by role. */
  readonly children: { readonly [role: string]: BlockNode | undefined };
  /** Sizes to which requests must keep, if any. */
  readonly limits?: RequestLimits;

  /**
   * Fill `iov` with the bytes from `offset` on. A protocol gives zeroes past
   * its end; of a format, only ranges within `size` may be asked for. `iov` is
   * the node's until the promise settles; if it rejects, what the parts hold
   * is undefined.
   */
  readv(offset: number, iov: IoVector, flags?: ReadFlags): Promise<void>;
  /** What the range from `offset` holds: the first extent of it. */
  status(offset: number, length: number): Promise<Extent>;
  /**
   * Make everything durable that can be. A driver's own ends its work; its
   * children are closed after it, if nobody else uses them. Called by others, it
   * lets go of a node that they have opened, which closes with its last user.
   */
  close(): Promise<void>;

  /**
   * Write the bytes of `iov`. A protocol grows when written past its end. The
   * bytes must stay as they are until the promise settles, `flags.placed` or
   * not; the node does not change them.
   */
  writev?(offset: number, iov: IoVector, flags?: WriteFlags): Promise<void>;
  /** Make a range read as zeroes. There is no buffer. */
  writeZeroes?(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void>;
  /** Give a range up; what it then reads as depends on the format. */
  discard?(
    offset: number,
    length: number,
    flags?: DiscardFlags,
  ): Promise<void>;
  /** Make everything written before durable. */
  flush?(): Promise<void>;
  /** Change the size, in bytes. */
  truncate?(size: number, options?: TruncateOptions): Promise<void>;
  /** Describe the image. */
  info?(): Promise<NodeInfo>;

  /**
   * Store whole clusters compressed; the disk's last one goes up to its end.
   * Clusters are stored in the order in which this is called. The bytes must
   * stay as they are until the promise settles.
   */
  writeCompressed?(
    offset: number,
    iov: IoVector,
    options?: CompressOptions,
  ): Promise<void>;
  /**
   * Write what a protocol's node holds from `sourceOffset` on, without its
   * passing through here: the system copies it from file to file, and there is
   * no buffer.
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
   * Have other processes know what is claimed of it. Protocols whose files
   * others can open have this.
   *
   * @throws {BlockError} EAGAIN if another one's claims do not permit it.
   */
  setPermissions?(permissions: Permissions): void;
  /**
   * Go on with another mode of access, and with all locks. Absent if it has to
   * be closed and opened for that; of protocols only.
   *
   * @throws {BlockError} EACCES … if it cannot; nothing is changed then.
   */
  setMode?(mode: AccessMode): Promise<void>;
  /**
   * Go on with another child, which holds the same bytes; nothing is under way
   * meanwhile. Absent if the node cannot do so.
   *
   * @throws {BlockError} EINVAL if it does not fit; nothing is changed then.
   */
  replaceChild?(role: string, child: BlockNode): void;
  /** Read everything anew: another program changed the image. */
  invalidate?(): Promise<void>;
  /**
   * Go on with other options: all those of its driver that are not children.
   * Those of all nodes, such as `read-only`, need opening it anew.
   *
   * @throws {BlockError} EINVAL if they make no sense; nothing is changed then.
   */
  reopen?(options: OptionValues): Promise<void>;

  /** Snapshots within the image; absent where its format has none. */
  readonly snapshots?: SnapshotOperations;
  /** What is done to an image as a whole; absent where there is none. */
  readonly image?: ImageOperations;
  /** State of a virtual machine that is kept with the disk. */
  readonly vmState?: VmStateOperations;
  /** Steps of the work of the node above; nodes for tests have this. */
  readonly debug?: DebugOperations;
}

/** How a protocol accesses what it presents. */
export interface AccessMode {
  /** Whether to refuse to write. */
  readonly readOnly: boolean;
  /** Whether a flush does nothing. */
  readonly noFlush: boolean;
  /** Whether to bypass the page cache where the system can. */
  readonly direct: boolean;
}

/** Wishes that go with any request. */
export interface RequestFlags {
  /**
   * Gives the request up. It fails with ECANCELED, the signal's reason as the
   * cause, as soon as nobody touches its buffers any more; what it has done
   * until then stays done. A node that cannot stop half-way goes on to the end.
   */
  signal?: AbortSignal;
}

/** Wishes that go with a read. */
export type ReadFlags = RequestFlags;

/** Wishes that go with a discard. */
export type DiscardFlags = RequestFlags;

/** Wishes that go with a write. */
export interface WriteFlags extends RequestFlags {
  /** Reach the disk before the promise is fulfilled. */
  fua?: boolean;
  /**
   * Others are under way meanwhile: it may take a little longer if they get on
   * faster so.
   */
  background?: boolean;
  /**
   * Called when it is settled where all of it goes, so that what is written
   * from then on finds its place as it would after the end. Copies wait for
   * that, or the end, before they write on. It says nothing of what is written
   * first, or whether it can be. A node that cannot tell does not call it.
   */
  placed?(): void;
}

/** Wishes that go with a write of zeroes. */
export interface ZeroFlags extends RequestFlags, Pick<WriteFlags, "fua"> {
  /** The space may be given back. */
  unmap?: boolean;
  /** Fail with ENOTSUP rather than write zeroes as data. */
  noFallback?: boolean;
}

/** How to compress. */
export interface CompressOptions extends RequestFlags {
  /**
   * How hard to try: 0 to 9 for zlib, 1 to 22 for zstd. Default: the result is
   * about as small as QEMU's.
   */
  level?: number;
  /** Fail (EIO) rather than replace compressed data. Default: false. */
  onlyEmpty?: boolean;
}

/** How much of a new area is reserved at once. */
export type Preallocation = "off" | "metadata" | "falloc" | "full";

/** Wishes that go with a change of size. */
export interface TruncateOptions extends RequestFlags {
  /** How to reserve the new area. */
  preallocation?: Preallocation;
  /** Whether the size must be exact even where the driver would round. */
  exact?: boolean;
  /** Whether the new area must read as zeroes. Default: true. */
  zero?: boolean;
}

/** One range of a node that is the same throughout. */
export interface Extent {
  /** Bytes from the offset that was asked for. */
  length: number;
  /** Whether the node itself determines what it reads as. */
  allocated: boolean;
  /**
   * Whether it is known to read as zeroes. What is neither this nor allocated
   * is left to the backing file (zeroes without one).
   */
  zero: boolean;
  /** Whether it is stored compressed. Default: false. */
  compressed?: boolean;
  /** Where in `file` the range lies, if it has a plain place there. */
  hostOffset?: number;
  /** The child that `hostOffset` refers to. */
  file?: BlockNode;
  /** The child may know better: part of this data may be holes there. */
  recurse?: boolean;
  /** Of compressed data, how many bytes of the disk are stored as one. */
  unit?: number;
}

/** Sizes to which requests of a node must keep. */
export interface RequestLimits {
  /**
   * Offsets and lengths of reads and writes must be multiples of this, in
   * bytes. Default 1. The driver need not care for others: an opened node is
   * made to take any. Where the size is no multiple, requests may go on to the
   * next one.
   */
  requestAlignment?: number;
  /** Largest read or write, in bytes. */
  maxTransfer?: number;
  /** Writing zeroes is best done in multiples of this, in bytes. */
  writeZeroesAlignment?: number;
  /** Most bytes to be zeroed at once. */
  maxWriteZeroes?: number;
  /** Discarding is best done in multiples of this, in bytes. */
  discardAlignment?: number;
  /** Most bytes to be discarded at once. */
  maxDiscard?: number;
}

/** What a driver tells about an image. */
export interface NodeInfo {
  /** The size of the disk is not known: there is no driver for its format. */
  sizeUnknown?: boolean;
  /** Bytes of a cluster, for formats that have clusters. */
  clusterSize?: number;
  /** Whether it was not closed properly; absent where that makes no sense. */
  dirty?: boolean;
  /** Whether its content is encrypted. */
  encrypted?: boolean;
  /** Whether it holds only compressed clusters (streaming formats). */
  compressed?: boolean;
  /** Bytes it takes on the disk below; of a protocol. */
  actualSize?: number;
  /** The backing file's name as the image has it. */
  backingFile?: string;
  /** The backing file's format as the image has it. */
  backingFormat?: string;
  /** Bitmaps kept in the image; absent if it cannot keep any. */
  bitmaps?: readonly BitmapInfo[];
  /** Why the bitmaps that the image has cannot be told. */
  bitmapsFault?: string;
  /** Offset at which VM state is kept, for formats that keep it. */
  vmStateOffset?: number;
  /** What only this format has, in the field names of QEMU's QAPI. */
  specific?: { type: string; data: Record<string, unknown> };
}

/** A bitmap that is kept in an image: which parts of the disk were written. */
export interface BitmapInfo {
  /** Its name, unique in the image. */
  name: string;
  /** Bytes of the disk that a bit stands for. */
  granularity: number;
  /**
   * `in-use`: it was not stored properly. `auto`: it goes on recording when
   * the image is opened.
   */
  flags: ("in-use" | "auto")[];
}

/** What to keep in mind when a bitmap is made. */
export interface BitmapOptions {
  /**
   * Bytes of the disk that a bit stands for: a power of two from 512 to 2 GiB.
   * Default: the format's choice.
   */
  granularity?: number;
  /** Whether it records what is written from now on. Default: true. */
  enabled?: boolean;
}

/** A range of a disk, in bytes. */
export interface DirtyExtent {
  /** Its first byte. */
  offset: number;
  /** How many there are. */
  length: number;
}

/**
 * Bitmaps that are kept in an image, and record which parts of the disk are
 * written to, zeroed and discarded. An image that is closed properly stores
 * them; one that is not says of those that have changed that they are in use.
 *
 * Those that find no bitmap of the name reject with ENOENT; those that use what
 * one has recorded, with EINVAL if it is in use and so cannot be relied upon.
 */
export interface BitmapOperations {
  /** All bitmaps. */
  list(): Promise<BitmapInfo[]>;
  /**
   * Make a bitmap that has recorded nothing yet.
   *
   * @throws {BlockError} EINVAL if there is one of that name, or the format
   * cannot keep it.
   */
  add(name: string, options?: BitmapOptions): Promise<void>;
  /** Drop a bitmap, whatever its state. */
  remove(name: string): Promise<void>;
  /** Forget all that a bitmap has recorded. */
  clear(name: string): Promise<void>;
  /** Have a bitmap record from now on. */
  enable(name: string): Promise<void>;
  /** Have a bitmap record nothing any more; it keeps what it has recorded. */
  disable(name: string): Promise<void>;
  /**
   * Record ranges in a bitmap, enabled or not, rounded to its granularity. They
   * may be those of another bitmap of the same image.
   */
  merge(name: string, extents: AsyncIterable<DirtyExtent>): Promise<void>;
  /**
   * What a bitmap has recorded of a range, in order; neighbours are one extent.
   * Requests may go on meanwhile, and be missed.
   */
  dirty(
    name: string,
    offset: number,
    length: number,
  ): AsyncIterable<DirtyExtent>;
}

/** A snapshot within an image. */
export interface Snapshot {
  /** A number as text, unique in the image. */
  id: string;
  /** The name its user gave it; need not be unique. */
  name: string;
  /** When it was taken: seconds since 1970. */
  dateSeconds: number;
  /** And nanoseconds past that. */
  dateNanoseconds: number;
  /** How long the guest had run, in nanoseconds. */
  vmClockNanoseconds: bigint;
  /** Bytes of VM state kept with it; 0 without one. */
  vmStateSize: number;
  /** Size of the disk at the time, in bytes. */
  diskSize: number;
  /** Instructions the guest had executed, if they were counted. */
  icount?: bigint;
}

/** What to record with a new snapshot. */
export interface SnapshotRequest {
  /** Its name; may be empty. */
  name: string;
  /** When it was taken, in milliseconds since 1970. Default: now. */
  date?: number;
  /** How long the guest had run, in nanoseconds. Default: 0. */
  vmClockNanoseconds?: bigint;
  /** Bytes of VM state that `vmState.save` wrote before. Default: 0. */
  vmStateSize?: number;
  /** Instructions the guest had executed. Default: not counted. */
  icount?: bigint;
}

/**
 * Snapshots within an image. Where one is wanted `idOrName`, an id goes before
 * a name, and the first of a name before others.
 */
export interface SnapshotOperations {
  /** All snapshots, oldest first. */
  list(): Promise<Snapshot[]>;
  /** Keep the disk as it is now. */
  create(request: SnapshotRequest): Promise<Snapshot>;
  /** Make the disk what it was; what it is now is lost. */
  apply(idOrName: string): Promise<void>;
  /** Forget a snapshot. */
  delete(idOrName: string): Promise<void>;
  /**
   * Show a snapshot in place of the disk, until the node is closed. Read-only
   * nodes only.
   */
  loadTemporary(idOrName: string): Promise<void>;
}

/** What is done to an image as a whole. What a format cannot do is absent. */
export interface ImageOperations {
  /** Examine, and on demand repair, the image's own structures. */
  check?(options?: CheckOptions): Promise<CheckResult>;
  /** Change options of the image in place, by the driver's `amendOptions`. */
  amend?(options: OptionValues, how?: AmendOptions): Promise<void>;
  /** Record another backing file in the image; `undefined` removes it. */
  changeBacking?(name?: string, format?: string): Promise<void>;
  /**
   * Give up all that the image holds of its own, its snapshots apart: the disk
   * then reads as its backing file, or as zeroes without one.
   */
  makeEmpty?(): Promise<void>;
  /** Bitmaps that are kept in the image. */
  readonly bitmaps?: BitmapOperations;
}

/** VM state, which is no part of the disk. Offsets are from its start. */
export interface VmStateOperations {
  /** Write the bytes of `iov`, which are lent as for `writev`. */
  save(offset: number, iov: IoVector): Promise<void>;
  /** Fill `iov`, which is lent as for `readv`. */
  load(offset: number, iov: IoVector): Promise<void>;
}

/** How to check. */
export interface CheckOptions extends RequestFlags {
  /** What to repair. */
  repair?: { leaks: boolean; corruptions: boolean };
  /**
   * Receives each finding as it is made, a line each. `named` marks an error
   * message, before which a program puts its name.
   */
  report?(line: string, named?: boolean): void;
}

/** Counts of what a check found; in the terms of `qemu-img check`. */
export interface CheckResult {
  /** References that do not fit what is stored: data may be damaged. */
  corruptions: number;
  /** Clusters that nothing refers to: space is wasted, nothing lost. */
  leaks: number;
  /** What could not be checked. */
  checkErrors: number;
  /** Corruptions that were repaired. */
  corruptionsFixed: number;
  /** Leaks that were repaired. */
  leaksFixed: number;
  /** End of the last cluster in use, bytes. */
  imageEndOffset: number;
  /** Guest clusters that the disk has. */
  totalClusters: number;
  /** Guest clusters that have a place in the file. */
  allocatedClusters: number;
  /** Of those, the ones that do not follow their predecessor in the file. */
  fragmentedClusters: number;
  /** Of those, the compressed ones. */
  compressedClusters: number;
}

/** How to change options of an image. */
export interface AmendOptions {
  /**
   * Told how far the work has come. `total` is a guess as long as it is not
   * known how often tables must be gone through.
   */
  progress?(done: number, total: number): void;
}

/** What nodes for tests offer to the node above. */
export interface DebugOperations {
  /**
   * A step of the work of the node above is about to be done, by the name that
   * QEMU's `blkdebug` has for it. The node fails or waits if it is to.
   */
  event(name: string): Promise<void> | void;
  /** Absent where requests cannot be stopped. */
  readonly breakpoints?: Breakpoints;
}

/** Stopping requests at what they are about to do. */
export interface Breakpoints {
  /**
   * Stop the next request that tells of `event`; it waits until `tag` is
   * resumed.
   *
   * @throws {BlockError} ENOENT if there is no such event.
   */
  breakpoint(event: string, tag: string): void;
  /**
   * Let one of the requests that were stopped under `tag` go on.
   *
   * @throws {BlockError} ENOENT if there is none.
   */
  resume(tag: string): void;
  /**
   * Forget the breakpoints of that name, and let all that they stopped go on.
   *
   * @throws {BlockError} ENOENT if there are none of both.
   */
  removeBreakpoint(tag: string): void;
  /** Whether a request is stopped under `tag`. */
  isSuspended(tag: string): boolean;
  /** Fulfilled when a request is stopped under `tag`. */
  waitSuspended(tag: string): Promise<void>;
  /** Receives a line when a request is stopped or goes on. */
  report?: (line: string) => void;
}
