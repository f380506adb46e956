/**
 * Nodes that pass requests on to the node below, except for those that they
 * intercept.
 *
 * A **filter** is a node of a driver's own: it has a name in the stack, and the
 * node below as its child. A **wrapper** is what the core puts above a driver's
 * node to do what no driver should have to (aligning, splitting, looking for
 * zeroes). It shows everything of that node, its driver and its children
 * included, so that nobody can tell it from the node; only requests pass
 * through it. A node that needs none is not wrapped, and pays for none.
 *
 * @module
 */
import { BlockError } from "./errors.ts";
import type { BlockNode } from "./node.ts";
import type { DriverTraits } from "./traits.ts";
import { OPTIONAL_VERBS, type OptionalVerb } from "./verbs.ts";

/** What a filter can do only if the node below can: it is passed on. */
const PASSED_ON = [
  "writev",
  "writeZeroes",
  "discard",
  "flush",
  "truncate",
  "info",
  "invalidate",
] as const satisfies readonly OptionalVerb[];

/** Verbs that say by their presence what a node can do to its disk. */
const ABILITIES = [
  "writev",
  "writeZeroes",
  "discard",
  "truncate",
  "writeCompressed",
  "copyFrom",
] as const;

type Ability = typeof ABILITIES[number];

/** Which verb of the nodes below one needs that is intercepted. */
export type Needs = { readonly [verb in Ability]?: Ability };

/**
 * A node that does what `file`, a {@linkcode childSlot}, does, except for what `changes` holds. Its other
 * verbs are those of `file`; checking, repairing, storing compressed data and
 * copying by the system are not passed on.
 *
 * @param changes May intercept verbs that `file` lacks: those are left out.
 * @param needs As for {@linkcode interceptable}.
 */
export function filterNode(
  driver: DriverTraits,
  file: BlockNode,
  changes: Partial<BlockNode>,
  needs?: Needs,
): BlockNode {
  const node: BlockNode = {
    driver,
    filename: file.filename,
    get size() {
      return file.size;
    },
    get readOnly() {
      return file.readOnly;
    },
    get snapshots() {
      return file.snapshots;
    },
    get vmState() {
      return file.vmState;
    },
    get children() {
      const child = file instanceof ChildSlot ? file.node : file;
      return { [driver.childRole ?? "file"]: child };
    },
    ...passed(file, PASSED_ON),
    // Its child is closed after it.
    close: () => Promise.resolve(),
  };
  if (file instanceof ChildSlot) {
    node.replaceChild = (_role, child) => file.use(child);
  }
  return redefine(node, interceptable([file], changes, needs));
}

/**
 * Those of `changes` that a node can have which passes requests on to all of
 * `below`: a verb that changes the disk only if all of them have it.
 *
 * @param needs Of verbs that work where those below have another one.
 */
export function interceptable(
  below: readonly BlockNode[],
  changes: Partial<BlockNode>,
  needs: Needs = {},
): Partial<BlockNode> {
  const kept = redefine<Partial<BlockNode>>({}, changes);
  for (const verb of ABILITIES) {
    const needed = needs[verb] ?? verb;
    if (!below.every((node) => node[needed])) delete kept[verb];
  }
  return kept;
}

/** Shows what a node says of itself, also what changes while it is open. */
class Facts {
  /** The node of the time. */
  node: BlockNode;

  constructor(node: BlockNode) {
    this.node = node;
  }

  get driver() {
    return this.node.driver;
  }

  get filename() {
    return this.node.filename;
  }

  get size() {
    return this.node.size;
  }

  get readOnly() {
    return this.node.readOnly;
  }

  get children() {
    return this.node.children;
  }

  get limits() {
    return this.node.limits;
  }

  get snapshots() {
    return this.node.snapshots;
  }

  get image() {
    return this.node.image;
  }

  get vmState() {
    return this.node.vmState;
  }

  get debug() {
    return this.node.debug;
  }
}

/** Shows all of a node. */
class Wrapper extends Facts implements BlockNode {
  readonly readv: BlockNode["readv"];
  readonly status: BlockNode["status"];
  readonly close: BlockNode["close"];

  constructor(node: BlockNode) {
    super(node);
    this.readv = node.readv.bind(node);
    this.status = node.status.bind(node);
    this.close = node.close.bind(node);
    Object.assign(this, passed(node, OPTIONAL_VERBS));
  }
}

/** Hands requests on to a child that may become another one. */
class ChildSlot extends Facts implements BlockNode {
  readonly #check?: (child: BlockNode) => void;

  constructor(child: BlockNode, check?: (child: BlockNode) => void) {
    check?.(child);
    super(child);
    this.#check = check;
    for (const verb of OPTIONAL_VERBS) {
      if (child[verb]) Object.assign(this, { [verb]: this.#handOn(verb) });
    }
  }

  readonly readv: BlockNode["readv"] = (offset, iov, flags) =>
    this.node.readv(offset, iov, flags);
  readonly status: BlockNode["status"] = (offset, length) =>
    this.node.status(offset, length);
  readonly close: BlockNode["close"] = () => this.node.close();

  #handOn(verb: OptionalVerb): (...args: unknown[]) => unknown {
    const isAbility = ABILITIES.some((ability) => ability === verb);
    return (...args) => {
      const { node } = this;
      const act = node[verb] as ((...args: unknown[]) => unknown) | undefined;
      if (act) return act.apply(node, args);
      // One that came later may be able to do less.
      return isAbility
        ? Promise.reject(new BlockError("ENOTSUP"))
        : Promise.resolve();
    };
  }

  /** Go on with another child. */
  use(child: BlockNode): void {
    this.#check?.(child);
    this.node = child;
  }
}

/**
 * What a filter uses in place of its child, so that it can go on with another
 * one: whatever is asked of it is asked of the child of the time.
 *
 * @param check Throws if the filter cannot work on a child.
 */
export function childSlot(
  child: BlockNode,
  check?: (child: BlockNode) => void,
): BlockNode {
  return new ChildSlot(child, check);
}

const wrapped = new WeakMap<BlockNode, BlockNode>();

/**
 * A node that is `node` to all who look at it, except for what `changes` holds.
 * Verbs that are `undefined` in `changes` are taken away; those that `node`
 * lacks are left out.
 */
export function wrapNode(
  node: BlockNode,
  changes: Partial<BlockNode>,
): BlockNode {
  const wrapper = redefine(new Wrapper(node), interceptable([node], changes));
  wrapped.set(wrapper, node);
  return wrapper;
}

/** The node that a driver made, without what the core has put above it. */
export function withoutWrappers(node: BlockNode): BlockNode {
  for (let below; (below = wrapped.get(node)); node = below);
  return node;
}

/** The verbs that every node has, and those of `verbs` that this one has. */
function passed(
  below: BlockNode,
  verbs: readonly OptionalVerb[],
): Pick<BlockNode, "readv" | "status" | "close"> {
  const own: Partial<BlockNode> = {};
  for (const verb of verbs) {
    if (below[verb]) Object.assign(own, { [verb]: below[verb].bind(below) });
  }
  return {
    ...own,
    readv: below.readv.bind(below),
    status: below.status.bind(below),
    close: below.close.bind(below),
  };
}

/**
 * Define the properties of `changes`, getters as getters. One by one, and verbs
 * by assignment: engines then keep the layout of the node, on which the speed
 * of every request through it depends.
 */
function redefine<Node extends object>(node: Node, changes: object): Node {
  const given = Object.getOwnPropertyDescriptors(changes);
  for (const [name, property] of Object.entries(given)) {
    const isVerb = typeof property.value === "function";
    if (isVerb) Object.assign(node, { [name]: property.value });
    else Object.defineProperty(node, name, property);
  }
  return node;
}
