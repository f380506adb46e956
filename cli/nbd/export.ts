/**
 * Opening an image to be exported.
 *
 * @module
 */
import { createImage } from "../../core/create.ts";
import { asBlockError } from "../../core/errors.ts";
import { backingOf, skipFilters } from "../../core/extents.ts";
import type { BlockNode } from "../../core/node.ts";
import { openNode } from "../../core/open.ts";
import type { OpenOptions } from "../../core/open_options.ts";
import { process } from "../../core/platform/this_process.ts";
import { applyFormat, toStack } from "../../core/sources.ts";
import type { NbdBitmap } from "../../mod.ts";
import { namedSource, parseImageOpts, reporting } from "../images.ts";
import { CommandError, type Program } from "../program.ts";
import { showSnapshot } from "../snapshots.ts";
import type { NbdRequest } from "./options.ts";

/** The parts of a request that concern the image. */
export type ImageSettings = Pick<
  NbdRequest,
  | "file"
  | "format"
  | "imageOpts"
  | "readOnly"
  | "snapshot"
  | "loadSnapshot"
  | "offset"
  | "cache"
  | "aio"
  | "discard"
  | "detectZeroes"
>;

/** Open an image and its exported bitmaps. */
export async function openExport(
  program: Program,
  settings: ImageSettings,
): Promise<BlockNode> {
  const { format, imageOpts, readOnly, snapshot, offset } = settings;
  if (imageOpts && format !== undefined) {
    throw new CommandError("--image-opts and -f are mutually exclusive");
  }
  const options: OpenOptions = {
    readOnly: readOnly || snapshot,
    unpack: program.isOurs,
    cache: settings.cache,
    aio: settings.aio,
    gate: "allow",
    maxChain: program.maxChain,
    secrets: program.secrets,
    ...reporting(program),
  };
  let node = await openFile(program, settings, options);
  try {
    if (snapshot) node = await temporaryOverlay(node, readOnly);
    if (offset > 0) {
      const part = { driver: "raw", offset, file: node };
      node = await openNode(part, { readOnly });
    }
    if (settings.loadSnapshot !== undefined) {
      await showSnapshot(node, settings.loadSnapshot);
    }
    return node;
  } catch (error) {
    await node.close();
    throw error;
  }
}

async function openFile(
  program: Program,
  { file, format, imageOpts, discard, detectZeroes }: ImageSettings,
  options: OpenOptions,
): Promise<BlockNode> {
  try {
    let stack = imageOpts
      ? parseImageOpts(program, file)
      : namedSource(program, file, toStack(file), { format });
    if (format !== undefined) stack = applyFormat(stack, format);
    return await openNode({
      discard: discard ? "unmap" : "ignore",
      "detect-zeroes": detectZeroes,
      ...stack,
    }, options);
  } catch (error) {
    const what = program.isOurs ? "Could not open" : "Failed to blk_new_open";
    throw asBlockError(error).prefixed(`${what} '${file}': `);
  }
}

/** A temporary overlay, whose file has no name any more. */
async function temporaryOverlay(
  backing: BlockNode,
  readOnly: boolean,
): Promise<BlockNode> {
  const path = process.makeTemporary("vl.", ".qcow2");
  try {
    await createImage("qcow2", path, { size: backing.size });
    const overlay = { driver: "qcow2", file: path, backing };
    return await openNode(overlay, { readOnly, cache: "unsafe" });
  } finally {
    process.remove(path);
  }
}

/**
 * The bitmaps with these names, of the image or its backing chain.
 *
 * @throws {CommandError} if one does not exist, or is inconsistent.
 */
export async function findBitmaps(
  node: BlockNode,
  names: readonly string[],
  readOnly: boolean,
): Promise<NbdBitmap[]> {
  const found: NbdBitmap[] = [];
  for (const name of names) found.push(await findBitmap(node, name, readOnly));
  return found;
}

async function findBitmap(
  top: BlockNode,
  name: string,
  readOnly: boolean,
): Promise<NbdBitmap> {
  for (let at: BlockNode | undefined = top; at; at = backingOf(at)) {
    const node = skipFilters(at);
    const bitmaps = node.image?.bitmaps;
    const info = (await bitmaps?.list())?.find((bitmap) =>
      bitmap.name === name
    );
    if (!bitmaps || !info) continue;
    if (info.flags.includes("in-use")) {
      throw new CommandError(
        `Bitmap '${name}' is inconsistent and cannot be used`,
        {
          hint: "Try block-dirty-bitmap-remove to delete this bitmap from disk",
        },
      );
    }
    if (readOnly && !node.readOnly && info.flags.includes("auto")) {
      throw new CommandError(
        `Enabled bitmap '${name}' incompatible with readonly export`,
      );
    }
    return { name, dirty: (...range) => bitmaps.dirty(name, ...range) };
  }
  throw new CommandError(`Bitmap '${name}' is not found`);
}
