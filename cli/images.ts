/**
 * Opening the images that a command line names.
 *
 * @module
 */
import { asBlockError, BlockError, invalid } from "../core/errors.ts";
import type { BlockNode } from "../core/node.ts";
import type { CreateOptions } from "../core/create.ts";
import { openNode } from "../core/open.ts";
import type { CacheMode, OpenOptions } from "../core/open_options.ts";
import type { OptionValues } from "../core/options.ts";
import { findDriver } from "../core/registry.ts";
import { toStack } from "../core/sources.ts";
import {
  NO_BACKING,
  parseStack,
  type Source,
  type StackObject,
} from "../core/spec.ts";
import type { OpenPurpose } from "../core/traits.ts";
import { isPlainObject } from "../core/values.ts";
// Registers the drivers.
import "../drivers/all.ts";
import { CommandError, notAmong, type Program } from "./program.ts";
import { inRelease } from "./qemu_releases.ts";
import type { AioMode } from "../core/traits.ts";

/** How to open an image for a command. */
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
  /** Which backing files will be written to. Default: none. */
  writableBacking?: OpenOptions["writableBacking"];
  /** Whether to share all access (`-U`). */
  forceShare?: boolean;
  /** Whether others may write to it meanwhile. Default: true. */
  share?: boolean;
  /** Whether its size will be changed. */
  resize?: boolean;
  /** How writes reach the disk. */
  cache?: CacheMode;
  /** How requests to files are made. */
  aio?: AioMode;
  /** Further options of the format, which must then be given. */
  options?: OptionValues;
}

/**
 * The stack that the argument of `--image-opts` describes.
 *
 * @throws {BlockError} EINVAL if this stands in for a program of QEMU's, to
 * which a name in place of a child is that of a node, and there are none.
 */
export function parseImageOpts(
  program: Program,
  text: string,
  backing = true,
): StackObject {
  const stack = parseStack(text, (message) => program.warn(message));
  if (!program.isOurs) checkStack(program, stack, backing);
  return stack;
}

/**
 * What a file name stands for, if it is the description of a stack and given to
 * a program of QEMU's: names of nodes are refused as in `--image-opts`, and a
 * format in an option of its own replaces the driver.
 */
export function namedSource<T>(
  program: Program,
  name: string,
  source: T,
  { format, backing }: Pick<ImageArgument, "format" | "backing"> = {},
): T | StackObject {
  if (program.isOurs || !name.startsWith("json:")) return source;
  const stack = toStack(name);
  if (format !== undefined) stack.driver = format;
  checkStack(program, stack, backing);
  return stack;
}

/**
 * Check a stack as QEMU's programs do, before any file is opened.
 *
 * @param backing Whether its backing files will be opened.
 * @throws {BlockError} EINVAL if it has the name of a node as a child.
 */
export function checkStack(
  program: Program,
  stack: StackObject,
  backing = true,
): void {
  const { driver, file, filename } = stack;
  const traits = typeof driver === "string" ? findDriver(driver) : undefined;
  // Opening it says that the driver is unknown.
  if (driver !== undefined && !traits) return;
  const isFormat = !traits || traits.role === "format";
  if (isFormat && filename !== undefined && file === undefined) {
    throw invalid(
      traits
        ? 'A block device must be specified for "file"'
        : "Must specify either driver or file",
    );
  }
  checkChildren(program, stack, backing);
}

/** Options whose values are children, except those of protocols. */
const CHILDREN = ["file", "image", "test", "header"];

/** Check the children; an empty name of a backing file stands for none. */
function checkChildren(
  program: Program,
  stack: StackObject,
  backing: boolean,
): void {
  const check = (child: unknown, where = "") => {
    if (isPlainObject(child)) checkChildren(program, child, backing);
    else if (typeof child === "string") throw noSuchNode(child, where);
  };
  const { driver } = stack;
  const isProtocol = typeof driver === "string" &&
    findDriver(driver)?.role === "protocol";
  for (const [option, value] of Object.entries(stack)) {
    if (option === "backing" && value === "") {
      program.warn(NO_BACKING);
      stack.backing = null;
    } else if (option === "backing" && !backing && typeof value === "string") {
      throw invalid(
        `Block format '${stack.driver}' does not support the option 'backing'`,
      );
    } else if (option === "backing") {
      check(value, "Could not open backing file: ");
    } else if (option === "children" && Array.isArray(value)) {
      value.forEach((child) => check(child));
    } else if (!isProtocol && CHILDREN.includes(option)) {
      check(value);
      if (["number", "boolean"].includes(typeof value)) {
        throw invalid(`A block device must be specified for "${option}"`);
      }
    } else if (isPlainObject(value)) check(value);
  }
}

function noSuchNode(name: string, where: string): BlockError {
  const message = `Cannot find device='${name}' nor node-name='${name}'`;
  return invalid(where + message);
}

/**
 * Open the image that an argument names.
 *
 * Files that an image names are opened without restrictions, as qemu-img does:
 * its users rely on it.
 */
export async function openImageArgument(
  program: Program,
  text: string,
  argument: ImageArgument,
): Promise<BlockNode> {
  const { format, imageOpts, writable, options, forceShare } = argument;
  const { purpose, backing, writableBacking, share, resize, cache, aio } =
    argument;
  if (imageOpts && format !== undefined) {
    throw new CommandError(
      "--image-opts and --format are mutually exclusive",
    );
  }
  try {
    const source = options
      ? { ...options, driver: format, file: text }
      : imageOpts
      ? parseImageOpts(program, text, backing)
      : namedSource(program, text, text, argument);
    if (forceShare) checkSharing(source);
    const node = await openNode(source, {
      ...(format !== undefined && { format }),
      readOnly: !writable,
      unpack: program.isOurs,
      purpose,
      backing,
      writableBacking,
      forceShare,
      share,
      resize,
      cache,
      aio,
      gate: "allow",
      maxChain: program.maxChain,
      secrets: program.secrets,
      ...reporting(program),
    });
    if (writable && node.readOnly) {
      await node.close();
      throw new BlockError("EACCES", "Block node is read-only");
    }
    return node;
  } catch (error) {
    if (error instanceof CommandError) throw error;
    throw asBlockError(error).prefixed(`Could not open '${text}': `);
  }
}

/** How a program reports messages of drivers. */
export function reporting(
  program: Program,
): Pick<OpenOptions, "warn" | "report" | "onUnlocked"> {
  return {
    warn: (message) => program.warn(message),
    report: (line, named = false) =>
      program.printError(`${named ? `${program.name}: ` : ""}${line}\n`),
    // QEMU's tools are silent about it, and scripts compare their output.
    ...(program.isOurs && {
      onUnlocked: (why) => warnUnlocked(program, why),
    }),
  };
}

/** What a program provides for creating an image. */
export function creating(program: Program): CreateOptions {
  const { secrets } = program;
  const { warn, onUnlocked } = reporting(program);
  return { secrets, warn, onUnlocked, plainNames: inRelease("plainNames") };
}

let hasWarned = false;

/** Warn only once: the reason is the same for all files. */
function warnUnlocked(program: Program, why: string): void {
  if (!hasWarned) program.warn(why);
  hasWarned = true;
}

function checkSharing(source: Source): void {
  if (typeof source !== "object" || source instanceof URL) return;
  const shares = (source as StackObject)["force-share"];
  if (shares === undefined || shares === "on") return;
  throw new CommandError("--force-share/-U conflicts with image options");
}

/** The cache modes, by the names of `-t` and `-T`. */
export const CACHE_MODES: readonly CacheMode[] = [
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
  // "off" is the old name of "none".
  const mode = CACHE_MODES.find((mode) =>
    mode === (text === "off" ? "none" : text)
  );
  if (!mode) throw notAmong(`Invalid ${what}: ${text}`, CACHE_MODES, { code });
  return mode;
}

/** Use open nodes, and close them whatever happens. */
export async function usingNodes<T>(
  nodes: readonly (BlockNode | undefined)[],
  use: () => Promise<T>,
): Promise<T> {
  let result: T;
  try {
    result = await use();
  } catch (error) {
    // After an error, ignore those of closing.
    for (const node of nodes) await node?.close().catch(() => {});
    throw error;
  }
  for (const node of nodes) await node?.close();
  return result;
}
