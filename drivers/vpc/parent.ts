/**
 * The parent of a differencing VHD image: by which names it is looked for, and
 * how it is known to be the right one.
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import type { OpenContext } from "../../core/driver.ts";
import { asBlockError, BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import type { OptionValues } from "../../core/options.ts";
import { readPadded } from "../../core/requests.ts";
import { skipFilters } from "../../core/extents.ts";
import { type DynamicHeader, readFooter } from "./footer.ts";

/** Bytes of the longest name that is read. */
const MAX_NAME = 64 * 1024;

/**
 * The names of the parent, the best first: the one relative to the image's own
 * folder. Of names that begin at the root of the computer that made the image,
 * only the last part means anything here.
 */
export async function parentNames(
  file: BlockNode,
  { locators, parentName }: DynamicHeader,
): Promise<string[]> {
  const relative: string[] = [];
  const absolute: string[] = [];
  for (const { platform, length, offset } of locators) {
    if (length === 0 || length > MAX_NAME || !(offset < file.size)) continue;
    const bytes = allocate(length);
    await readPadded(file, offset, [bytes]);
    const text = (encoding: string) =>
      new TextDecoder(encoding).decode(bytes).replace(/\0.*$/s, "");
    if (platform === "W2ru") relative.push(text("utf-16le"));
    if (platform === "W2ku") absolute.push(text("utf-16le"));
    if (platform === "MacX") absolute.push(decodedUrl(text("utf-8")));
  }
  const names = relative.map((name) =>
    name.replaceAll("\\", "/").replace(/^(\.\/)+/, "")
  );
  for (const name of [...absolute, parentName]) {
    names.push(name.split(/[\\/]/).at(-1)!);
  }
  return [...new Set(names)].filter((name) => name !== "");
}

function decodedUrl(url: string): string {
  try {
    return decodeURIComponent(url);
  } catch {
    return url;
  }
}

/**
 * Open the parent: what the user describes, or else the first of its names that
 * there is.
 *
 * @throws {BlockError} EINVAL if it is another disk than the one that the image
 * was made from.
 */
export async function openParent(
  names: readonly string[],
  { parentUuid }: DynamicHeader,
  options: OptionValues,
  context: OpenContext,
): Promise<BlockNode | undefined> {
  if (context.describes("backing")) {
    if (options.backing === null) return undefined;
    return await context.openChild("backing");
  }
  if (names.length === 0) {
    throw invalid("the VHD image does not say where its parent is");
  }
  const parent = await firstOf(names, context);
  if (!parent) return undefined;
  const image = skipFilters(parent);
  const { uuid } = await readFooter(image.children.file!, () => {});
  if (uuid === parentUuid) return parent;
  throw invalid(
    `'${parent.filename}' is not the parent that the VHD image was made from: ` +
      "it has another identifier",
  );
}

async function firstOf(
  names: readonly string[],
  context: OpenContext,
): Promise<BlockNode | undefined> {
  let missing: BlockError | undefined;
  for (const name of names) {
    try {
      return await context.openImplicit("backing", name, "vpc");
    } catch (error) {
      const cause = asBlockError(error);
      if (cause.code !== "ENOENT") throw cause;
      missing ??= cause;
    }
  }
  throw missing!;
}
