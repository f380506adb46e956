/**
 * Protocol nodes that stay open, with their locks, while the stack above them is
 * opened again.
 *
 * @module
 */
import type { BlockDriver } from "./driver.ts";
import { findGraphNode, type KeptNode } from "./graph.ts";
import type { AccessMode, BlockNode } from "./node.ts";
import type { OptionValues } from "./options.ts";

/** Generic options that an open node can change. */
const TAKEN_OVER = [
  "read-only",
  "auto-read-only",
  "force-share",
  "cache",
  "cache.direct",
  "cache.no-flush",
];

/** Options that say which file a protocol node is on. */
const IDENTITY = ["filename", "store", "blob", "handle"];

/** The settings that a node would be opened with now. */
export interface KeptSettings extends AccessMode {
  readonly forceShare: boolean;
}

/**
 * Reuse one of `all`, if there is one that `driver` made with these options. A
 * node that cannot adopt the new settings is closed; another is to be opened.
 *
 * @param settings The new settings.
 * @throws {BlockError} what `settings` throws.
 */
export async function keptNode(
  all: readonly KeptNode[],
  driver: BlockDriver,
  options: OptionValues,
  settings: () => KeptSettings,
): Promise<BlockNode | undefined> {
  const kept = all.find(({ node, isReused }) => {
    const known = findGraphNode(node)?.origin?.options;
    return !isReused && node.driver === driver &&
      IDENTITY.every((name) => known?.[name] === options[name]);
  });
  if (!kept) return undefined;
  kept.isReused = true;
  const known = findGraphNode(kept.node)!;
  const isSame = isEqualOptions(known.opened!.options, options, TAKEN_OVER);
  if (isSame && await adjust(kept.node, settings)) return kept.node;
  await kept.release();
  return undefined;
}

/** Give an open node new settings, if it can take them. */
export async function adjust(
  node: BlockNode,
  settings: () => KeptSettings,
): Promise<boolean> {
  if (!node.setMode) return false;
  const { forceShare, ...mode } = settings();
  await node.setMode(mode);
  findGraphNode(node)!.forceShare = forceShare;
  return node.readOnly === mode.readOnly;
}

/** Whether two sets of options are equal, some excepted. */
function isEqualOptions(
  one: OptionValues,
  other: OptionValues,
  except: readonly string[],
): boolean {
  const names = [...Object.keys(one), ...Object.keys(other)];
  return names.every((name) =>
    except.includes(name) || one[name] === other[name]
  );
}
