/**
 * Turning a user's source into the description of a stack: names become
 * objects, formats go on top of protocols, file names into the child they
 * belong to. Nothing is opened here.
 *
 * @module
 */
import type { BlockDriver } from "./driver.ts";
import { BlockError, invalid } from "./errors.ts";
import { heldKind, heldName, heldStack } from "./held.ts";
import { normalizePath, pathOfUrl, schemeOf } from "./names.ts";
import type { OptionValues } from "./options.ts";
import { findDriver, findProtocol, getDriver, protocolOf } from "./registry.ts";
import {
  isNode,
  parseFilename,
  type Source,
  type StackObject,
} from "./spec.ts";
import { isPlainObject, nameText, shortened, valueText } from "./values.ts";

/** Deepest nesting of descriptions; one that is deeper is cyclic. */
export const MAX_DEPTH = 1000;

/** A source as the description of a protocol node. */
export function protocolStack(source: Source): StackObject {
  const stack = namedStack(source);
  if (stack.driver !== undefined) return stack;
  return { ...stack, driver: protocolOf(stack.filename).name };
}

/**
 * The name of a source in messages, whatever it is: at most a few lines long.
 */
export function describeSource(source: unknown): string {
  try {
    if (isNode(source)) return shortened(source.filename);
    if (typeof source === "string") return nameText(source);
    if (source instanceof URL) return nameText(filenameOf(namedStack(source)));
    if (!isPlainObject(source)) return heldName(source) ?? valueText(source);
    return nameText(filenameOf(toStack(source))) || `json:${jsonText(source)}`;
  } catch {
    // A foreign getter threw, the name cannot be decoded, or no driver has it.
    return source instanceof URL ? nameText(source.href) : valueText(source);
  }
}

/**
 * A description as JSON; values that JSON cannot express appear by their kind.
 */
function jsonText(description: object): string {
  const text = JSON.stringify(description, (_name, value) => {
    if (typeof value !== "object" || value === null) {
      return typeof value === "string" ? nameText(value) : value;
    }
    return Array.isArray(value) || isPlainObject(value)
      ? value
      : valueText(value);
  });
  return shortened(text, 255);
}

/** A source as a description; a name may yield just a protocol. */
function namedStack(source: Source): StackObject {
  if (typeof source === "string") return parseFilename(source);
  if (!(source instanceof URL)) return checkedStack(source);
  if (source.protocol !== "file:") return parseFilename(source.href);
  const filename = pathOf(source);
  return { driver: protocolOf(filename).name, filename };
}

/** Check that a source is the description of a stack. */
export function checkedStack(source: unknown): StackObject {
  const isOpen = isNode(source);
  if (!isOpen && isPlainObject(source)) return source;
  const held = heldStack(source);
  if (held && findDriver(held.driver)) return held;
  if (held) {
    throw invalid(
      `Cannot open ${
        valueText(source)
      }: the driver '${held.driver}' is missing`,
      `Import "@bdrv/bdrv/${held.driver}" first.`,
    );
  }
  throw invalid(
    `Cannot open ${isOpen ? "what is open already" : valueText(source)}: a ` +
      "file name or the description of a stack is needed",
  );
}

/** Whether a value can be a source at all. */
export function isSource(value: unknown): boolean {
  try {
    return typeof value === "string" || value instanceof URL ||
      isPlainObject(value) || isNode(value) || heldKind(value) !== undefined;
  } catch {
    return false; // A revoked proxy.
  }
}

function pathOf(url: URL): string {
  try {
    return pathOfUrl(url);
  } catch {
    throw invalid(`'${shortened(url.href)}' is no file name in UTF-8`);
  }
}

/** A source as the description of an image. */
export function toStack(source: Source): StackObject {
  const stack = namedStack(source);
  // A name selects a protocol, whose content is still to be probed; a
  // description that asks for a protocol gets just that.
  return isName(source) && isProtocol(stack) ? { file: stack } : stack;
}

function isName(source: Source): boolean {
  return typeof source === "string"
    ? !source.startsWith("json:")
    : source instanceof URL || heldKind(source) !== undefined;
}

function isProtocol({ driver }: StackObject): boolean {
  return driver !== undefined && standsForProtocol(getDriver(driver));
}

/**
 * Put `format` on top of the protocol that a name selects. A protocol for a
 * format means the protocol node itself.
 */
export function applyFormat(stack: StackObject, format: string): StackObject {
  if (stack.driver === undefined) {
    const { file, ...others } = stack;
    const isIt = isDescription(file) && file.driver === format &&
      standsForProtocol(getDriver(format));
    return isIt ? { ...others, ...file } : { ...stack, driver: format };
  }
  if (stack.driver === format) return stack;
  if (standsForProtocol(getDriver(stack.driver))) {
    return { driver: format, file: stack };
  }
  throw new BlockError("EINVAL", "Driver specified twice");
}

/** The name of the file at the bottom of the `file` or `image` children. */
export function filenameOf(stack: unknown): string {
  for (let depth = 0; depth <= MAX_DEPTH; depth++) {
    if (typeof stack === "string") return stack;
    if (typeof stack !== "object" || stack === null) return "";
    const { filename, url, file, image } = stack as StackObject;
    if (typeof filename === "string") return filename;
    if (typeof url === "string") return url;
    stack = file ?? image;
  }
  return "";
}

/** Whether the file behind a driver's file name is still to be probed. */
export function standsForProtocol(driver: BlockDriver): boolean {
  return driver.role === "protocol" || driver.schemes !== undefined;
}

/** Whether a child is described by an object, to which options can be added. */
export function isDescription(child: unknown): child is StackObject {
  return typeof child === "object" && child !== null && !isNode(child);
}

/** Move a `filename` to the child of a driver that takes none itself. */
export function withFile(
  driver: BlockDriver,
  options: OptionValues,
): OptionValues {
  const { filename, ...others } = options;
  if (typeof filename !== "string") return options;
  if (!driver.parseFilename) {
    if (options.file === undefined) return { ...others, file: filename };
    if (!isDescription(options.file)) return options;
    return { ...others, file: { filename, ...options.file } };
  }
  const parsed = driver.parseFilename(filename);
  for (const [name, value] of Object.entries(others)) {
    const both = isDescription(value) && isDescription(parsed[name]);
    parsed[name] = both ? { ...parsed[name] as StackObject, ...value } : value;
  }
  return parsed;
}

/** Whether a description needs no file, such as `{driver: "memory"}`. */
export function isSelfContained(described: unknown): boolean {
  const driver = (described as StackObject | undefined)?.driver;
  return driver !== undefined && getDriver(driver).role === "protocol";
}

/** Whether an option describes a child, or says that there is none. */
export function describesChild(child: unknown): boolean {
  return child === null || isNode(child) || heldKind(child) !== undefined ||
    filenameOf(child) !== "" ||
    (child as StackObject | undefined)?.file !== undefined ||
    isSelfContained(child) ||
    // Invalid values are not skipped, so that opening reports them.
    (child !== undefined && !isPlainObject(child));
}

/** A canonical name: equal for all spellings of one file's name. */
export function canonicalName(
  filename: string,
  driver?: BlockDriver,
): string {
  const scheme = schemeOf(filename) ?? "file";
  if (scheme === "file") return canonicalPath(withoutScheme(filename), driver);
  const protocol = findProtocol(scheme);
  return protocol?.ownFolder && protocol.canonicalName
    ? protocol.canonicalName(filename)
    : filename;
}

function canonicalPath(path: string, driver?: BlockDriver): string {
  const file = driver?.canonicalName ? driver : getDriver("file");
  return file.canonicalName?.(path) ?? normalizePath(path);
}

/** A path without the scheme `file:`. */
export function withoutScheme(filename: string): string {
  return schemeOf(filename) === "file" ? filename.slice(5) : filename;
}
