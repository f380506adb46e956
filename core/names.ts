/**
 * File names: what protocol they select, and what a relative one refers to.
 *
 * @module
 */

/**
 * The scheme of `scheme:rest`. A colon after a slash belongs to a path, and
 * one letter before it is a Windows drive.
 */
export function schemeOf(name: string): string | undefined {
  const match = /^([^/:]*):/.exec(name);
  if (!match || /^[A-Za-z]:[\\/]/.test(name)) return undefined;
  return match[1];
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
  return schemeOf(name) !== undefined || name.startsWith("/") ||
    /^[A-Za-z]:[\\/]/.test(name);
}

/**
 * The name `relative`, written down in `base`, as seen from where we are; of a
 * base with a scheme, that is kept.
 */
export function resolveName(base: string, relative: string): string {
  if (isAbsolute(relative)) return relative;
  const path = schemeOf(base) === undefined ? 0 : base.indexOf(":") + 1;
  return base.slice(0, Math.max(path, base.lastIndexOf("/") + 1)) + relative;
}

/** A path with `.` and `..` worked out, so that two spellings compare equal. */
export function normalizePath(path: string, workingFolder = ""): string {
  const whole = path.startsWith("/") ? path : `${workingFolder}/${path}`;
  const parts: string[] = [];
  for (const part of whole.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return "/" + parts.join("/");
}
