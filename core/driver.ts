/**
 * The driver contract, which every format, protocol and filter fulfils.
 *
 * A *driver* is registered; opening one yields a *node*; a node has named
 * *children*. A request enters at the top node and travels down through
 * children, never back up. All offsets and lengths are in bytes.
 *
 * @module
 */
import type { ChainExtent } from "./extents.ts";
import type { BlockNode, Preallocation } from "./node.ts";
import type { OptionValues } from "./options.ts";
import type { AioMode, DriverTraits, OpenPurpose } from "./traits.ts";

/**
 * A registered kind of node.
 *
 * @category Drivers
 */
export interface BlockDriver extends DriverTraits {
  /**
   * Load the driver, if this is only a stand-in: loading takes time, so it
   * waits until the driver is used. To access option tables or optional
   * functions, call {@linkcode loadDriver} first.
   */
  load?(): Promise<BlockDriver>;
  /** Open a node. */
  open(options: OptionValues, context: OpenContext): Promise<BlockNode>;
  /** Create an image. `options` have been parsed by `createOptions`. */
  create?(options: OptionValues, context: CreateContext): Promise<void>;
  /**
   * Create an image front to back, for targets that cannot seek.
   *
   * @param options As for `create`; `size` is that of `source`.
   * @param target Present if the target can seek.
   * @param filename The name or path of the file that will hold it, if known.
   * @returns its bytes. Each part is valid until the next one is requested.
   */
  stream?(
    options: OptionValues,
    source: StreamSource,
    target?: StreamTarget,
    filename?: string,
  ): AsyncIterable<Uint8Array>;
  /**
   * Whether a new image with these options is written front to back, by
   * {@linkcode stream}, even to seekable targets. Default: no.
   */
  isStream?(options: OptionValues): boolean;
  /**
   * Unpack the content of a file from beginning to end: for containers without
   * random access, whose `open` fails with ENOTSUP. Each part is valid until
   * the next one is requested.
   *
   * @param options As for `open`.
   * @param warn Reports what is wrong with the file, but does not matter.
   */
  unpack?(
    options: OptionValues,
    file: BlockNode,
    warn?: (message: string) => void,
  ): AsyncIterable<Uint8Array>;
  /**
   * Create or replace a file with all its bytes, front to back: completely or
   * not at all. For protocols whose files cannot be changed afterwards.
   *
   * @param options As for `open`.
   * @param chunks Each is valid until the next one is requested.
   */
  store?(
    options: OptionValues,
    chunks: AsyncIterable<Uint8Array>,
    context: StoreContext,
  ): Promise<void>;
  /** Whether a new file with these options can be created only by `store`. */
  storesWhole?(options: OptionValues): boolean;
  /**
   * Compute how large the file of a new image would become.
   *
   * @param options As for `create`, with their types; values of enumerations
   * have not been checked. `size` counts only without `source`.
   * @param source The disk that the image is to hold.
   */
  measure?(
    options: OptionValues,
    source?: BlockNode,
    context?: MeasureContext,
  ): Promise<Measurement>;
}

/**
 * What the block layer offers to `store`.
 *
 * @category Drivers
 */
export interface StoreContext {
  /** Approximate number of bytes; absent if unknown. */
  readonly expected?: number;
  /** Cancels it with ECANCELED. */
  readonly signal?: AbortSignal;
  /** As {@linkcode OpenContext.secret}. */
  secret(id: string | undefined): Promise<Uint8Array | undefined>;
}

/**
 * What the block layer offers to `measure`.
 *
 * @category Drivers
 */
export interface MeasureContext {
  /** As {@linkcode OpenContext.secret}. */
  secret(id: string | undefined): Promise<Uint8Array | undefined>;
  /**
   * The first extent of a range of the source, through its backing chain. Waits
   * while the source is drained.
   *
   * @throws {BlockError} ECANCELED if the job has been cancelled.
   */
  status?(offset: number, length: number): Promise<ChainExtent>;
}

/**
 * The seekable file of a new image that is written front to back.
 *
 * @category Drivers
 */
export interface StreamTarget {
  /**
   * Replace bytes of the stream once all of it has been written: values that
   * were not known in time. The target takes over `bytes`.
   */
  replace(offset: number, bytes: Uint8Array): void;
}

/**
 * The content of a new image that is written front to back.
 *
 * @category Drivers
 */
export interface StreamSource {
  /** Bytes, a multiple of 512. */
  readonly size: number;
  /** Whether zeroes must be stored too; they are reported as data. */
  readonly fills: boolean;
  /** All extents, in order; may be called more than once. */
  extents(): AsyncIterable<StreamExtent>;
  /** Fill `bytes` from `offset` on: lent until the promise settles. */
  read(offset: number, bytes: Uint8Array): Promise<void>;
}

/**
 * A range of the source; `unallocated` reads as the backing file.
 *
 * @category Drivers
 */
export interface StreamExtent {
  /** Bytes from the start of the disk. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  /** What it holds. */
  readonly kind: "data" | "zero" | "unallocated";
}

/**
 * How large the file of a new image would become, in bytes.
 *
 * @category Drivers
 */
export interface Measurement {
  /** With only the source's data. */
  required: number;
  /** Once the whole disk has been written. */
  fullyAllocated: number;
  /**
   * What the source's bitmaps would take in addition. Absent unless both
   * formats can store bitmaps.
   */
  bitmaps?: number;
}

/**
 * What the block layer offers to `open`.
 *
 * @category Drivers
 */
export interface OpenContext {
  /**
   * Whether the new node must not write. It becomes true when a child opened as
   * `file`, `image` or `data-file` turns out not to be writable, so read it
   * after that.
   */
  readonly readOnly: boolean;
  /** The user's name for this node, for messages. */
  readonly filename: string;
  /**
   * Why the node is opened: `io` to use its data, `info` only to describe it
   * (nothing that its header names is opened), `check` to examine an image
   * whose tables may be damaged.
   */
  readonly purpose: OpenPurpose;
  /**
   * Whether the format was probed from the content, which the guest controls.
   * The raw driver then refuses writes that would change the result.
   */
  readonly probed: boolean;
  /** Whether an image names this file, rather than the user. */
  readonly isNamed: boolean;
  /** Whether to open without keys, so that data is neither read nor written. */
  readonly withoutKeys: boolean;
  /** Cancels slow operations such as deriving a key. */
  readonly signal?: AbortSignal;
  /** Called with the progress of deriving a key, in iterations. */
  unlocking?(done: number, total: number): void;
  /**
   * Whether flushes do nothing: the system decides when data reaches the disk.
   */
  readonly noFlush: boolean;
  /** Whether to bypass the page cache where the system can. */
  readonly direct: boolean;
  /** How to make a file's requests. Default: the fastest way. */
  readonly aio?: AioMode;
  /**
   * Announce the next step of the driver's work, by `blkdebug`'s name for it.
   */
  event?(name: string): void;
  /** Warn the user. */
  warn(message: string): void;
  /**
   * Report that a file open for writing cannot be locked; `why` is a sentence.
   */
  unlocked(why: string): void;
  /**
   * Report a line: a finding, or that an image is damaged. `named` marks an
   * error message, which a program prefixes with its name.
   */
  report(line: string, named?: boolean): void;
  /**
   * The bytes of a secret; `undefined` if `id` is absent and the user offers
   * none.
   *
   * @throws {BlockError} EINVAL if there is no secret of that name.
   */
  secret(id: string | undefined): Promise<Uint8Array | undefined>;
  /**
   * Open the child called `name` as described by `options[name]`, where a file
   * name means a protocol node and is not probed; or by `description`, which
   * may be an image of any format.
   */
  openChild(name: string, description?: unknown): Promise<BlockNode>;
  /**
   * Check that a redirect may be followed: it must not lead anywhere that the
   * image could not name itself.
   *
   * @throws {BlockError} EACCES if the gate does not permit it.
   */
  checkRedirect(url: string): Promise<void>;
  /** Whether the user described the child called `name`, or named it `null`. */
  describes(name: string): boolean;
  /**
   * Open a file that an image names (a backing file); it must pass the gate.
   * `name` is as stored in the image, relative to the image's own folder.
   * Returns `undefined` if backing files are not to be opened.
   */
  openImplicit(
    child: string,
    name: string,
    format: string | undefined,
  ): Promise<BlockNode | undefined>;
  /**
   * Open a file that an image names for its data; it must pass the gate. `path`
   * is always taken as a path, relative to the current folder.
   */
  openNamed(child: "data-file", path: string): Promise<BlockNode>;
  /**
   * Open a file that an image names as a part of itself (an extent); it must
   * pass the gate, and is not probed. `name` is as for `openImplicit`;
   * `description` is the user's description of that child: a replacement, or
   * further options for the named file.
   */
  openPart(
    child: string,
    name: string,
    description?: unknown,
  ): Promise<BlockNode>;
}

/**
 * What the block layer offers to `create`.
 *
 * @category Drivers
 */
export interface CreateContext {
  /** The name of the file to create. */
  readonly filename: string;
  /**
   * Create or empty the protocol layer's file and open it for writing. Call it
   * only after validating all options, so that a mistake costs no existing
   * file.
   */
  createFile(
    size: number,
    preallocation?: Preallocation,
  ): Promise<BlockNode>;
  /**
   * Create or empty another file of the image, as {@linkcode createFile} does
   * the first one. `name` may have a scheme.
   *
   * @param how With `keep`, the file must exist, and keeps its content.
   */
  createNamed(
    name: string,
    how?: { readonly keep?: boolean },
  ): Promise<BlockNode>;
  /**
   * Create or empty another file of the image, in the same folder, and let
   * `fill` write to it. It is closed afterwards: there may be thousands.
   */
  createPart(
    name: string,
    size: number,
    preallocation: Preallocation | undefined,
    fill: (file: BlockNode) => Promise<void>,
  ): Promise<void>;
  /**
   * Open another image, named relative to the new one, to read its header. The
   * caller closes it.
   */
  openBeside(name: string): Promise<BlockNode>;
  /** As {@linkcode OpenContext.unlocked}. */
  unlocked(why: string): void;
  /** As {@linkcode OpenContext.warn}. */
  warn(message: string): void;
  /** As {@linkcode OpenContext.secret}. */
  secret(id: string | undefined): Promise<Uint8Array | undefined>;
}
