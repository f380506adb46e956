/**
 * The stored names of a differencing VHD image's parent.
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/node.ts";
import { parentNames } from "../../core/parents.ts";
import { readPadded } from "../../core/requests.ts";
import type { DynamicHeader } from "./footer.ts";

/** Most bytes of a name. */
const MAX_NAME = 64 * 1024;

/** The names of the parent, the best first. */
export async function readParentNames(
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
  return parentNames(relative, [...absolute, parentName]);
}

function decodedUrl(url: string): string {
  try {
    return decodeURIComponent(url);
  } catch {
    return url;
  }
}
