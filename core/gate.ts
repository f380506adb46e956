/**
 * The gate: which of the files that an image names may be opened.
 *
 * @module
 */
import type { BlockDriver } from "./driver.ts";
import { primaryChild } from "./extents.ts";
import { schemeOf } from "./names.ts";
import { findDriver, findProtocol } from "./registry.ts";
import { canonicalName, toStack, withFile, withoutScheme } from "./sources.ts";
import { isNode, type StackObject } from "./spec.ts";

/**
 * A file that an image names, to be opened.
 *
 * @category Security
 */
export interface ImplicitOpen {
  /** The file's name, relative to the current folder. */
  readonly filename: string;
  /** Its format, according to the image. */
  readonly format?: string;
  /** The image that names it. */
  readonly namedBy: string;
  /**
   * Its role in the image: `backing` files are usually read only, a `data-file`
   * or an `extent` is written to along with the image.
   */
  readonly role?: "backing" | "data-file" | "extent";
}

/**
 * Which of the files that an image names may be opened: all, none, those in or
 * below a folder (links followed) or a URL, or those that a function permits.
 * Redirects of a server must pass it as well.
 *
 * @category Security
 */
export type Gate =
  | "allow"
  | "deny"
  | { below: string }
  | ((request: ImplicitOpen) => boolean | Promise<boolean>);

/** Whether the gate permits a file. */
export async function passes(
  gate: Gate,
  request: ImplicitOpen,
): Promise<boolean> {
  if (gate === "allow") return true;
  if (gate === "deny") return false;
  if (typeof gate === "function") return await gate(request);
  return isImageBelow(gate.below, request);
}

/**
 * Whether the default gate permits a file: it must be a plain file in or below
 * the folder of the image that the user asked for; of a remote image, something
 * on the same server, in or below the same folder. Images on devices or in
 * memory have no such folder and may name no files.
 *
 * @param file Location of the image that names the file: the source, or one
 * below it.
 */
export function passesByDefault(
  source: unknown,
  file: unknown,
  request: ImplicitOpen,
): boolean {
  const folder = folderOf(source);
  const protocol = protocolOfName(request.filename);
  const named = {
    driver: protocol?.name,
    filename: withoutScheme(request.filename),
  };
  return protocol !== undefined && folder !== undefined &&
    folderOf(file) !== undefined &&
    folderOf(named) !== undefined && isImageBelow(folder, request);
}

function isImageBelow(
  folder: string,
  { filename, format }: ImplicitOpen,
): boolean {
  const protocol = protocolOfName(filename);
  if (!protocol) return false;
  // A driver of another kind could take the name for something else.
  const driver = format === undefined ? undefined : findDriver(format);
  if (driver && driver.role !== "format" && !driver.canonicalName) return false;
  const above = canonicalName(folder).replace(/\/$/, "");
  const file = canonicalName(filename);
  return file.startsWith(`${above}/`);
}

/** The protocol of a file name, if its names have folders. */
function protocolOfName(filename: string): BlockDriver | undefined {
  const scheme = schemeOf(filename) ?? "file";
  const protocol = findProtocol(scheme);
  return protocol?.ownFolder ? protocol : undefined;
}

/** The folder of a source's image, if it has one. */
function folderOf(source: unknown): string | undefined {
  if (isNode(source)) {
    const below = primaryChild(source);
    return below ? folderOf(below) : source.driver.ownFolder?.(source.filename);
  }
  if (typeof source === "string" || source instanceof URL) {
    return folderOf(toStack(source));
  }
  if (typeof source !== "object" || source === null) return undefined;
  const { driver: name = "file", ...options } = source as StackObject;
  const driver = findDriver(name);
  const place = options.filename ?? options.url;
  if (driver?.role === "protocol" && typeof place === "string") {
    return driver.ownFolder?.(place);
  }
  const { file, image } = driver ? withFile(driver, options) : options;
  return folderOf(file ?? image);
}
