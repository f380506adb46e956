/**
 * Opening the images that a command line names.
 *
 * @module
 */
import type { BlockNode, OpenPurpose } from "../core/driver.ts";
import { asBlockError } from "../core/errors.ts";
import type { CacheMode } from "../core/open.ts";
import { openNode } from "../core/open.ts";
import type { OptionValues } from "../core/options.ts";
import { parseStack } from "../core/spec.ts";
// Registers the drivers.
import "../mod.ts";
import { CommandError, type Program } from "./program.ts";

/** How a command opens an image. */
export interface ImageArgument {
  /** Its format; found by probing if absent. */
  format?: string;
  /** Whether its name is a list of options (`--image-opts`). */
  imageOpts?: boolean;
  /** Whether it will be written to. */
  writable?: boolean;
  /** Why it is opened. Default: `io`. */
  purpose?: OpenPurpose;
  /** Whether to open its backing files. Default: true. */
  backing?: boolean;
  /** How writes reach the disk. */
  cache?: CacheMode;
  /** Further options of the format, which is given then. */
  options?: OptionValues;
}

/**
 * Open the image that an argument stands for.
 *
 * Files that an image names are opened without asking, as qemu-img does: its
 * users rely on it.
 */
export async function openImageArgument(
  program: Program,
  text: string,
  argument: ImageArgument,
): Promise<BlockNode> {
  const { format, imageOpts, writable, purpose, backing, cache } = argument;
  if (imageOpts && format !== undefined) {
    throw new CommandError(
      "--image-opts and --format are mutually exclusive",
    );
  }
  try {
    const source = argument.options
      ? { ...argument.options, driver: format, file: text }
      : imageOpts
      ? parseStack(text)
      : text;
    return await openNode(source, {
      ...(format !== undefined && { format }),
      readOnly: !writable,
      purpose,
      backing,
      cache,
      gate: "allow",
      secrets: program.secrets,
      warn: (message) => program.warn(message),
      report: (line) => program.printError(`${line}\n`),
    });
  } catch (error) {
    throw asBlockError(error).prefixed(`Could not open '${text}': `);
  }
}

const CACHE_MODES: readonly CacheMode[] = [
  "writeback",
  "writethrough",
  "none",
  "directsync",
  "unsafe",
];

/** Parse a cache mode; `what` names the option in the message. */
export function cacheMode(
  text: string,
  what: string,
  code = 1,
): CacheMode {
  // "off" is what "none" was called first.
  const mode = CACHE_MODES.find((mode) =>
    mode === (text === "off" ? "none" : text)
  );
  if (!mode) throw new CommandError(`Invalid ${what}: ${text}`, { code });
  return mode;
}

/** Use opened nodes, and close them whatever happens. */
export async function usingNodes<T>(
  nodes: readonly (BlockNode | undefined)[],
  use: () => Promise<T>,
): Promise<T> {
  try {
    return await use();
  } finally {
    for (const node of nodes) await node?.close();
  }
}
