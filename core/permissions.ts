/**
 * Who may do what with a node at the same time.
 *
 * Whoever uses a node needs some kinds of access for itself, and shares some
 * with others. A node that is a parent hands both down to its children, changed
 * as its work demands; a protocol node makes them known outside of the process
 * (the file driver: as locks). The kinds, and the rules of handing down, are
 * those of QEMU's block layer, so that its tools and ours keep off each other.
 *
 * @module
 */
import { BlockError } from "./errors.ts";
import type { BlockNode } from "./node.ts";
import type { Claimant, Permissions } from "./traits.ts";
import { shortened } from "./values.ts";

/** Kinds of access, to be combined: bits. */
export const ACCESS = {
  /** Reading what was written, and nothing half done. */
  READ: 1,
  /** Writing. */
  WRITE: 2,
  /** Writing what is there already, as copy-on-read does. */
  WRITE_UNCHANGED: 4,
  /** Changing the size. */
  RESIZE: 8,
} as const;

const { READ, WRITE, WRITE_UNCHANGED, RESIZE } = ACCESS;

/** All of {@linkcode ACCESS}. */
export const ALL_ACCESS: number = READ | WRITE | WRITE_UNCHANGED | RESIZE;

/** The names of single kinds of access, in messages. */
export const ACCESS_NAMES: { readonly [bit: number]: string } = {
  [READ]: "consistent read",
  [WRITE]: "write",
  [WRITE_UNCHANGED]: "write unchanged",
  [RESIZE]: "resize",
};

/** The claims of nobody. */
const NO_CLAIMS: Permissions = { needs: 0, shares: ALL_ACCESS };

/** What a parent of which `own` is claimed claims of the child called `name`. */
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

/** Others may write to a backing file if they may change what is seen of it. */
function ofBackingFile({ needs, shares }: Permissions): Permissions {
  return {
    needs: needs & READ,
    shares: shares & WRITE ? ALL_ACCESS : READ | WRITE_UNCHANGED,
  };
}

/** The format knows how large the file is, and may make it larger. */
function ofDataFile({ needs, shares }: Permissions): Permissions {
  if (needs & WRITE_UNCHANGED) needs |= WRITE;
  if (needs & WRITE) needs |= RESIZE;
  return { needs, shares: shares & ~RESIZE };
}

/** Metadata must be consistent, and may change even if the disk does not. */
function ofImageFile(parent: Claimant, own: Permissions): Permissions {
  let { needs, shares } = ofDataFile(own);
  if (!parent.readOnly) needs |= WRITE | RESIZE;
  if (parent.purpose !== "info") needs |= READ;
  shares &= ~WRITE;
  return { needs, shares };
}

/**
 * What claims something of a node, adds what that asks of its children, and
 * answers what notes that they agreed. (Not one call within another: chains of
 * backing files may be longer than the stack is deep.)
 */
type Add = (added: Permissions, pending: Claim[]) => () => void;

const claims = new WeakMap<BlockNode, Add>();

/**
 * Claim something of an open node, in addition to what is claimed of it
 * already, and through it of all nodes below.
 *
 * @throws {BlockError} EAGAIN if somebody else does not let us, EACCES if the
 * node is read-only.
 */
export function claim(node: BlockNode, added: Permissions): void {
  const pending: Claim[] = [{ node, added }];
  // What is claimed of a node counts when those below it have agreed.
  const agreed: (() => void)[] = [];
  for (let next; (next = pending.pop());) {
    const { node } = next;
    const writes = (next.added.needs & (WRITE | WRITE_UNCHANGED)) !== 0;
    if (writes && (node.readOnly || !node.writev)) {
      const detail = ` ('${shortened(node.filename)}', ${node.driver.name})`;
      throw new BlockError("EACCES", `Block node is read-only${detail}`, {
        detail,
      });
    }
    const add = claims.get(node);
    if (add) agreed.push(add(next.added, pending));
    else node.setPermissions?.(next.added);
  }
  for (const note of agreed.reverse()) note();
}

/** Something that is to be claimed of a node. */
interface Claim {
  readonly node: BlockNode;
  readonly added: Permissions;
}

/** The children of a node while it is opened, and what is claimed of them. */
export class Claims {
  readonly #children = new Map<string, BlockNode>();
  #parent: Claimant;
  #own = NO_CLAIMS;
  /** What was claimed, if anything was. */
  #claimed?: Permissions;

  /** Those of a node that is about to be opened as `parent` says. */
  constructor(parent: Claimant) {
    this.#parent = parent;
  }

  /** A child was opened: claim of it what the driver's own work needs. */
  adopt(name: string, child: BlockNode): void {
    this.#children.set(name, child);
    claim(child, childPermissions(this.#parent, name, this.#own));
  }

  /** The node was opened: from now on others can claim it. */
  complete(node: BlockNode): void {
    this.#parent = { ...this.#parent, driver: node.driver };
    claims.set(node, (added, pending) => this.#add(node, added, pending));
  }

  #add(node: BlockNode, added: Permissions, pending: Claim[]): () => void {
    const own = {
      needs: this.#own.needs | added.needs,
      shares: this.#parent.forceShare
        ? ALL_ACCESS
        : this.#own.shares & added.shares,
    };
    const before = this.#claimed;
    if (before && own.needs === before.needs && own.shares === before.shares) {
      return () => {};
    }
    node.setPermissions?.(own);
    const below: Claim[] = [];
    for (const [name, child] of this.#children) {
      const added = childPermissions(this.#parent, name, own);
      below.push({ node: child, added });
    }
    // The first child is the first to be asked.
    pending.push(...below.reverse());
    return () => {
      this.#own = own;
      this.#claimed = own;
    };
  }
}
