/**
 * Reopening an image in use, in another way.
 *
 * The protocol nodes at the bottom stay open and locked, so that nobody can get
 * in between. The nodes above them are closed and opened anew.
 *
 * @module
 */
import { drain } from "./drain.ts";
import { asBlockError, BlockError, invalid } from "./errors.ts";
import {
  belowInserted,
  detach,
  drop,
  Edge,
  type GraphNode,
  graphNodeOf,
  type KeptNode,
  usable,
} from "./graph.ts";
import {
  changing,
  checkReplaceable,
  point,
  together,
} from "./graph_changes.ts";
import type { BlockNode } from "./node.ts";
import type { CacheMode, OpenOptions } from "./open_options.ts";
import type { OptionValues } from "./options.ts";
import { ACCESS } from "./permissions.ts";
import { loadTables } from "./registry.ts";
import { isDescription, toStack } from "./sources.ts";
import { isNode } from "./spec.ts";
import type { Permissions } from "./traits.ts";
import { isPlainObject, nodeText, valueText } from "./values.ts";

/**
 * How to reopen an image. Whatever is absent stays as it is.
 *
 * @category Images
 */
export interface ReopenOptions {
  /** Whether to refuse to write. */
  readOnly?: boolean;
  /** How writes reach the disk. */
  cache?: CacheMode;
  /**
   * Options of the topmost driver and, by dotted names (`file.locking`), of
   * those below.
   */
  options?: OptionValues;
}

/**
 * Reopen a node; its users use the new one from then on.
 *
 * @throws {BlockError} if it cannot be opened that way: it is then as it was
 * before, or, if even that has become impossible, closed, and the message says
 * so.
 */
export async function reopenNode(
  node: BlockNode,
  changes: ReopenOptions,
): Promise<void> {
  using _drained = await drain(node);
  using _ = await changing.lock();
  const at = described(usable(node));
  await loadTables(at.node!.driver);
  const options = joined(at, changes);
  if (await changeByItself(at, changes, options)) return;
  for (const edge of usersOf(at)) checkReplaceable(edge);
  const { readOnly, cache } = changes;
  carryDebuggers(at, options);
  await openAgain(at, options, {
    ...(readOnly !== undefined && { readOnly }),
    ...(cache !== undefined && { cache }),
  });
}

/** The node opened from a description, below any filters inserted later. */
function described(top: GraphNode): GraphNode {
  const at = belowInserted(top);
  if (at.opened) return at;
  throw new BlockError(
    "ENOTSUP",
    `${nodeText(top.node!)} cannot be opened once more: it was ` +
      "not opened by its description",
  );
}

const CACHE_OPTIONS = ["cache", "cache.direct", "cache.no-flush"];

/** The options of a node, with changes applied. */
function joined(
  { node, opened }: GraphNode,
  { options = {}, readOnly, cache }: ReopenOptions,
): OptionValues {
  const { driver, children } = node!;
  const isBelow = (name: string) => {
    const [role, ...rest] = name.split(".");
    return Object.hasOwn(children, role) || Object.hasOwn(children, name) ||
      role === "children" && rest.length > 0;
  };
  const before: OptionValues = {};
  const below: OptionValues = {};
  for (const [name, value] of Object.entries(opened!.options)) {
    (isBelow(name) || name === "children" ? below : before)[name] = value;
  }
  if (readOnly !== undefined) delete before["read-only"];
  if (cache !== undefined) CACHE_OPTIONS.forEach((name) => delete before[name]);
  const own: OptionValues = {};
  for (const [name, value] of Object.entries(options)) {
    if (isBelow(name)) changeBelow(below, name.split("."), value);
    else if (name === "driver") checkDriver(driver.name, value);
    else own[name] = value;
  }
  const after = driver.joinOptions?.(dotted(before), own) ??
    { ...before, ...own };
  return { ...after, ...below };
}

function checkDriver(name: string, wanted: unknown): void {
  if (wanted === name) return;
  throw invalid(`Cannot change the driver '${name}' to ${valueText(wanted)}`);
}

/** `{a: {b: 1}}` as `{"a.b": 1}`. */
function dotted(options: OptionValues, prefix = ""): OptionValues {
  const flat: OptionValues = {};
  for (const [name, value] of Object.entries(options)) {
    if (isPlainObject(value)) {
      Object.assign(flat, dotted(value as OptionValues, `${prefix}${name}.`));
    } else flat[`${prefix}${name}`] = value;
  }
  return flat;
}

/** Set a child's option in the description of its parent. */
function changeBelow(
  description: OptionValues,
  [role, ...rest]: string[],
  value: unknown,
): void {
  if (rest.length === 0) {
    description[role] = value;
    return;
  }
  const before = description[role] ?? {};
  if (isNode(before)) {
    throw invalid(
      `Cannot change options of ${nodeText(before)}, which was ` +
        "opened by itself",
    );
  }
  const child: OptionValues = isDescription(before)
    ? { ...before }
    : toStack(before as string | URL);
  changeBelow(child, rest, value);
  description[role] = child;
}

/**
 * Let a node apply all the changes itself, if it can; returns whether it did.
 */
async function changeByItself(
  at: GraphNode,
  { options = {}, readOnly, cache }: ReopenOptions,
  all: OptionValues,
): Promise<boolean> {
  const node = at.node!;
  const { openOptions = {} } = node.driver;
  const names = Object.keys(options);
  const isOwn = (name: string) => Object.hasOwn(openOptions, name);
  if (readOnly !== undefined || cache !== undefined) return false;
  if (!names.every(isOwn) || (names.length > 0 && !node.reopen)) return false;
  const own = Object.entries(dotted(all)).filter(([name]) => isOwn(name));
  await node.reopen?.(Object.fromEntries(own));
  at.opened!.options = all;
  return true;
}

/** Keep the state of nodes that suspend requests. */
function carryDebuggers(top: GraphNode, options: OptionValues): void {
  const pending: [at: GraphNode, path: string[]][] = [[top, []]];
  for (let next; (next = pending.pop());) {
    const [{ node, children, opened }, path] = next;
    if (node!.debug) changeBelow(options, [...path, "debugger"], node!.debug);
    for (const [role, { target }] of children) {
      if (isNode(opened?.options[role])) continue;
      pending.push([target, [...path, ...role.split(".")]]);
    }
  }
}

function usersOf({ users }: GraphNode): Edge[] {
  return users.filter(({ holds, isExempt }) => holds && !isExempt);
}

async function openAgain(
  at: GraphNode,
  options: OptionValues,
  settings: OpenOptions,
): Promise<void> {
  const users = usersOf(at);
  const roots = rootsOf(users);
  const claims = roots.map(({ permissions }) => permissions);
  const keepers = keepBelow(at);
  const keep = () =>
    keepers.map((edge): KeptNode => ({
      node: edge.target.node!,
      isReused: false,
      release: () => detach(edge),
    }));
  for (const edge of users) drop(edge);
  try {
    try {
      await at.lose();
      await replace(at, users, options, settings, keep());
    } catch (thrown) {
      const error = asBlockError(thrown);
      roots.forEach((edge, i) => edge.permissions = claims[i]);
      await restore(at, users, keep(), error);
      throw error;
    }
  } finally {
    for (const edge of keepers) await detach(edge).catch(() => {});
  }
}

/** Hold the nodes that stay open: protocols, and nodes that were passed in. */
function keepBelow(top: GraphNode): Edge[] {
  const keepers: Edge[] = [];
  const pending = [top];
  for (let next; (next = pending.pop());) {
    for (const [role, { target }] of next.children) {
      const isGiven = isNode(next.opened?.options[role]);
      if (!isGiven && target.children.size > 0) {
        pending.push(target);
        continue;
      }
      const keeper = new Edge(target, "reopening");
      keeper.isExempt = true;
      keeper.permissions = target.claimed;
      target.users.push(keeper);
      keepers.push(keeper);
    }
  }
  return keepers;
}

/** Open a node anew, and move its users to it. */
async function replace(
  at: GraphNode,
  users: readonly Edge[],
  options: OptionValues,
  settings: OpenOptions,
  kept: readonly KeptNode[],
): Promise<void> {
  const node = await at.opened!.again({ options, settings, kept });
  const next = graphNodeOf(node);
  const roots = rootsOf(users);
  try {
    together((change) => {
      // If it is read-only now, no root may keep a claim to write.
      const adjust = (root: Edge) => change.ask(root, claimsOfRoot(root, node));
      if (node.readOnly) roots.forEach(adjust);
      for (const edge of users) {
        change.step(() => {
          edge.target = next;
          next.users.push(edge);
        }, () => {
          drop(edge);
          edge.target = at;
        });
        const { parent, name, permissions } = edge;
        change.ask(edge, parent?.claimsOn(name) ?? permissions);
        point(change, edge, at, next);
      }
      if (!node.readOnly) roots.forEach(adjust);
    });
  } catch (error) {
    await next.lose().catch(() => {});
    throw error;
  }
}

/** The roots that use a node, directly or through inserted filters. */
function rootsOf(users: readonly Edge[]): Edge[] {
  return users.flatMap((edge) => {
    if (edge.gate) return [edge];
    return edge.parent?.isInserted ? rootsOf(edge.parent.users) : [];
  });
}

/** A root's claims on a node that may have become read-only or writable. */
function claimsOfRoot(
  { permissions: { needs, shares } }: Edge,
  { readOnly }: BlockNode,
): Permissions {
  const { READ, WRITE, RESIZE } = ACCESS;
  if (readOnly) needs &= ~(WRITE | RESIZE);
  else if (needs & READ) needs |= WRITE;
  return { needs, shares };
}

/** Reopen a node as it was, or else close it and notify its users. */
async function restore(
  at: GraphNode,
  users: readonly Edge[],
  kept: readonly KeptNode[],
  failure: BlockError,
): Promise<void> {
  try {
    await replace(at, users, at.opened!.options, {}, kept);
  } catch (thrown) {
    for (const { lost } of users) lost?.();
    const { message, code } = asBlockError(thrown);
    throw new BlockError(
      code,
      `${failure.message}; it cannot be reopened as before either, and is ` +
        `closed now: ${message}`,
      { cause: failure },
    );
  }
}
