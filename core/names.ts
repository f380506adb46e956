/**
 * File names: what protocol they select, and what a relative one refers to.
 *
 * @module
 */
import { platform } from "./platform/mod.ts";

/** A drive of Windows, and the root of its folders. */
const DRIVE_ROOT = /^[A-Za-z]:[\\/]/;

/**
 * Whether `\` separates the folders of a path as `/` does: on Windows, and
 * where it begins as only paths of Windows do. Elsewhere names may contain it.
 */
function hasBackslashes(path: string): boolean {
  return DRIVE_ROOT.test(path) || platform().isWindows;
}

/** Where the last separator of a path is; -1 if there is none. */
export function lastSeparator(path: string): number {
  const slash = path.lastIndexOf("/");
  return hasBackslashes(path) ? Math.max(slash, path.lastIndexOf("\\")) : slash;
}

/** Whether a path begins at a root. */
export function isAbsolutePath(path: string): boolean {
  return path.startsWith("/") || DRIVE_ROOT.test(path) ||
    (path.startsWith("\\") && platform().isWindows);
}

/**
 * The scheme of `scheme:rest`. A colon after a slash belongs to a path, and
 * one letter before it is a drive of Windows.
 */
export function schemeOf(name: string): string | undefined {
  const scheme = /^([^/:]*):/.exec(name)?.[1];
  if (scheme === undefined || DRIVE_ROOT.test(name)) return undefined;
  // There, `c:x` is a path, too: one that begins in that drive's own folder.
  const isPath = platform().isWindows &&
    (scheme.includes("\\") || /^[A-Za-z]$/.test(scheme));
  return isPath ? undefined : scheme;
}

/**
 * A path that is taken for one, whatever is in it: `file:` may stand before a
 * name that would seem to have a scheme without that.
 */
export function asPath(path: string): string {
  return schemeOf(path) === undefined ? path : `./${path}`;
}

/** Whether a name needs no folder to be found. */
export function isAbsolute(name: string): boolean {
  return schemeOf(name) !== undefined || isAbsolutePath(name);
}

/**
 * The name `relative`, written down in `base`, as seen from where we are; of a
 * base with a scheme, that is kept.
 */
export function resolveName(base: string, relative: string): string {
  if (isAbsolute(relative)) return relative;
  const path = schemeOf(base) === undefined ? 0 : base.indexOf(":") + 1;
  return base.slice(0, Math.max(path, lastSeparator(base) + 1)) + relative;
}

/**
 * A path with `.` and `..` worked out and `/` for its separators, so that two
 * spellings compare equal.
 */
export function normalizePath(path: string, workingFolder = ""): string {
  let whole = isAbsolutePath(path) ? path : `${workingFolder}/${path}`;
  if (hasBackslashes(whole)) whole = whole.replaceAll("\\", "/");
  const [drive = ""] = DRIVE_ROOT.exec(whole) ?? [];
  // Two of them begin the name of another computer.
  const root = drive.toUpperCase() ||
    (platform().isWindows && whole.startsWith("//") ? "//" : "/");
  const parts: string[] = [];
  for (const part of whole.slice(drive.length).split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return root + parts.join("/");
}

/**
 * The path that a `file:` URL stands for. On Windows a drive is its first
 * folder, and another computer its host.
 *
 * @throws {URIError} if it is not UTF-8.
 */
export function pathOfUrl({ host, pathname }: URL): string {
  const path = decodeURIComponent(pathname);
  if (!platform().isWindows) return path;
  return host === ""
    ? path.replace(/^\/(?=[A-Za-z]:)/, "")
    : `//${host}${path}`;
}
