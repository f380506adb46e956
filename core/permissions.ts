/**
 * Permissions: who may do what with a node at the same time.
 *
 * Each user of a node needs some kinds of access and shares some with the
 * others. A parent passes both on to its children, adjusted to its own needs; a
 * protocol node makes them known to other processes (the file driver as locks).
 * The kinds and the rules are those of QEMU's block layer, so that its tools
 * and ours keep out of each other's way.
 *
 * @module
 */
import type { Claimant, Permissions } from "./traits.ts";

/**
 * Kinds of access, as bits.
 *
 * @category Drivers
 */
export const ACCESS = {
  /** Reading consistent data. */
  READ: 1,
  /** Writing. */
  WRITE: 2,
  /** Writing without changing the content, as copy-on-read does. */
  WRITE_UNCHANGED: 4,
  /** Changing the size. */
  RESIZE: 8,
} as const;

const { READ, WRITE, WRITE_UNCHANGED, RESIZE } = ACCESS;

/**
 * All of {@linkcode ACCESS}.
 *
 * @category Drivers
 */
export const ALL_ACCESS: number = READ | WRITE | WRITE_UNCHANGED | RESIZE;

/** The names of single kinds of access, in messages. */
export const ACCESS_NAMES: { readonly [bit: number]: string } = {
  [READ]: "consistent read",
  [WRITE]: "write",
  [WRITE_UNCHANGED]: "write unchanged",
  [RESIZE]: "resize",
};

/** Claims nothing and shares everything. */
export const NO_CLAIMS: Permissions = { needs: 0, shares: ALL_ACCESS };

/** The names of a combination of kinds of access, in messages. */
export function accessText(access: number): string {
  return Object.entries(ACCESS_NAMES)
    .filter(([bit]) => access & Number(bit))
    .map(([, name]) => name)
    .join(", ");
}

/**
 * What a parent claims of its child `name`, if `own` is claimed of the parent.
 */
export function childPermissions(
  parent: Claimant,
  name: string,
  own: Permissions,
): Permissions {
  const { driver } = parent;
  if (driver.childPermissions) {
    return driver.childPermissions(name, own, parent);
  }
  if (driver.role === "filter") return own;
  if (name === "backing") return ofBackingFile(own);
  return name === "data-file" ? ofDataFile(own) : ofImageFile(parent, own);
}

/**
 * Others may write to a backing file if they may change the overlay's content.
 */
function ofBackingFile({ needs, shares }: Permissions): Permissions {
  return {
    needs: needs & READ,
    shares: shares & WRITE ? ALL_ACCESS : READ | WRITE_UNCHANGED,
  };
}

/** The format relies on the file's size, and may grow it. */
function ofDataFile({ needs, shares }: Permissions): Permissions {
  if (needs & WRITE_UNCHANGED) needs |= WRITE;
  if (needs & WRITE) needs |= RESIZE;
  return { needs, shares: shares & ~RESIZE };
}

/** Metadata must be consistent, and may change even when the disk does not. */
function ofImageFile(parent: Claimant, own: Permissions): Permissions {
  let { needs, shares } = ofDataFile(own);
  if (!parent.readOnly) needs |= WRITE | RESIZE;
  if (parent.purpose !== "info") needs |= READ;
  shares &= ~WRITE;
  return { needs, shares };
}
