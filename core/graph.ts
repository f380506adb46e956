/**
 * The graph of open nodes: who uses which node, and what for.
 *
 * Every user of a node holds an *edge* to it: a parent, named after the child's
 * role, or a *root* outside the graph (an image's handle, a job). An edge
 * states which access it needs and which it shares. Together, a node's edges
 * determine its claims on its children; protocol nodes announce their claims to
 * other programs.
 *
 * A node opened here closes with its last edge: first the driver finishes its
 * work, then the edges to its children are removed. Foreign objects that fulfil
 * the node contract may be used as well; their makers close them.
 *
 * @module
 */
import { asBlockError, BlockError } from "./errors.ts";
import { primaryChild } from "./extents.ts";
import { withoutWrappers } from "./filter.ts";
import type { BlockNode } from "./node.ts";
import type { OptionValues } from "./options.ts";
import {
  ACCESS,
  accessText,
  ALL_ACCESS,
  childPermissions,
  NO_CLAIMS,
} from "./permissions.ts";
import type { OpenOptions } from "./open_options.ts";
import type { RequestGate } from "./lock.ts";
import type { Claimant, Permissions } from "./traits.ts";
import { nodeText, shortened } from "./values.ts";

/** How a node was opened, from which its name is made. */
export interface Origin {
  /** Its own options, by dotted name. */
  readonly options: OptionValues;
  /** Whether its backing file differs from the one its image names. */
  readonly otherBacking: boolean;
}

/** How to open a node again. */
export interface Reopening {
  /** Its present options. */
  options: OptionValues;
  /** Open another node like it, with changes. */
  again(changes: OpeningChanges): Promise<BlockNode>;
}

/** Changes for opening a node again. */
export interface OpeningChanges {
  /** All options, replacing the previous ones. */
  readonly options?: OptionValues;
  /** The options of the opening, replacing the previous ones. */
  readonly settings?: OpenOptions;
  /** Open protocol nodes to be reused. */
  readonly kept?: readonly KeptNode[];
}

/** A node that stays open while those above it are opened again. */
export interface KeptNode {
  /**
   * A protocol node with no other user, or a node that the caller passed in.
   */
  readonly node: BlockNode;
  /** Whether it has been reused. */
  isReused: boolean;
  /** Release it: it cannot be reused. */
  release(): Promise<void>;
}

/** A use of a node. */
export class Edge {
  target: GraphNode;
  /** The child's role; for a root, its name in messages. */
  readonly name: string;
  /** The node that uses it; absent for a root. */
  readonly parent?: GraphNode;
  /** Holds back requests from outside; roots only. */
  readonly gate?: RequestGate;
  permissions: Permissions = NO_CLAIMS;
  /**
   * Whether it conflicts only with other programs: while the graph changes, old
   * and new edges coexist.
   */
  isExempt = false;
  /** Ends what the root stands for, such as an image's handle. */
  end?: () => Promise<void>;
  /** Called if the root's node could not be kept open. */
  lost?: () => void;

  constructor(
    target: GraphNode,
    name: string,
    { parent, gate }: { parent?: GraphNode; gate?: RequestGate } = {},
  ) {
    this.target = target;
    this.name = name;
    this.parent = parent;
    this.gate = gate;
  }

  /** Whether it keeps the node open. */
  get holds(): boolean {
    return this.parent?.isForeign !== true;
  }
}

/** A node's entry in the graph. */
export class GraphNode {
  /** Absent while it is being opened. */
  node?: BlockNode;
  /** Its name in messages: its `node-name`, or the file's or driver's name. */
  name = "";
  origin?: Origin;
  opened?: Reopening;
  /** Whether it is a filter inserted above a node in use. */
  isInserted = false;
  /** Whether the caller made it, and will close it. */
  isForeign = false;
  phase: "opening" | "open" | "closing" | "closed" = "opening";
  /** Edges of its users, the oldest first. */
  readonly users: Edge[] = [];
  /** Edges to its children, in the order of opening. */
  readonly children = new Map<string, Edge>();
  /** The sum of its users' claims that is in effect. */
  claimed: Permissions = NO_CLAIMS;
  /** Whether it shares all access, whatever its users claim. */
  forceShare: boolean;
  #claimant?: Claimant;
  #close?: () => Promise<void>;
  #closing?: Promise<void>;

  /**
   * Create an entry for the node that `claimant` describes, or for a foreign
   * one.
   */
  constructor(claimant?: Claimant) {
    this.#claimant = claimant;
    this.forceShare = claimant?.forceShare ?? false;
  }

  /** The driver has opened the node: it can be used from now on. */
  complete(node: BlockNode): void {
    this.node = node;
    this.phase = "open";
    const known = graph.get(node);
    if (known) {
      // A foreign object that was in use before a driver's `open` returned it.
      for (const edge of known.users.splice(0)) {
        edge.target = this;
        this.users.push(edge);
      }
      known.#dropChildren();
    }
    graph.set(node, this);
    // The driver's own node shares the entry with the wrapper around it.
    const inner = withoutWrappers(node);
    if (!graph.has(inner)) graph.set(inner, this);
    this.#close = node.close.bind(node);
    if (Object.isExtensible(node)) {
      // Assigned rather than defined, to keep the engine's layout of the node.
      node.close = () => this.#closeFromOutside();
    }
    // Children that are not writable may have made it read-only meanwhile.
    this.#claimant = { ...this.#claimant!, driver: node.driver };
    const change = new Change();
    for (const edge of this.children.values()) {
      change.ask(edge, this.claimsOn(edge.name));
    }
  }

  /** Its claims on a child. */
  claimsOn(role: string): Permissions {
    return this.#claimant
      ? childPermissions(this.#claimant, role, this.claimed)
      : NO_CLAIMS;
  }

  /** The sum of its users' claims. */
  sum(): Permissions {
    let { needs, shares } = NO_CLAIMS;
    for (const { permissions } of this.users) {
      needs |= permissions.needs;
      shares &= permissions.shares;
    }
    return { needs, shares: this.forceShare ? ALL_ACCESS : shares };
  }

  /**
   * Use another node as a child.
   *
   * @throws {BlockError} EPERM or EAGAIN if the child's other users forbid it;
   * nothing is changed then.
   */
  adopt(role: string, child: BlockNode): void {
    const edge = new Edge(usable(child), role, { parent: this });
    attach(edge, this.claimsOn(role));
    this.children.set(role, edge);
  }

  /** Opening failed: release the children opened so far. */
  async abandon(except?: BlockNode): Promise<void> {
    if (this.phase === "open") return await this.#end().catch(() => {});
    const edges = [...this.children.values()];
    this.children.clear();
    for (const edge of edges) {
      if (edge.target.node === except) drop(edge);
      else await detach(edge).catch(() => {});
    }
  }

  get isHeld(): boolean {
    return this.users.some(({ holds }) => holds);
  }

  /** An edge was removed: close the node, or reduce its claims. */
  async lose(): Promise<void> {
    if (this.isHeld || this.phase !== "open") {
      return loosen(this);
    }
    if (this.isForeign) {
      loosen(this);
      this.#dropChildren();
    } else await this.#end();
  }

  /** Add the children of a foreign node to the graph. */
  learnChildren(): void {
    for (const [role, child] of Object.entries(this.node!.children)) {
      if (!child || this.children.has(role)) continue;
      const edge = new Edge(graphNodeOf(child), role, { parent: this });
      edge.target.users.push(edge);
      this.children.set(role, edge);
      if (edge.target.isForeign) edge.target.learnChildren();
    }
  }

  #dropChildren(): void {
    for (const edge of this.children.values()) {
      drop(edge);
      if (edge.target.isForeign && !edge.target.isHeld) {
        edge.target.#dropChildren();
      }
    }
    this.children.clear();
  }

  /** The node's public `close`, for callers that hold no `Image`. */
  async #closeFromOutside(): Promise<void> {
    if (this.#closing) return await this.#closing;
    // A driver may close its children itself, as drivers used to.
    const isDriver = this.users.some(({ parent }) =>
      parent?.phase === "opening" || parent?.phase === "closing"
    );
    if (isDriver) return;
    const roots = this.users.filter(({ gate }) => gate);
    const root = roots.find(({ end }) => !end) ?? roots[0];
    if (root) await (root.end ? root.end() : endRoot(root));
    else if (!this.isHeld) await this.#end();
  }

  #end(): Promise<void> {
    this.phase = "closing";
    return this.#closing = this.#closeAll();
  }

  async #closeAll(): Promise<void> {
    const failures: unknown[] = [];
    const attempt = async (act: () => Promise<void>) => {
      try {
        await act();
      } catch (error) {
        failures.push(error);
      }
    };
    await attempt(this.#close!);
    // One after the other rather than recursively: the chain may be long.
    for (const edge of this.children.values()) {
      await attempt(() => detach(edge));
    }
    this.children.clear();
    this.phase = "closed";
    if (failures.length > 0) throw failures[0];
  }
}

const graph = new WeakMap<BlockNode, GraphNode>();

/** A node's entry in the graph, created if need be. */
export function graphNodeOf(node: BlockNode): GraphNode {
  let known = graph.get(node);
  if (!known) {
    // A wrapper shares the entry with the node in it.
    const inner = withoutWrappers(node);
    known = graph.get(inner);
    if (!known) {
      known = new GraphNode();
      known.isForeign = true;
      known.phase = "open";
      known.name = shortened(node.filename) || node.driver.name;
      graph.set(inner, known);
    }
    if (known.isForeign) known.node = node;
    graph.set(node, known);
  }
  return known;
}

/** The first node, from this one down, that no filter was inserted above. */
export function belowInserted(top: GraphNode): GraphNode {
  let at = top;
  while (at.isInserted) at = graphNodeOf(primaryChild(at.node!)!);
  return at;
}

/** A node's entry in the graph, if there is one. */
export function findGraphNode(node: BlockNode): GraphNode | undefined {
  return graph.get(node);
}

/**
 * The entry of a node that is about to be used.
 *
 * @throws {BlockError} EBADF if it is closed.
 */
export function usable(node: BlockNode): GraphNode {
  const known = graphNodeOf(node);
  if (known.phase === "closing" || known.phase === "closed") {
    throw new BlockError("EBADF", `${nodeText(node)} is closed`);
  }
  return known;
}

/**
 * Add an edge to its node.
 *
 * @throws {BlockError} EPERM if another user of the node does not share what it
 * needs, or needs what it does not share; EAGAIN if another program does not;
 * EACCES if the node is read-only. Nothing is changed then.
 */
export function attach(edge: Edge, permissions: Permissions): void {
  const { target } = edge;
  target.users.push(edge);
  if (target.isForeign) target.learnChildren();
  try {
    ask(edge, permissions);
  } catch (error) {
    drop(edge);
    throw error;
  }
}

/**
 * Change an edge's claims.
 *
 * @throws {BlockError} as {@linkcode attach}; nothing is changed then.
 */
export function ask(edge: Edge, permissions: Permissions): void {
  const change = new Change();
  try {
    change.ask(edge, permissions);
  } catch (error) {
    change.rollBack();
    throw error;
  }
}

/** Remove an edge, and close the node if it was the last one. */
export async function detach(edge: Edge): Promise<void> {
  if (drop(edge)) await edge.target.lose();
}

/** Only remove an edge; returns whether it was there. */
export function drop(edge: Edge): boolean {
  const { users } = edge.target;
  const index = users.indexOf(edge);
  if (index >= 0) users.splice(index, 1);
  return index >= 0;
}

/** Wait for a root's requests, and remove it. */
export async function endRoot(edge: Edge): Promise<void> {
  await edge.gate!.finish();
  await detach(edge);
}

/** Reduce the claims on a node to those of its present users. */
export function loosen(target: GraphNode): void {
  try {
    new Change().settle(target);
  } catch (error) {
    // Reducing claims cannot be refused; locks that cannot be released end with
    // the file.
    asBlockError(error);
  }
}

/** Changes of the graph, made completely or not at all. */
export class Change {
  readonly #undo: (() => void)[] = [];

  /** Make a change that can be undone. */
  step(act: () => void, undo: () => void): void {
    act();
    this.#undo.push(undo);
  }

  rollBack(): void {
    for (const undo of this.#undo.splice(0).reverse()) undo();
  }

  /** Move an edge, with its claims, to another node. */
  move(edge: Edge, target: GraphNode): void {
    const { target: before } = edge;
    const place = before.users.indexOf(edge);
    this.step(() => {
      before.users.splice(place, 1);
      edge.target = target;
      target.users.push(edge);
      if (target.isForeign) target.learnChildren();
    }, () => {
      drop(edge);
      edge.target = before;
      before.users.splice(place, 0, edge);
    });
  }

  /**
   * Change an edge's claims, and those of all nodes below accordingly. (Not
   * recursive: a backing chain may be longer than the call stack is deep.)
   */
  ask(edge: Edge, wanted: Permissions): void {
    this.#work([[edge, wanted]]);
  }

  /** Update a node's claims on its children to the sum of its users' claims. */
  settle(target: GraphNode): void {
    const pending: ClaimChange[] = [];
    this.#settle(target, pending);
    this.#work(pending);
  }

  #work(pending: ClaimChange[]): void {
    for (let next; (next = pending.pop());) {
      const [edge, wanted] = next;
      const before = edge.permissions;
      this.step(
        () => edge.permissions = wanted,
        () => edge.permissions = before,
      );
      checkReadOnly(edge);
      checkOthers(edge);
      this.#settle(edge.target, pending);
    }
  }

  #settle(target: GraphNode, pending: ClaimChange[]): void {
    const { claimed: before, node } = target;
    const now = target.sum();
    if (now.needs === before.needs && now.shares === before.shares) return;
    this.step(() => {
      node?.setPermissions?.(now);
      target.claimed = now;
    }, () => {
      target.claimed = before;
      node?.setPermissions?.(before);
    });
    if (target.isForeign) return;
    const below: ClaimChange[] = [];
    for (const [role, edge] of target.children) {
      below.push([edge, target.claimsOn(role)]);
    }
    // Visit the first child first.
    pending.push(...below.reverse());
  }
}

/** An edge, and its new permissions. */
type ClaimChange = [edge: Edge, wanted: Permissions];

function checkReadOnly({ target, permissions }: Edge): void {
  const { node } = target;
  const writes = ACCESS.WRITE | ACCESS.WRITE_UNCHANGED;
  if (!node || (permissions.needs & writes) === 0) return;
  if (!node.readOnly && node.writev) return;
  const detail = ` ('${shortened(node.filename)}', ${node.driver.name})`;
  throw new BlockError("EACCES", `Block node is read-only${detail}`, {
    detail,
  });
}

/** Check an edge's claims against the node's other edges. */
function checkOthers(edge: Edge): void {
  if (edge.isExempt) return;
  for (const other of edge.target.users) {
    if (other === edge || other.isExempt) continue;
    checkPair(other, edge);
    checkPair(edge, other);
  }
}

/**
 * Roots that may write often do not: some nodes are opened only to be passed to
 * a parent. {@linkcode checkRoot} checks when they do.
 */
function checkPair(user: Edge, other: Edge): void {
  if (user.gate && other.parent) return;
  refuseUnshared(user, user.permissions.needs, other);
}

function refuseUnshared(user: Edge, needs: number, other: Edge): void {
  const unshared = needs & ~other.permissions.shares;
  if (unshared === 0) return;
  throw new BlockError(
    "EPERM",
    `Permission conflict on node '${user.target.name}': permissions ` +
      `'${accessText(unshared)}' are both required by ${usage(user)} and ` +
      `unshared by ${usage(other)}.`,
  );
}

function usage({ parent, name, target }: Edge): string {
  return parent
    ? `node '${parent.name}' (uses node '${target.name}' as '${name}' child)`
    : `${name} (uses node '${target.name}' as 'root' child)`;
}

/**
 * Refuse access to a root that a parent of the node does not share.
 *
 * @throws {BlockError} EPERM.
 */
export function checkRoot(root: Edge, needs: number): void {
  const { users } = root.target;
  if (users.length === 1) return;
  for (const other of users) {
    if (other.parent && !other.isExempt) refuseUnshared(root, needs, other);
  }
}
