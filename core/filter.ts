/**
 * Nodes that intercept some requests and pass all others on to the node below.
 *
 * A **filter** is a driver's node, with a name in the stack and the node below
 * as its child. A **wrapper** is put around a driver's node by the core, to do
 * what no driver should have to (aligning, splitting, detecting zeroes). It
 * presents the node's own driver, children and properties, so that the two look
 * alike. A node that needs no wrapper gets none, at no cost.
 *
 * @module
 */
import { BlockError, OPTIONAL_VERBS, type OptionalVerb } from "./errors.ts";
import type { BlockNode } from "./node.ts";
import type { DriverTraits } from "./traits.ts";

/** Verbs that a filter passes on if the node below has them. */
const PASSED_ON = [
  "writev",
  "writeZeroes",
  "discard",
  "flush",
  "truncate",
  "info",
  "invalidate",
] as const satisfies readonly OptionalVerb[];

/** Verbs whose presence says what a node can do to its disk. */
const ABILITIES = [
  "writev",
  "writeZeroes",
  "discard",
  "truncate",
  "writeCompressed",
  "copyFrom",
] as const;

type Ability = typeof ABILITIES[number];

/** Which verb of the nodes below an intercepted one needs. */
export type Needs = { readonly [verb in Ability]?: Ability };

/**
 * A node with the verbs of `changes`, and otherwise those of `file`, a
 * {@linkcode childSlot}. Checking, repairing, compressed writes and copy
 * offload are not passed on.
 *
 * @param changes Verbs to intercept; those that `file` lacks are left out.
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
    // The graph closes its child after it.
    close: () => Promise.resolve(),
  };
  if (file instanceof ChildSlot) {
    node.replaceChild = (_role, child) => file.use(child);
  }
  return redefine(node, interceptable([file], changes, needs));
}

/**
 * The verbs of `changes` that a node above all of `below` can offer: one that
 * changes the disk needs all of them to have it.
 *
 * @param needs For verbs that need another verb of the nodes below.
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

/** Presents another node's properties, even if they change later. */
class NodeProperties {
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

/** Presents a node and all its verbs. */
class Wrapper extends NodeProperties implements BlockNode {
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

/** Passes requests on to a child that can be replaced. */
class ChildSlot extends NodeProperties implements BlockNode {
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
  readonly status: BlockNode["status"] = (offset, length, flags) =>
    this.node.status(offset, length, flags);
  readonly close: BlockNode["close"] = () => this.node.close();

  #handOn(verb: OptionalVerb): (...args: unknown[]) => unknown {
    const isAbility = ABILITIES.some((ability) => ability === verb);
    return (...args) => {
      const { node } = this;
      const act = node[verb] as ((...args: unknown[]) => unknown) | undefined;
      if (act) return act.apply(node, args);
      // A replacement may have fewer verbs.
      return isAbility
        ? Promise.reject(new BlockError("ENOTSUP"))
        : Promise.resolve();
    };
  }

  /** Switch to another child. */
  use(child: BlockNode): void {
    this.#check?.(child);
    this.node = child;
  }
}

/**
 * A stand-in for a filter's child that passes everything on to the current
 * child, so that the child can be replaced.
 *
 * @param check Throws if the filter cannot work on a new child.
 */
export function childSlot(
  child: BlockNode,
  check?: (child: BlockNode) => void,
): BlockNode {
  return new ChildSlot(child, check);
}

const wrapped = new WeakMap<BlockNode, BlockNode>();

/**
 * A node that looks like `node`, with the verbs of `changes` in place of its
 * own. Verbs that are `undefined` in `changes` are removed; those that `node`
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

/** The node that a driver made, without the core's wrappers. */
export function withoutWrappers(node: BlockNode): BlockNode {
  for (let below; (below = wrapped.get(node)); node = below);
  return node;
}

/** The mandatory verbs of a node, and those of `verbs` that it has. */
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
 * Define the properties of `changes`, getters as getters. Verbs are assigned
 * one by one: engines then keep the layout of the node, on which the speed of
 * every request through it depends.
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
