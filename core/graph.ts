/**
 * The graph of open nodes: who uses which node, and what for.
 *
 * Whoever uses a node holds an *edge* to it: a parent, under the name of the
 * child's role, or somebody outside of the graph (a *root*: the handle of an
 * image, a job). An edge says which kinds of access it needs, and which it
 * shares with the other edges of its node. What all edges of a node come to is
 * handed down to its children, and at the bottom made known to other programs.
 *
 * A node that was opened here closes with its last edge: first the driver ends
 * its work, then the edges to its children go. Objects of others that fulfil
 * the contract of a node may be used as well; those who made them close them.
 *
 * @module
 */
import { asBlockError, BlockError } from "./errors.ts";
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
import type { RequestGate } from "./request_gate.ts";
import type { Claimant, Permissions } from "./traits.ts";
import { shortened } from "./values.ts";

/** How a node was opened: what names are made of. */
export interface Origin {
  /** Its own options, by their dotted names. */
  readonly options: OptionValues;
  /** Whether it has another backing file than its image names. */
  readonly otherBacking: boolean;
}

/** How a node can be opened once more. */
export interface Reopening {
  /** All options it was given. */
  options: OptionValues;
  /** Open another node like it, with what differs. */
  again(changes: OpeningChanges): Promise<BlockNode>;
}

/** What is to be different when a node is opened once more. */
export interface OpeningChanges {
  /** All options, in place of those it had. */
  readonly options?: OptionValues;
  /** Wishes of its user's that take the place of those before. */
  readonly wishes?: OpenOptions;
  /** Nodes of protocols that are open already, and are to be used again. */
  readonly kept?: readonly KeptNode[];
}

/** A node that stays open while those above it are opened once more. */
export interface KeptNode {
  /** Of a protocol, and used by nobody else; or one that was given to it. */
  readonly node: BlockNode;
  /** Whether it is in use again. */
  isTaken: boolean;
  /** Let go of it: it cannot be used again. */
  letGo(): Promise<void>;
}

/** A use of a node. */
export class Edge {
  /** The node that is used. */
  target: GraphNode;
  /** The role of the child; of a root, who it is. */
  readonly name: string;
  /** The node that uses it; nobody of the graph if it is a root. */
  readonly parent?: GraphNode;
  /** What holds up requests that come from outside; roots have it. */
  readonly gate?: RequestGate;
  permissions: Permissions = NO_CLAIMS;
  /**
   * Whether it keeps others out, but nobody in this program: what is between
   * two states of the graph belongs to both.
   */
  isExempt = false;
  /** Ends what the root stands for, such as an image's handle. */
  end?: () => Promise<void>;
  /** Tells what the root stands for that its node could not be kept. */
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

  /** Whether the node stays open for its sake. */
  get holds(): boolean {
    return this.parent?.isForeign !== true;
  }
}

/** What the graph knows of a node. */
export class GraphNode {
  /** Absent while it is being opened. */
  node?: BlockNode;
  /** What messages call it: the name that its user gave it, or its file's. */
  name = "";
  origin?: Origin;
  opened?: Reopening;
  /** Whether it is a filter that was put above a node in use. */
  isInserted = false;
  /** Whether somebody else made it, who will close it. */
  isForeign = false;
  phase: "opening" | "open" | "closing" | "closed" = "opening";
  /** Those who use it, the oldest first. */
  readonly users: Edge[] = [];
  /** Those it uses, the first opened first. */
  readonly children = new Map<string, Edge>();
  /** What its users have claimed of it, and others know of. */
  claimed: Permissions = NO_CLAIMS;
  /** Whether it lets others do everything, whatever its users say. */
  forceShare: boolean;
  #claimant?: Claimant;
  #close?: () => Promise<void>;
  #closing?: Promise<void>;

  /** A node that is about to be opened as `claimant` says, or a foreign one. */
  constructor(claimant?: Claimant) {
    this.#claimant = claimant;
    this.forceShare = claimant?.forceShare ?? false;
  }

  /** Its driver was opened: from now on it can be used. */
  complete(node: BlockNode): void {
    this.node = node;
    this.phase = "open";
    const known = graph.get(node);
    if (known) {
      // An object that somebody has used already, before a driver opened it.
      for (const edge of known.users.splice(0)) {
        edge.target = this;
        this.users.push(edge);
      }
      known.#dropChildren();
    }
    graph.set(node, this);
    // What the driver's node says of itself is about the one around it.
    const inner = withoutWrappers(node);
    if (!graph.has(inner)) graph.set(inner, this);
    this.#close = node.close.bind(node);
    if (Object.isExtensible(node)) {
      // By assignment, which engines keep the layout of the node by.
      node.close = () => this.#closeFromOutside();
    }
    // Children that cannot be written to may have made it read-only meanwhile.
    this.#claimant = { ...this.#claimant!, driver: node.driver };
    const change = new Change();
    for (const edge of this.children.values()) {
      change.ask(edge, this.asksOf(edge.name));
    }
  }

  /** What it claims of a child. */
  asksOf(role: string): Permissions {
    return this.#claimant
      ? childPermissions(this.#claimant, role, this.claimed)
      : NO_CLAIMS;
  }

  /** What its users come to. */
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
   * @throws {BlockError} what that child's other users say against it; it is
   * no child then.
   */
  adopt(role: string, child: BlockNode): void {
    const edge = new Edge(usable(child), role, { parent: this });
    attach(edge, this.asksOf(role));
    this.children.set(role, edge);
  }

  /** It could not be opened: let go of the children that were. */
  async abandon(except?: BlockNode): Promise<void> {
    if (this.phase === "open") return await this.#end().catch(() => {});
    const edges = [...this.children.values()];
    this.children.clear();
    for (const edge of edges) {
      if (edge.target.node === except) drop(edge);
      else await detach(edge).catch(() => {});
    }
  }

  /** Whether anybody keeps it open. */
  get isHeld(): boolean {
    return this.users.some(({ holds }) => holds);
  }

  /** An edge has gone: close, or claim less than before. */
  async lose(): Promise<void> {
    if (this.isHeld || this.phase !== "open") {
      return loosen(this);
    }
    if (this.isForeign) {
      loosen(this);
      this.#dropChildren();
    } else await this.#end();
  }

  /** What of the children of a foreign node is known. */
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

  /** Whoever opened it, and holds no handle of an image, calls this. */
  async #closeFromOutside(): Promise<void> {
    if (this.#closing) return await this.#closing;
    // A driver may close its children with itself, as nodes of old did.
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
    // One after the other: a long chain is not one call within another.
    for (const edge of this.children.values()) {
      await attempt(() => detach(edge));
    }
    this.children.clear();
    this.phase = "closed";
    if (failures.length > 0) throw failures[0];
  }
}

const graph = new WeakMap<BlockNode, GraphNode>();

/** What the graph knows of a node; of one that it does not know, a beginning. */
export function graphNodeOf(node: BlockNode): GraphNode {
  let known = graph.get(node);
  if (!known) {
    known = new GraphNode();
    known.isForeign = true;
    known.phase = "open";
    known.node = node;
    known.name = shortened(node.filename);
    graph.set(node, known);
  }
  return known;
}

/** What the graph knows of a node, if it does. */
export function findGraphNode(node: BlockNode): GraphNode | undefined {
  return graph.get(node);
}

/**
 * A node that somebody is going to use.
 *
 * @throws {BlockError} EBADF if it is closed.
 */
export function usable(node: BlockNode): GraphNode {
  const known = graphNodeOf(node);
  if (known.phase === "closing" || known.phase === "closed") {
    throw new BlockError("EBADF", `'${shortened(node.filename)}' is closed`);
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
 * Claim something else by way of an edge.
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

/** Take an edge away; if it was the node's last one, the node is closed. */
export async function detach(edge: Edge): Promise<void> {
  if (drop(edge)) await edge.target.lose();
}

/** Take an edge away, and nothing more. */
export function drop(edge: Edge): boolean {
  const { users } = edge.target;
  const index = users.indexOf(edge);
  if (index >= 0) users.splice(index, 1);
  return index >= 0;
}

/** Wait for the requests of a root, and take it away. */
export async function endRoot(edge: Edge): Promise<void> {
  await edge.gate!.finish();
  await detach(edge);
}

/** Claim no more of a node than its users do now. */
export function loosen(target: GraphNode): void {
  try {
    new Change().settle(target);
  } catch (error) {
    // To claim less cannot be refused; who fails to let go will not for longer.
    asBlockError(error);
  }
}

/** Changes of the graph that are made together, or not at all. */
export class Change {
  readonly #undo: (() => void)[] = [];

  /** Do something that can be undone. */
  step(act: () => void, undo: () => void): void {
    act();
    this.#undo.push(undo);
  }

  /** Undo all. */
  rollBack(): void {
    for (const undo of this.#undo.splice(0).reverse()) undo();
  }

  /** Have an edge belong to another node, and claim of that what it claims. */
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
   * Have an edge claim something, and all nodes below what follows from that.
   * (Not one call within another: chains of backing files may be longer than
   * the stack is deep.)
   */
  ask(edge: Edge, wanted: Permissions): void {
    this.#work([[edge, wanted]]);
  }

  /** Have a node claim of its children what its users come to now. */
  settle(target: GraphNode): void {
    const pending: Wish[] = [];
    this.#settle(target, pending);
    this.#work(pending);
  }

  #work(pending: Wish[]): void {
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

  #settle(target: GraphNode, pending: Wish[]): void {
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
    const below: Wish[] = [];
    for (const [role, edge] of target.children) {
      below.push([edge, target.asksOf(role)]);
    }
    // The first child is the first to be asked.
    pending.push(...below.reverse());
  }
}

/** What is to be claimed by way of an edge. */
type Wish = [edge: Edge, wanted: Permissions];

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

/** Compare what an edge claims with what the others of its node do. */
function checkOthers(edge: Edge): void {
  if (edge.isExempt) return;
  for (const other of edge.target.users) {
    if (other === edge || other.isExempt) continue;
    checkPair(other, edge);
    checkPair(edge, other);
  }
}

/**
 * A root that may write need not do so: nodes are opened to be given to a
 * parent as well. {@linkcode checkRoot} is for the moment when it does.
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
 * Refuse a root to do what a parent of the same node does not share.
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
