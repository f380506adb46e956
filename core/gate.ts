/**
 * The gate: which files an image may have opened by naming them.
 *
 * @module
 */
import type { BlockDriver } from "./driver.ts";
import { normalizePath, schemeOf } from "./names.ts";
import { getDriver } from "./registry.ts";

/** A file that an image asks to have opened. */
export interface ImplicitOpen {
  /** The file's name, as seen from where we are. */
  readonly filename: string;
  /** The format that the image says it has. */
  readonly format?: string;
  /** The image that names it. */
  readonly namedBy: string;
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
  const scheme = schemeOf(request.filename);
  if (scheme !== undefined && scheme !== "file") return false;
  const folder = canonicalName(gate.below);
  const file = canonicalName(request.filename);
  return file.startsWith(folder.endsWith("/") ? folder : folder + "/");
}

/** The same string for two spellings of one file's name. */
export function canonicalName(
  filename: string,
  driver?: BlockDriver,
): string {
  const scheme = schemeOf(filename);
  if (scheme !== undefined && scheme !== "file") return filename;
  const path = scheme === "file" ? filename.slice(5) : filename;
  const file = driver?.canonicalName ? driver : getDriver("file");
  return file.canonicalName?.(path) ?? normalizePath(path);
}
