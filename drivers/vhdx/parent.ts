/**
 * The parent of a differencing VHDX image.
 *
 * @module
 */
import type { BlockNode } from "../../core/node.ts";
import { parentNames } from "../../core/parents.ts";
import { Headers } from "./headers.ts";

/** The entries of a parent locator, by key. */
type Locator = ReadonlyMap<string, string>;

/** The names of the parent, the best first. */
export function namesOf(locator: Locator): string[] {
  const values = (...keys: string[]) =>
    keys.map((key) => locator.get(key)).filter((value) => value !== undefined);
  return parentNames(
    values("relative_path"),
    values("volume_path", "absolute_win32_path"),
  );
}

/** Whether a file is the parent, unchanged since. */
export async function isParent(
  locator: Locator,
  file: BlockNode,
): Promise<boolean> {
  const { dataWriteGuid } = (await Headers.read(file)).current;
  return ["parent_linkage", "parent_linkage2"].some((key) =>
    locator.get(key)?.toLowerCase().replace(/[{}]/g, "") === dataWriteGuid
  );
}
