/**
 * Changing graphs in use: replacing children, inserting and removing filters.
 * Each change is made while the nodes concerned are drained, completely or not
 * at all.
 *
 * @module
 */
import { nodeOf } from "./checks.ts";
import { drain, extendDrains, withAncestors } from "./drain.ts";
import { asBlockError, BlockError, invalid } from "./errors.ts";
import { primaryChild } from "./extents.ts";
import {
  Change,
  type Edge,
  type GraphNode,
  graphNodeOf,
  usable,
} from "./graph.ts";
import { Mutex } from "./lock.ts";
import type { BlockNode, Disk } from "./node.ts";
import { givenNode, openFilter } from "./open.ts";
import type { OpenOptions } from "./open_options.ts";
import type { StackObject } from "./spec.ts";
import { nodeText, shortened } from "./values.ts";

/**
 * Held while a graph is changed, and taken only after draining: waiting for
 * requests while holding it would block changes of unrelated graphs.
 */
export const changing = new Mutex();

/**
 * Replace a child of a node in use; requests through images above it wait
 * meanwhile. The new child must hold the same bytes as the old one. Whatever
 * the parent has not written yet goes to the new child. The old one is closed
 * if it has no other user.
 *
 * @param role The child's name in the `children` of the node above, such as `file`.
 * @throws {BlockError} ENOTSUP if the parent's driver cannot do so, EINVAL if
 * the new child does not fit, EPERM or EACCES if it does not permit what the
 * old one did. Nothing is changed then.
 *
 * @example Move an image to another file
 * ```ts
 * import {
 *   createImage, MemoryStore, openImage, replaceChild,
 * } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const [from, to] = [new MemoryStore(1024), new MemoryStore(1024)];
 * await using disk = await openImage({
 *   driver: "raw",
 *   file: { driver: "memory", store: from },
 * });
 * await using copy = await openImage({ driver: "memory", store: to });
 * await replaceChild(disk, "file", copy);
 * await disk.write(0, new Uint8Array([1]));
 * assertEquals(await copy.read(0, 1), new Uint8Array([1]));
 * ```
 *
 * @category Stacks
 */
export async function replaceChild(
  above: Disk,
  role: string,
  below: Disk,
): Promise<void> {
  const parent = nodeOf("The parent", above);
  const what = "The child";
  const child = await givenNode(what, nodeOf(what, below));
  using _drained = await drain(parent);
  using _ = await changing.lock();
  const user = usable(parent);
  const edge = user.children.get(role);
  if (!edge) {
    throw invalid(`${nodeText(parent)} has no child '${role}'`);
  }
  const before = edge.target;
  const next = usable(child);
  if (next === before) return;
  if (withAncestors(user).includes(next)) {
    throw invalid(`Cannot replace '${role}': the new child is above it`);
  }
  checkFit(parent, role, before.node!, child);
  checkReplaceable(edge);
  const size = parent.size;
  together((change) => {
    change.move(edge, next);
    change.ask(edge, edge.permissions);
    point(change, edge, before, next);
    if (parent.size !== size) throw unfit(role, before.node!, child);
  });
  await before.lose();
}

/** Refuse a child of another size. */
function checkFit(
  parent: BlockNode,
  role: string,
  before: BlockNode,
  child: BlockNode,
): void {
  // A backing file counts only as far as it is visible in the parent.
  const seen = ({ size }: BlockNode) => Math.min(size, parent.size);
  const fits = role === "backing"
    ? seen(child) === seen(before)
    : child.size >= before.size;
  if (!fits) throw unfit(role, before, child);
}

function unfit(role: string, before: BlockNode, child: BlockNode): BlockError {
  return invalid(
    `Cannot replace '${role}' by ${nodeText(child)}, which has ` +
      `${child.size} bytes: it has ${before.size}`,
  );
}

/**
 * Insert a filter above a node in use: all users of the node, images and
 * parents, use the filter from then on.
 *
 * @param description The filter's driver and options, as in a stack; the node
 * becomes its child.
 * @returns the filter, which is closed with its last user.
 * @throws {BlockError} EINVAL if it is no filter, or changes the size; ENOTSUP
 * if a node above cannot have its child replaced. Nothing is changed then.
 *
 * @example Slow a disk down for a while
 * ```ts
 * import {
 *   createImage, insertFilter, MemoryStore, openImage, removeFilter,
 *   ThrottleGroup,
 * } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * const file = { driver: "memory", store: new MemoryStore() };
 * await createImage("qcow2", file, { size: 1 << 20 });
 * await using disk = await openImage({ driver: "qcow2", file });
 * const group = new ThrottleGroup({ "iops-total": 1000 });
 * const throttle = { driver: "throttle", "throttle-group": group };
 * const filter = await insertFilter(disk, throttle);
 * assertEquals(disk.format, "throttle");
 * await disk.write(0, new Uint8Array(512));
 * await removeFilter(filter);
 * assertEquals(disk.format, "qcow2");
 * ```
 *
 * @category Stacks
 */
export async function insertFilter(
  disk: Disk,
  description: StackObject,
  options: OpenOptions = {},
): Promise<BlockNode> {
  const node = nodeOf("The node below the filter", disk);
  using _drained = await drain(node);
  using _ = await changing.lock();
  const below = usable(node);
  if (!below.isHeld) {
    throw invalid(`There is no user of ${nodeText(node)}`);
  }
  const filter = await openFilter(description, node, options);
  await checkSize(node, filter);
  const above = graphNodeOf(filter);
  await moveUsers(below, above, false);
  above.isInserted = true;
  return filter;
}

/**
 * Remove a filter in use: its users use the node below from then on.
 *
 * @throws {BlockError} EINVAL if it is not a filter; otherwise as for
 * {@linkcode insertFilter}. Nothing is changed then, unless closing the filter
 * is what fails.
 *
 * @example
 * ```ts
 * import { MemoryStore, openImage, removeFilter, ThrottleGroup } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 *
 * await using disk = await openImage({
 *   driver: "throttle",
 *   "throttle-group": new ThrottleGroup({}),
 *   file: { driver: "memory", store: new MemoryStore(512) },
 * });
 * await removeFilter(disk);
 * assertEquals(disk.format, "memory");
 * ```
 *
 * @category Stacks
 */
export async function removeFilter(disk: Disk): Promise<void> {
  const filter = nodeOf("The filter", disk);
  using _drained = await drain(filter);
  using _ = await changing.lock();
  const above = usable(filter);
  const below = primaryChild(filter);
  if (!isFilter(filter) || !below) {
    throw invalid(`'${filter.driver.name}' is not a filter`);
  }
  await moveUsers(above, graphNodeOf(below), true);
  await above.lose();
}

/** Refuse, and close, a new filter that changes the size. */
async function checkSize(node: BlockNode, filter: BlockNode): Promise<void> {
  if (filter.size === node.size) return;
  const { name } = filter.driver;
  await graphNodeOf(filter).lose().catch(() => {});
  throw invalid(
    `Cannot put '${name}' above ${nodeText(node)}: it has ` +
      `${filter.size} bytes then, not ${node.size}`,
  );
}

function isFilter({ driver }: BlockNode): boolean {
  return driver.role === "filter";
}

/**
 * Move all users of a node to another one that holds the same bytes. If that
 * fails and the other one has no users, it is closed.
 *
 * @param ends Whether the first node is about to be closed: until then it keeps
 * using its children, which does not conflict with the new users.
 */
async function moveUsers(
  from: GraphNode,
  to: GraphNode,
  ends: boolean,
): Promise<void> {
  try {
    together((change) => {
      if (ends) {
        for (const edge of from.children.values()) exempt(change, edge);
      }
      const moved = from.users.filter(({ parent }) => parent !== to);
      for (const edge of moved) checkReplaceable(edge);
      for (const edge of moved) change.move(edge, to);
      for (const edge of moved) change.ask(edge, edge.permissions);
      for (const edge of moved) point(change, edge, from, to);
      if (!ends) change.settle(from);
    });
  } catch (error) {
    await to.lose().catch(() => {});
    throw error;
  }
}

function exempt(change: Change, edge: Edge): void {
  change.step(() => edge.isExempt = true, () => edge.isExempt = false);
}

/** Make several changes; all are undone if one fails. */
export function together(act: (change: Change) => void): void {
  const change = new Change();
  try {
    act(change);
  } catch (error) {
    change.rollBack();
    throw asBlockError(error);
  }
  extendDrains();
}

/** Tell an edge's parent, if it has one, to use another child. */
export function point(
  change: Change,
  { parent, name }: Edge,
  from: GraphNode,
  to: GraphNode,
): void {
  if (!parent) return;
  const { node, opened } = parent;
  change.step(
    () => node!.replaceChild!(name, to.node!),
    () => node!.replaceChild!(name, from.node!),
  );
  if (!opened) return;
  const { options } = opened;
  change.step(
    () => opened.options = { ...options, [name]: to.node },
    () => opened.options = options,
  );
}

/**
 * Refuse to redirect an edge whose parent cannot replace its child.
 *
 * @throws {BlockError} ENOTSUP
 */
export function checkReplaceable({ parent, name }: Edge): void {
  if (!parent || (!parent.isForeign && parent.node?.replaceChild)) return;
  throw cannotReplace(parent.node, name);
}

function cannotReplace(node: BlockNode | undefined, role: string): BlockError {
  return new BlockError(
    "ENOTSUP",
    `Driver '${node?.driver.name}' cannot replace the child '${role}' of ` +
      `'${shortened(node?.filename ?? "")}'`,
  );
}
