/**
 * What a driver is: the contract that every format and protocol fulfils.
 *
 * A *driver* is registered; opening one yields a *node*; a node has named
 * *children*. A request enters at the top node and travels down through
 * children, never back up. All offsets and lengths are in bytes.
 *
 * @module
 */
import type { BlockNode, Preallocation } from "./node.ts";
import type { OptionValues } from "./options.ts";
import type { DriverTraits, OpenPurpose } from "./traits.ts";

/** A registered kind of node. */
export interface BlockDriver extends DriverTraits {
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
  measure?(
    options: OptionValues,
    source?: BlockNode,
    context?: MeasureContext,
  ): Promise<Measurement>;
}

/** What `measure` may ask of the block layer. */
export interface MeasureContext {
  /** As {@linkcode OpenContext.secret}. */
  secret(id: string | undefined): Promise<Uint8Array | undefined>;
}

/** A disk that a new image is to hold, for who writes it front to back. */
export interface StreamSource {
  /** Bytes, a multiple of 512. */
  readonly size: number;
  /** All of it, in order; may be asked for more than once. */
  extents(): AsyncIterable<StreamExtent>;
  /** Fill `bytes` from `offset` on: lent until the promise settles. */
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
  /**
   * Whether nothing may be written through the new node. It becomes true when
   * a child that is opened as `file`, `image` or `data-file` cannot write at
   * all, so ask after that.
   */
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
  /** Whether to do without keys, so that data is neither read nor written. */
  readonly withoutKeys: boolean;
  /** Stops what takes long, such as finding a key. */
  readonly signal?: AbortSignal;
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
  /** As {@linkcode OpenContext.unlocked}. */
  unlocked(why: string): void;
  /** As {@linkcode OpenContext.secret}. */
  secret(id: string | undefined): Promise<Uint8Array | undefined>;
}
