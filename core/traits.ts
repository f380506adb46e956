/**
 * The part of the driver contract that does not involve nodes: a driver's
 * description of itself, and its claims on children. Nodes refer to their
 * driver by this type, which avoids a cycle with `driver.ts`.
 *
 * @module
 */
import type { OptionTable, OptionValues } from "./options.ts";
import type { FileInfo } from "./platform/files.ts";

/**
 * A driver's role in a stack. A `protocol` accesses bytes itself, a `format`
 * maps a disk onto its `file` child, a `filter` passes requests through.
 *
 * @category Drivers
 */
export type DriverRole = "protocol" | "format" | "filter";

/**
 * How requests to a file are made: by threads, or by one of the kernel's
 * asynchronous interfaces.
 *
 * @category Drivers
 */
export type AioMode = "threads" | "native" | "io_uring";

/**
 * The part of a driver's description of itself that only options are needed for.
 *
 * @category Drivers
 */
export type DriverTables = Pick<
  DriverTraits,
  "openOptions" | "joinOptions" | "createOptions" | "amendOptions"
>;

/**
 * A driver's description of itself.
 *
 * @category Drivers
 */
export interface DriverTraits {
  /** The name by which stacks refer to it, such as `qcow2`. */
  readonly name: string;
  /** Its role in a stack. */
  readonly role: DriverRole;
  /**
   * Load the tables of options, if the driver begins without: `loadDriver` adds
   * them to it. A node is opened without them if it gets nothing but children.
   */
  loadTables?(): Promise<DriverTables>;
  /** The names of its children. Goes with `loadTables`. */
  readonly childNames?: readonly string[];
  /** The options of `open`, apart from children. */
  readonly openOptions?: OptionTable;
  /**
   * Merge `changes` into the options `before` when a node is reopened, by
   * dotted name. Absent if each option is independent of the others.
   */
  joinOptions?(before: OptionValues, changes: OptionValues): OptionValues;
  /** The options of `create`; absent if it cannot create. */
  readonly createOptions?: OptionTable;
  /**
   * Whether a new image reads as zeroes before anything is written to it.
   * Default: true for formats. Protocols must say so, since they may have
   * reused an existing object.
   */
  readonly createsZeroes?: boolean;
  /** The options of its nodes' `amend`; absent if they cannot amend. */
  readonly amendOptions?: OptionTable;
  /**
   * Scheme names that select this protocol in `scheme:rest` file names. A
   * filter with schemes stands in for a protocol: it is put right above one,
   * and the format on top of it is probed.
   */
  readonly schemes?: readonly string[];
  /**
   * Options that determine the content: a node that has any cannot be opened by
   * its file name alone. A name that ends in a dot stands for all that begin
   * with it.
   */
  readonly strongOptions?: readonly string[];
  /**
   * The file name that opens a node with these strong options above a child
   * with the name `child`, if there is one. Default: a format's name is that of
   * its file, a protocol's its `filename`.
   */
  plainName?(options: OptionValues, child?: string): string | undefined;
  /**
   * Whether its node presents a file stored in another, such as an archive's
   * member: an image of any format, found by probing unless the stack names its
   * format. Default: false.
   */
  readonly isContainer?: boolean;
  /**
   * The role of the node to which a filter passes requests on. Default: `file`.
   */
  readonly childRole?: string;
  /**
   * Confidence, from 0 to 100, that an image beginning with `head` has its
   * format. Formats only. `head` is 2048 bytes, zeroes past the end of the
   * image. A driver for one of QEMU's formats, under QEMU's name, needs no
   * `probe`: those magics are built in.
   */
  probe?(head: Uint8Array, filename: string): number;
  /**
   * Whether its nodes can never be written to: they are opened read-only unless
   * the user asks for a writable node. Default: false.
   */
  readonly isReadOnly?: boolean;
  /**
   * Whether it is registered only to be refused by name, with a suggestion; it
   * is not listed. Default: false.
   */
  readonly isAbsent?: boolean;
  /**
   * Turn the rest of a `scheme:rest` file name into options.
   * Without it, `rest` becomes the option `filename`.
   */
  parseFilename?(filename: string): OptionValues;
  /**
   * The canonical name of a file: links followed, `..` resolved. For protocols
   * whose names are paths or URLs; the gate relies on it.
   */
  canonicalName?(filename: string): string;
  /**
   * The folder of an image; `undefined` for a device, a pipe, or a file
   * descriptor of another program. For protocols whose names are paths or URLs:
   * by default, an image may name only files in and below its own folder.
   */
  ownFolder?(filename: string): string | undefined;
  /**
   * Whether a plain file name, such as a device's, means this protocol rather
   * than `file`; `info` says what the file is, if there is one. Protocols only.
   */
  claimsFile?(filename: string, info?: FileInfo): boolean;
  /**
   * What its node claims of the child `name`, if `own` is claimed of the node.
   * Default: the rules of the driver's role.
   */
  childPermissions?(
    name: string,
    own: Permissions,
    parent: Claimant,
  ): Permissions;
}

/**
 * Claims on a node: combinations of `ACCESS`.
 *
 * @category Drivers
 */
export interface Permissions {
  /** Access that is needed. */
  readonly needs: number;
  /** Access that others may have meanwhile. */
  readonly shares: number;
}

/**
 * The properties of a node that its claims on children depend on.
 *
 * @category Drivers
 */
export interface Claimant {
  /** Its driver. */
  readonly driver: DriverTraits;
  /** Whether it refuses to be written to. */
  readonly readOnly: boolean;
  /** Why it was opened. */
  readonly purpose: OpenPurpose;
  /** Whether it shares all access, whatever its users claim. */
  readonly forceShare: boolean;
  /** The options of its driver. */
  readonly options: { readonly [name: string]: unknown };
}

/**
 * Why a node is opened; see `OpenContext.purpose`.
 *
 * @category Drivers
 */
export type OpenPurpose = "io" | "info" | "check";
