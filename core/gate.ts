/**
 * The gate: which files an image may have opened by naming them.
 *
 * @module
 */
import type { BlockDriver } from "./driver.ts";
import { primaryChild } from "./extents.ts";
import { normalizePath, schemeOf } from "./names.ts";
import { findDriver, getDriver } from "./registry.ts";
import { toStack, withFile } from "./sources.ts";
import { isNode, type StackObject } from "./spec.ts";

/** A file that an image asks to have opened. */
export interface ImplicitOpen {
  /** The file's name, as seen from where we are. */
  readonly filename: string;
  /** The format that the image says it has. */
  readonly format?: string;
  /** The image that names it. */
  readonly namedBy: string;
  /**
   * What it is to the image: its `backing` file, which is only read as a rule,
   * or its `data-file`, which is written to where the image is.
   */
  readonly role?: "backing" | "data-file";
}

/**
 * Decides which files an image may have opened by naming them: all, none,
 * those in or below a folder (links followed), or what a function says.
 */
export type Gate =
  | "allow"
  | "deny"
  | { below: string }
  | ((request: ImplicitOpen) => boolean | Promise<boolean>);

/** Whether the gate lets a file be opened. */
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
 * Whether the default gate lets a file be opened: it must be a plain file in
 * or below the folder of the image that the user asked for. The folder of a
 * device is that of all devices, and what lies in memory has none: images
 * there have nothing opened.
 *
 * @param source What the user asked for.
 * @param file Where the image that names the file lies: that, or one below it.
 */
export function passesByDefault(
  source: unknown,
  file: unknown,
  request: ImplicitOpen,
): boolean {
  const folder = folderOf(source);
  const named = { driver: "file", filename: pathOf(request.filename) };
  return folder !== undefined && folderOf(file) !== undefined &&
    folderOf(named) !== undefined && isImageBelow(folder, request);
}

function isImageBelow(
  folder: string,
  { filename, format }: ImplicitOpen,
): boolean {
  const scheme = schemeOf(filename);
  if (scheme !== undefined && scheme !== "file") return false;
  // By a driver of another kind, the name could lead to something else.
  const driver = format === undefined ? undefined : findDriver(format);
  if (driver && driver.role !== "format" && !driver.canonicalName) return false;
  const above = canonicalPath(folder);
  const file = canonicalName(filename);
  return file.startsWith(above.endsWith("/") ? above : above + "/");
}

/** The folder of the image that a source leads to, if it has one. */
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
  if (driver?.role === "protocol" && typeof options.filename === "string") {
    return driver.ownFolder?.(options.filename);
  }
  const { file, image } = driver ? withFile(driver, options) : options;
  return folderOf(file ?? image);
}

/** The same string for two spellings of one file's name. */
export function canonicalName(
  filename: string,
  driver?: BlockDriver,
): string {
  const scheme = schemeOf(filename);
  if (scheme !== undefined && scheme !== "file") return filename;
  return canonicalPath(pathOf(filename), driver);
}

function canonicalPath(path: string, driver?: BlockDriver): string {
  const file = driver?.canonicalName ? driver : getDriver("file");
  return file.canonicalName?.(path) ?? normalizePath(path);
}

function pathOf(filename: string): string {
  return schemeOf(filename) === "file" ? filename.slice(5) : filename;
}
