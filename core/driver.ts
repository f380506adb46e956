/**
 * What a driver is: the contract that every format and protocol fulfils.
 *
 * A *driver* is registered; opening one yields a *node*; a node has named
 * *children*. A request enters at the top node and travels down through
 * children, never back up. All offsets and lengths are in bytes.
 *
 * @module
 */
import type { IoVector } from "./bytes.ts";
import type { OptionTable, OptionValues } from "./options.ts";
import type { Claimant, Permissions } from "./permissions.ts";

/**
 * Where a driver stands in a stack. A `protocol` reaches bytes by itself, a
 * `format` maps them onto its `file` child, a `filter` passes them through.
 */
export type DriverRole = "protocol" | "format" | "filter";

/** A registered kind of node. */
export interface BlockDriver {
  /** The name by which stacks refer to it, such as `qcow2`. */
  readonly name: string;
  /** Where in a stack it stands. */
  readonly role: DriverRole;
  /** The options that `open` understands, apart from its children. */
  readonly openOptions?: OptionTable;
  /**
   * The options of a node that is opened anew, by their dotted names: `changes`
   * to those `before`. Absent if each option stands for itself.
   */
  joinOptions?(before: OptionValues, changes: OptionValues): OptionValues;
  /** The options that `create` understands; absent if it cannot create. */
  readonly createOptions?: OptionTable;
  /** The options that its nodes' `amend` understands; absent if they cannot. */
  readonly amendOptions?: OptionTable;
  /**
   * Scheme names that select this protocol in `scheme:rest` file names. A
   * filter that has them stands in for a protocol: it is put right above one,
   * and the format on top of it is found by probing.
   */
  readonly schemes?: readonly string[];
  /**
   * The options that decide what its nodes hold: one that has them is not
   * found by its file's name alone. A name that ends in a dot stands for all
   * that begin with it.
   */
  readonly strongOptions?: readonly string[];
  /**
   * The file name that leads to a node with these options, of which there are
   * only strong ones, above a child of that name, if there is one. Without it,
   * a format is found by the name of its file, a protocol by its `filename`.
   */
  plainName?(options: OptionValues, child?: string): string | undefined;
  /**
   * How sure it is, 0 to 100, that an image which begins with `head` is its
   * own. Formats only. `head` holds up to 2048 bytes.
   */
  probe?(head: Uint8Array, filename: string): number;
  /**
   * Turn the rest of a `scheme:rest` file name into options.
   * Without it, `rest` becomes the option `filename`.
   */
  parseFilename?(filename: string): OptionValues;
  /**
   * One name for each file, however it is spelt: links followed, `..` worked
   * out. Protocols whose names are paths have it; the gate relies on it.
   */
  canonicalName?(filename: string): string;
  /**
   * What a node of it, of which `own` is claimed, claims of the child called
   * `name`. Absent if that is the same for all drivers of its role.
   */
  childPermissions?(
    name: string,
    own: Permissions,
    parent: Claimant,
  ): Permissions;
  /** Open a node. */
  open(options: OptionValues, context: OpenContext): Promise<BlockNode>;
  /** Make a new image. `options` were parsed by `createOptions`. */
  create?(options: OptionValues, context: CreateContext): Promise<void>;
  /**
   * Make a new image front to back, for where one cannot seek.
   *
   * @param options As for `create`; `size` is that of `source`.
   * @returns its bytes. Each part is valid until the next is asked for.
   */
  stream?(
    options: OptionValues,
    source: StreamSource,
  ): AsyncIterable<Uint8Array>;
  /**
   * Tell how large the file of a new image would become.
   *
   * @param options As for `create`, with their types; values of enumerations
   * are still to be checked. `size` counts only without `source`.
   * @param source The disk that the image is to hold.
   */
  measure?(options: OptionValues, source?: BlockNode): Promise<Measurement>;
}

/** A disk that a new image is to hold, for who writes it front to back. */
export interface StreamSource {
  /** Bytes, a multiple of 512. */
  readonly size: number;
  /** All of it, in order; may be asked for more than once. */
  extents(): AsyncIterable<StreamExtent>;
  /** Fill `bytes` from `offset` on. */
  read(offset: number, bytes: Uint8Array): Promise<void>;
}

/** What a range of a disk holds: `unallocated` is left to the backing file. */
export interface StreamExtent {
  /** Bytes from the start of the disk. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** What it holds. */
  readonly kind: "data" | "zero" | "unallocated";
}

/** How large the file of a new image would become, in bytes. */
export interface Measurement {
  /** With only what the source holds. */
  required: number;
  /** Once all of the disk has been written to. */
  fullyAllocated: number;
  /**
   * What the source's bitmaps would take in addition. Absent unless both can
   * keep bitmaps.
   */
  bitmaps?: number;
}

/** What `open` may ask of the block layer. */
export interface OpenContext {
  /** Whether nothing may be written through the new node. */
  readonly readOnly: boolean;
  /** The name under which the user knows this node, for messages. */
  readonly filename: string;
  /**
   * Why the node is opened: `io` to use its data, `info` only to describe it
   * (nothing that its header names is opened), `check` to examine an image
   * whose tables may be damaged.
   */
  readonly purpose: OpenPurpose;
  /**
   * Whether the format was guessed from the content, which its guest controls.
   * The raw driver then refuses writes that would make another guess likely.
   */
  readonly probed: boolean;
  /** Whether to leave it to the system when written data reaches the disk. */
  readonly noFlush: boolean;
  /** Whether to bypass the page cache where the system can. */
  readonly direct: boolean;
  /** Whether asynchronous I/O of the system is asked for. */
  readonly nativeAio: boolean;
  /** Tell that a step of the driver's work is about to be done. */
  event?(name: string): void;
  /** Tell the user about something that is not an error. */
  warn(message: string): void;
  /** A file that is written to cannot be locked; `why` is a sentence. */
  unlocked(why: string): void;
  /** Show a whole line: a finding, or the news that an image is damaged. */
  report(line: string): void;
  /**
   * The bytes of a secret; `undefined` if none is named (`id` is absent) and
   * the user does not offer one either.
   *
   * @throws {BlockError} EINVAL if there is no secret of that name.
   */
  secret(id: string | undefined): Promise<Uint8Array | undefined>;
  /**
   * Open the child called `name` as `options[name]` describes it; a file name
   * there is taken for a protocol's, its content is not probed. With a
   * `description` it is what that says, and may be an image of any format.
   */
  openChild(name: string, description?: unknown): Promise<BlockNode>;
  /** Whether the user described the child called `name`, or named it `null`. */
  describes(name: string): boolean;
  /**
   * Open a file that an image names (a backing file): it must pass the gate.
   * `name` is as the image has it, relative to that image's own folder; the
   * answer is `undefined` if backing files are not wanted.
   */
  openImplicit(
    child: string,
    name: string,
    format: string | undefined,
  ): Promise<BlockNode | undefined>;
}

/** Why a node is opened; see {@linkcode OpenContext.purpose}. */
export type OpenPurpose = "io" | "info" | "check";

/** What `create` may ask of the block layer. */
export interface CreateContext {
  /** The name of the file to make. */
  readonly filename: string;
  /**
   * Make or empty the protocol layer's file and open it for writing. Ask for
   * it only when all options have been found valid, so that a mistake costs
   * no existing file.
   */
  createFile(
    size: number,
    preallocation?: Preallocation,
  ): Promise<BlockNode>;
  /** As {@linkcode OpenContext.secret}. */
  secret(id: string | undefined): Promise<Uint8Array | undefined>;
}

/** How much of a new area is reserved at once. */
export type Preallocation = "off" | "metadata" | "falloc" | "full";

/** Wishes that go with a write. */
export interface WriteFlags {
  /** Reach the disk before the promise is fulfilled. */
  fua?: boolean;
}

/** Wishes that go with a write of zeroes. */
export interface ZeroFlags extends WriteFlags {
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
}

/** Wishes that go with a change of size. */
export interface TruncateOptions {
  /** How to reserve the new area. */
  preallocation?: Preallocation;
  /** Whether the size must be exact even where the driver would round. */
  exact?: boolean;
  /** Whether the new area must read as zeroes. Default: true. */
  zero?: boolean;
}

/** What a range of a node holds. */
export type ExtentKind = "data" | "zero" | "compressed" | "unallocated";

/** One range of a node in which everything is of the same kind. */
export interface Extent {
  /** Bytes from the offset that was asked for. */
  length: number;
  /**
   * `data` has bytes of its own, `compressed` likewise, `zero` reads as
   * zeroes, `unallocated` is left to the backing file (zeroes without one).
   */
  kind: ExtentKind;
  /** Where in `file` the range lies, if it has a plain place there. */
  hostOffset?: number;
  /** The child that `hostOffset` refers to. */
  file?: BlockNode;
  /** The child may know better: part of this data may be holes there. */
  recurse?: boolean;
}

/** What a driver tells about an image. */
export interface NodeInfo {
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

/** Stopping requests at what they are about to do; for tests. */
export interface DebugOperations {
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

/** How to change options of an image. */
export interface AmendOptions {
  /**
   * Told how far the work has come. `total` is a guess as long as it is not
   * known how often tables must be gone through.
   */
  progress?(done: number, total: number): void;
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
  /** Bytes of VM state that `saveVmState` wrote before. Default: 0. */
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

/** An opened driver: one layer of a stack. */
export interface BlockNode {
  /** The driver that made it. */
  readonly driver: BlockDriver;
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
   * its end; of a format, only ranges within `size` may be asked for.
   */
  readv(offset: number, iov: IoVector): Promise<void>;
  /** What the range from `offset` holds: the first extent of it. */
  status(offset: number, length: number): Promise<Extent>;
  /** Make everything durable that can be, and let go of the children. */
  close(): Promise<void>;

  /** Write the bytes of `iov`. A protocol grows when written past its end. */
  writev?(offset: number, iov: IoVector, flags?: WriteFlags): Promise<void>;
  /** Make a range read as zeroes. */
  writeZeroes?(
    offset: number,
    length: number,
    flags?: ZeroFlags,
  ): Promise<void>;
  /** Give a range up; what it then reads as depends on the format. */
  discard?(offset: number, length: number): Promise<void>;
  /**
   * Store whole clusters compressed; the disk's last one goes up to its end.
   * Clusters are stored in the order in which this is called.
   */
  writeCompressed?(
    offset: number,
    iov: IoVector,
    options?: CompressOptions,
  ): Promise<void>;
  /**
   * Write what a protocol's node holds from `sourceOffset` on, without its
   * passing through here: the system copies it from file to file.
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
  /** Make everything written before durable. */
  flush?(): Promise<void>;
  /** Change the size, in bytes. */
  truncate?(size: number, options?: TruncateOptions): Promise<void>;
  /**
   * A step of the work of the node above is about to be done, by the name that
   * QEMU's `blkdebug` has for it. Nodes for tests fail or wait then.
   */
  debugEvent?(name: string): Promise<void> | void;
  /** Breakpoints; only nodes for tests have them. */
  readonly debug?: DebugOperations;
  /**
   * Have other processes know what is claimed of it. Protocols whose files
   * others can open have this.
   *
   * @throws {BlockError} EAGAIN if another one's claims do not permit it.
   */
  setPermissions?(permissions: Permissions): void;
  /** Describe the image. */
  info?(): Promise<NodeInfo>;
  /** Examine, and on demand repair, the image's own structures. */
  check?(options?: CheckOptions): Promise<CheckResult>;
  /** Snapshots within the image; absent where its format has none. */
  readonly snapshots?: SnapshotOperations;
  /** Write VM state, `offset` bytes from its start; it is no part of the disk. */
  saveVmState?(offset: number, iov: IoVector): Promise<void>;
  /** Read VM state, `offset` bytes from its start. */
  loadVmState?(offset: number, iov: IoVector): Promise<void>;
  /** Read everything anew: another program changed the image. */
  invalidate?(): Promise<void>;
  /**
   * Go on with other options: all those of its driver that are not children.
   * Those of all nodes, such as `read-only`, need opening it anew.
   *
   * @throws {BlockError} EINVAL if they make no sense; nothing is changed then.
   */
  reopen?(options: OptionValues): Promise<void>;
  /**
   * Give up all that the image holds of its own, its snapshots apart: the disk
   * then reads as its backing file, or as zeroes without one.
   */
  makeEmpty?(): Promise<void>;
  /** Record another backing file in the image; `undefined` removes it. */
  changeBacking?(name?: string, format?: string): Promise<void>;
  /** Change options of the image in place, by the driver's `amendOptions`. */
  amend?(options: OptionValues, how?: AmendOptions): Promise<void>;
}
