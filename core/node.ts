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
  readv(offset: number, iov: IoVector): Promise<void>;
  /** What the range from `offset` holds: the first extent of it. */
  status(offset: number, length: number): Promise<Extent>;
  /** Make everything durable that can be, and let go of the children. */
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
  discard?(offset: number, length: number): Promise<void>;
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

/** Wishes that go with a write. */
export interface WriteFlags {
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
export interface ZeroFlags extends Pick<WriteFlags, "fua"> {
  /** The space may be given back. */
  unmap?: boolean;
  /** Fail with ENOTSUP rather than write zeroes as data. */
  noFallback?: boolean;
}

/** How to compress. */
export interface CompressOptions {
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
export interface TruncateOptions {
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
}

/** VM state, which is no part of the disk. Offsets are from its start. */
export interface VmStateOperations {
  /** Write the bytes of `iov`, which are lent as for `writev`. */
  save(offset: number, iov: IoVector): Promise<void>;
  /** Fill `iov`, which is lent as for `readv`. */
  load(offset: number, iov: IoVector): Promise<void>;
}

/** How to check. */
export interface CheckOptions {
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
  /** Do also what makes the image unusable, or may do so. Default: false. */
  force?: boolean;
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
