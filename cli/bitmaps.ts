/**
 * Bitmaps of converted images.
 *
 * @module
 */
import type { BitmapInfo, BlockNode } from "../core/node.ts";
import { CommandError, type Program } from "./program.ts";

/** Refuse to copy inconsistent bitmaps, unless they are to be skipped. */
export async function checkSourceBitmaps(
  skipBroken: boolean,
  sources: readonly BlockNode[],
): Promise<void> {
  if (sources.length > 1) {
    throw new CommandError("Copying bitmaps only possible with single source");
  }
  const { bitmaps } = await sources[0].info?.() ?? {};
  if (!bitmaps) throw new CommandError("Source lacks bitmap support");
  const broken = bitmaps.find(isBroken);
  if (!broken || skipBroken) return;
  throw new CommandError(`Cannot copy inconsistent bitmap '${broken.name}'`, {
    hint: "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to " +
      "delete it",
  });
}

function isBroken({ flags }: BitmapInfo): boolean {
  return flags.includes("in-use");
}

/** Warn of the bitmaps that are left out. */
export async function warnOfSkippedBitmaps(
  program: Program,
  source: BlockNode,
): Promise<void> {
  const { bitmaps = [] } = await source.info?.() ?? {};
  for (const { name } of bitmaps.filter(isBroken)) {
    program.warn(`Skipping inconsistent bitmap '${name}'`);
  }
}

/**
 * Refuse to copy bitmaps, if there are any, since no driver writes them yet.
 */
export async function refuseBitmaps(
  source: BlockNode,
  target: BlockNode,
): Promise<void> {
  if (!(await target.info?.())?.bitmaps) {
    throw new CommandError(
      `Format driver '${target.driver.name}' does not support bitmaps`,
    );
  }
  const { bitmaps = [] } = await source.info?.() ?? {};
  const copied = bitmaps.find((bitmap) => !isBroken(bitmap));
  if (!copied) return;
  throw new CommandError(
    `Failed to create bitmap ${copied.name}: Writing bitmaps is not supported`,
  );
}
