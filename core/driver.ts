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
   * own. Formats only. `head` holds 2048 bytes, zeroes past the end of the
   * image. A driver with a name that QEMU has as well needs none: the magics
   * of such formats are known.
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
   * The folder in which an image of that name lies; `undefined` if it has none:
   * a device, a pipe, what another program has opened. Protocols whose names
   * are paths have it; only in its own folder, and from there, may an image
   * name others unless the user says otherwise.
   */
  ownFolder?(filename: string): string | undefined;
  /**
   * Whether a plain file name leads to it rather than to `file`, as that of a
   * device does. Protocols only.
   */
  claimsFile?(filename: string): boolean;
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
  /** As {@linkcode OpenContext.unlocked}. */
  unlocked(why: string): void;
  /** As {@linkcode OpenContext.secret}. */
  secret(id: string | undefined): Promise<Uint8Array | undefined>;
}
