/**
 * File names: the protocol they select, and how relative ones are resolved.
 *
 * @module
 */
import { platform } from "./platform/mod.ts";
import type { DriverTraits } from "./traits.ts";

/** The root folder of a Windows drive. */
const DRIVE_ROOT = /^[A-Za-z]:[\\/]/;

/**
 * Whether `\` separates folders as `/` does: on Windows, and in a path that
 * begins as only Windows paths do. Elsewhere, names may contain it.
 */
function hasBackslashes(path: string): boolean {
  return DRIVE_ROOT.test(path) || platform().isWindows;
}

/** Index of the last separator of a path; -1 if there is none. */
export function lastSeparator(path: string): number {
  const slash = path.lastIndexOf("/");
  return hasBackslashes(path) ? Math.max(slash, path.lastIndexOf("\\")) : slash;
}

/** Whether a path begins at the root. */
export function isAbsolutePath(path: string): boolean {
  return path.startsWith("/") || DRIVE_ROOT.test(path) ||
    (path.startsWith("\\") && platform().isWindows);
}

/**
 * The scheme of `scheme:rest`. A colon after a slash belongs to a path, and a
 * single letter before a colon is a Windows drive.
 */
export function schemeOf(name: string): string | undefined {
  const scheme = /^([^/:]*):/.exec(name)?.[1];
  if (scheme === undefined || DRIVE_ROOT.test(name)) return undefined;
  // On Windows `c:x` is a path too, relative to that drive's current folder.
  const isPath = platform().isWindows &&
    (scheme.includes("\\") || /^[A-Za-z]$/.test(scheme));
  return isPath ? undefined : scheme;
}

/**
 * A path that cannot be mistaken for a `scheme:` name: `file:` is put before it
 * if it looks like one.
 */
export function asPath(path: string): string {
  return schemeOf(path) === undefined ? path : `./${path}`;
}

/** Whether a name does not depend on the current folder. */
export function isAbsolute(name: string): boolean {
  return schemeOf(name) !== undefined || isAbsolutePath(name);
}

function upToSlash(url: string): string {
  return url.slice(0, url.lastIndexOf("/") + 1);
}

/**
 * Resolve the name `relative`, stored in `base`; a scheme of `base` is kept.
 */
export function resolveName(base: string, relative: string): string {
  if (isAbsolute(relative)) return relative;
  const [url, server] = /^(https?:\/\/[^/?#]*)[^?#]*/i.exec(base) ?? [];
  // A query is part of the name of one object only.
  if (url) return (url === server ? `${url}/` : upToSlash(url)) + relative;
  const path = schemeOf(base) === undefined ? 0 : base.indexOf(":") + 1;
  return base.slice(0, Math.max(path, lastSeparator(base) + 1)) + relative;
}

/**
 * A path with `.` and `..` resolved and `/` as separator, so that different
 * spellings compare equal.
 */
export function normalizePath(path: string, workingFolder = ""): string {
  let whole = isAbsolutePath(path) ? path : `${workingFolder}/${path}`;
  if (hasBackslashes(whole)) whole = whole.replaceAll("\\", "/");
  const [drive = ""] = DRIVE_ROOT.exec(whole) ?? [];
  // Two slashes begin the name of another computer.
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
 * The path of a `file:` URL. On Windows, its first folder is the drive, and its
 * host another computer.
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

/**
 * The server and the path of a URL. Escaped slashes count as such, since the
 * server may take them so.
 */
export function canonicalUrl(name: string): string {
  try {
    const { origin, pathname } = new URL(name);
    return new URL(origin + pathname.replace(/%2f|%5c/gi, "/")).href;
  } catch {
    return name;
  }
}

/** The folder of a URL, with a slash at its end. */
export function folderOf(url: string): string {
  return url.replace(/[^/]*$/, "");
}

/** The traits of a driver for objects on web servers. */
export function webTraits(scheme: "http" | "https"): DriverTraits {
  return {
    name: scheme,
    role: "protocol",
    schemes: [scheme],
    isReadOnly: true,
    parseFilename: (url) => ({ url }),
    canonicalName: canonicalUrl,
    ownFolder: (url) => folderOf(canonicalUrl(url)),
  };
}
