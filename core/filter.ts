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
      return { [driver.childRole ?? "file"]: slots.get(file)?.child ?? file };
    },
    ...passed(file, PASSED_ON),
    ...replaceIn(file),
    close: () => Promise.resolve(),
  };
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

/** What a node shows of itself, apart from its verbs. */
const FACTS = [
  "driver",
  "filename",
  "size",
  "readOnly",
  "children",
  "limits",
  "snapshots",
  "image",
  "vmState",
  "debug",
] as const satisfies readonly (keyof BlockNode)[];

/** The facts of whichever node it is at the time. */
function factsOf(current: () => BlockNode): object {
  const facts = {};
  for (const name of FACTS) {
    Object.defineProperty(facts, name, {
      get: () => current()[name],
      enumerable: true,
      configurable: true,
    });
  }
  return facts;
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
  const wrapper = redefine(
    passed(node, OPTIONAL_VERBS),
    factsOf(() => node),
  ) as BlockNode;
  redefine(wrapper, interceptable([node], changes));
  wrapped.set(wrapper, node);
  return wrapper;
}

/** The children behind {@linkcode childSlot}s. */
const slots = new WeakMap<BlockNode, Slot>();

interface Slot {
  child: BlockNode;
  /** Refuses a child that the filter cannot work on. */
  readonly check?: (child: BlockNode) => void;
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
  check?.(child);
  const slot: Slot = { child, check };
  const node = factsOf(() => slot.child) as BlockNode;
  for (const verb of ["readv", "status", "close", ...OPTIONAL_VERBS] as const) {
    if (!child[verb]) continue;
    const value = (...args: unknown[]) => {
      const { child } = slot;
      const act = child[verb] as ((...args: unknown[]) => unknown) | undefined;
      if (act) return act.apply(child, args);
      // One that came later may be able to do less.
      return ABILITIES.some((ability) => ability === verb)
        ? Promise.reject(new BlockError("ENOTSUP"))
        : Promise.resolve();
    };
    Object.defineProperty(node, verb, { value });
  }
  slots.set(node, slot);
  return node;
}

/** What replaces the child of a filter, if that has a slot. */
function replaceIn(file: BlockNode): Partial<BlockNode> {
  const slot = slots.get(file);
  if (!slot) return {};
  return {
    replaceChild(_role, child) {
      slot.check?.(child);
      slot.child = child;
    },
  };
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

/** Define the properties of `changes`, getters as getters. */
function redefine<Node extends object>(node: Node, changes: object): Node {
  return Object.defineProperties(
    node,
    Object.getOwnPropertyDescriptors(changes),
  );
}
