/**
 * The part of the contract that speaks of no node: what a driver tells of
 * itself, and what it claims of its children. Nodes refer to their driver by
 * it, so that what a driver does, which yields nodes, can build on them.
 *
 * @module
 */
import type { OptionTable, OptionValues } from "./options.ts";

/**
 * Where a driver stands in a stack. A `protocol` reaches bytes by itself, a
 * `format` maps them onto its `file` child, a `filter` passes them through.
 */
export type DriverRole = "protocol" | "format" | "filter";

/** A driver, apart from its work. */
export interface DriverTraits {
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
  /**
   * Whether a new image reads as zeroes without anything being written to it.
   * Default: true.
   */
  readonly createsZeroes?: boolean;
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
}

/** What users of a node claim: combinations of `ACCESS`. */
export interface Permissions {
  /** What they do. */
  readonly needs: number;
  /** What others may do meanwhile. */
  readonly shares: number;
}

/** A node as it claims something of its children: what that depends on. */
export interface Claimant {
  /** Its driver. */
  readonly driver: DriverTraits;
  /** Whether it refuses to be written to. */
  readonly readOnly: boolean;
  /** Why it was opened. */
  readonly purpose: OpenPurpose;
  /** Whether it lets others do everything, whatever its users say. */
  readonly forceShare: boolean;
  /** The options of its driver. */
  readonly options: { readonly [name: string]: unknown };
}

/** Why a node is opened; see `OpenContext.purpose`. */
export type OpenPurpose = "io" | "info" | "check";
