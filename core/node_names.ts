/**
 * The names of open nodes, by which the same stack could be opened again.
 *
 * As in QEMU, a stack that a plain file name would open is called by it, any
 * other by `json:` and its description.
 *
 * @module
 */
import { BlockError } from "./errors.ts";
import { primaryChild } from "./extents.ts";
import { findGraphNode, type Origin } from "./graph.ts";
import { compactJson, type Json } from "./json.ts";
import { isAbsolute, resolveName } from "./names.ts";
import type { BlockNode } from "./node.ts";
import type { OptionValues } from "./options.ts";
import { withoutSecrets } from "./redaction.ts";
import { isPlainObject } from "./values.ts";

/**
 * The name of a node to be shown: a file name if that would open it, else
 * `json:` and the description of the stack; without the secrets of URLs.
 */
export function nameOf(node: BlockNode): string {
  return withoutSecrets(
    plainName(node) ?? `json:${compactJson(descriptionOf(node))}`,
  );
}

/**
 * The plain file name that would open a node, if there is one. It may contain
 * secrets.
 */
export function plainName(node: BlockNode): string | undefined {
  const { driver } = node;
  const { options, otherBacking } = originOf(node);
  const child = primaryChild(node);
  const below = child && plainName(child);
  if (driver.plainName) return driver.plainName(strongOptions(node), below);
  if (!child) {
    return typeof options.filename === "string" ? node.filename : undefined;
  }
  // Probing never finds a filter.
  const isFound = driver.role === "format" && !otherBacking &&
    (child.driver.role === "protocol" || child.driver.schemes !== undefined) &&
    Object.keys(strongOptions(node)).length === 0;
  return isFound ? below : undefined;
}

/** The description of a stack, as in QEMU: all that determines its content. */
function descriptionOf(node: BlockNode): { [name: string]: Json } {
  const { options, otherBacking } = originOf(node);
  const description: { [name: string]: Json } = {
    driver: node.driver.name,
    filename: options.filename as Json,
    ...strongOptions(node),
  };
  for (const [role, child] of Object.entries(node.children)) {
    if (!child || (role === "backing" && !otherBacking)) continue;
    const [list, index] = role.split(".");
    if (index === undefined) description[role] = descriptionOf(child);
    else ((description[list] ??= []) as Json[]).push(descriptionOf(child));
  }
  if (otherBacking && !node.children.backing) description.backing = null;
  return description;
}

function originOf(node: BlockNode): Origin {
  return findGraphNode(node)?.origin ??
    { options: { filename: node.filename }, otherBacking: false };
}

/** A node's strong options, which determine its content. */
function strongOptions(node: BlockNode): { [name: string]: Json } {
  const { strongOptions = [] } = node.driver;
  const given = flatOptions(originOf(node).options);
  return Object.fromEntries(
    given.filter(([name]) =>
      strongOptions.some((strong) =>
        strong.endsWith(".") ? name.startsWith(strong) : name === strong
      )
    ),
  );
}

/** Options by dotted name; list items are numbered. */
function flatOptions(
  options: OptionValues,
  prefix = "",
): [name: string, value: Json][] {
  return Object.entries(options).flatMap(([name, value]) => {
    if (value === undefined) return [];
    if (typeof value !== "object" || value === null) {
      return [[`${prefix}${name}`, value as Json]];
    }
    // Other objects, such as a memory store, cannot be described.
    return Array.isArray(value) || isPlainObject(value)
      ? flatOptions(value as OptionValues, `${prefix}${name}.`)
      : [];
  });
}

/**
 * Resolve the name `relative`, as stored in the image of `node`.
 *
 * @throws {BlockError} EINVAL if it is relative and the node has no folder.
 */
export function resolveFrom(node: BlockNode, relative: string): string {
  if (isAbsolute(relative)) return relative;
  let at = node;
  for (let next; (next = primaryChild(at)); at = next);
  const name = plainName(at);
  if (name === undefined) {
    throw new BlockError(
      "EINVAL",
      `Cannot generate a base directory for ${at.driver.name} nodes`,
    );
  }
  return resolveName(name, relative);
}
