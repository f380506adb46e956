/**
 * Opening the parents of an image: the backing file that a header names, or one
 * of several names that Microsoft's formats store for a parent.
 *
 * @module
 */
import type { OpenContext } from "./driver.ts";
import { asBlockError, type BlockError, invalid } from "./errors.ts";
import { skipFilters } from "./extents.ts";
import type { BlockNode } from "./node.ts";
import type { OptionValues } from "./options.ts";

/**
 * Open the backing file that the user describes, or else the one that the
 * header names; `undefined` if there is none, or none is wanted.
 *
 * @param format Its format according to the header.
 */
export async function openBacking(
  name: string | undefined,
  format: string | undefined,
  options: OptionValues,
  context: OpenContext,
): Promise<BlockNode | undefined> {
  if (context.describes("backing")) {
    if (options.backing === null) return undefined;
    return await context.openChild("backing");
  }
  if (name === undefined) return undefined;
  return await context.openImplicit("backing", name, format);
}

/**
 * The names by which to look for a parent, the best first.
 *
 * @param relative Paths relative to the image's own folder.
 * @param absolute Paths on the computer that created it, of which only the file
 * name can be used here.
 */
export function parentNames(
  relative: readonly string[],
  absolute: readonly string[],
): string[] {
  const names = [
    ...relative.map((name) =>
      name.replaceAll("\\", "/").replace(/^(\.\/+)+/, "")
    ),
    ...absolute.map((name) => name.split(/[\\/]/).at(-1)!),
  ];
  return [...new Set(names)].filter((name) => name !== "");
}

/**
 * Open the parent as `backing`: the user's description, or else the first of
 * its names that exists and is permitted; `undefined` if backing files are not
 * wanted.
 *
 * @param isParent Whether a file is the parent that the image was created from.
 * Not called for the user's description.
 * @throws {BlockError} EINVAL if it is not, or if the image has no name for it.
 */
export async function openParent(
  names: readonly string[],
  options: OptionValues,
  context: OpenContext,
  format: string,
  isParent: (file: BlockNode) => Promise<boolean>,
): Promise<BlockNode | undefined> {
  if (context.describes("backing")) {
    return await openBacking(undefined, undefined, options, context);
  }
  if (names.length === 0) {
    throw invalid("The image has a parent, but does not say where it is");
  }
  const parent = await firstOf(names, context, format);
  const file = parent && skipFilters(parent).children.file;
  if (!file || await isParent(file)) return parent;
  throw invalid(
    `'${parent.filename}' is not the parent that the image was made from, or ` +
      "was changed since",
  );
}

async function firstOf(
  names: readonly string[],
  context: OpenContext,
  format: string,
): Promise<BlockNode | undefined> {
  let failure: BlockError | undefined;
  for (const name of names) {
    try {
      return await context.openImplicit("backing", name, format);
    } catch (error) {
      const cause = asBlockError(error);
      if (cause.code !== "ENOENT" && cause.code !== "EACCES") throw cause;
      failure ??= cause;
    }
  }
  throw failure!;
}
