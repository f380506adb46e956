/**
 * Bitmaps of converted images.
 *
 * @module
 */
import { mergeBitmap, operationsOf } from "../core/bitmaps.ts";
import { asBlockError } from "../core/errors.ts";
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
  const broken = bitmaps.findLast(isBroken);
  if (!broken || skipBroken) return;
  throw new CommandError(`Cannot copy inconsistent bitmap '${broken.name}'`, {
    hint: "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to " +
      "delete it",
  });
}

function isBroken({ flags }: BitmapInfo): boolean {
  return flags.includes("in-use");
}

/** Refuse a target that cannot keep bitmaps. */
export async function checkTargetBitmaps(target: BlockNode): Promise<void> {
  if ((await target.info?.())?.bitmaps) return;
  throw new CommandError(
    `Format driver '${target.driver.name}' does not support bitmaps`,
  );
}

/** Copy all consistent bitmaps, and warn about those left out. */
export async function copyBitmaps(
  program: Program,
  source: BlockNode,
  target: BlockNode,
): Promise<void> {
  const { bitmaps = [] } = await source.info?.() ?? {};
  // QEMU starts with the last one.
  for (const bitmap of bitmaps.toReversed()) {
    if (isBroken(bitmap)) {
      program.warn(`Skipping inconsistent bitmap '${bitmap.name}'`);
    }
  }
  const operations = operationsOf(target);
  const wanted = bitmaps.filter((bitmap) => !isBroken(bitmap));
  const there = new Set((await operations.list()).map(({ name }) => name));
  const conflict = wanted.findLast(({ name }) => there.has(name));
  if (conflict) {
    const { name } = conflict;
    throw new CommandError(
      `Failed to create bitmap ${name}: Bitmap already exists: ${name}`,
    );
  }
  for (const bitmap of wanted) {
    const { name, granularity, flags } = bitmap;
    const failed = (what: string) => (thrown: unknown) => {
      throw asBlockError(thrown).prefixed(`Failed to ${what} bitmap ${name}: `);
    };
    await operations.add(name, { granularity, enabled: false })
      .catch(failed("create"));
    await mergeBitmap(target, name, source, name).catch(async (thrown) => {
      // A bitmap that lacks the changes must not look like a copy.
      await operations.remove(name);
      failed("populate")(thrown);
    });
    if (flags.includes("auto")) await operations.enable(name);
  }
}
