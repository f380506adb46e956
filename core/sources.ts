/**
 * From what a user names to the description of a stack: names become objects,
 * formats go on top of protocols, file names into the child they belong to.
 * Nothing is opened here.
 *
 * @module
 */
import type { BlockDriver } from "./driver.ts";
import { BlockError } from "./errors.ts";
import type { BlockNode } from "./node.ts";
import type { OptionValues } from "./options.ts";
import { getDriver, protocolOf } from "./registry.ts";
import {
  isNode,
  parseFilename,
  type Source,
  type StackObject,
} from "./spec.ts";

/** A source as the description of a protocol node. */
export function protocolStack(source: Source): StackObject {
  const stack = namedStack(source);
  if (stack.driver !== undefined) return stack;
  return { ...stack, driver: protocolOf(stack.filename).name };
}

/** The name that stands for a source in messages. */
export function describeSource(source: Source | BlockNode): string {
  if (isNode(source)) return source.filename;
  if (typeof source === "string") return source;
  return filenameOf(toStack(source)) || `json:${JSON.stringify(source)}`;
}

/** A source as a description; what a name selects may be just a protocol. */
function namedStack(source: Source): StackObject {
  if (typeof source === "string") return parseFilename(source);
  if (!(source instanceof URL)) return source;
  if (source.protocol !== "file:") return parseFilename(source.href);
  const filename = decodeURIComponent(source.pathname);
  return { driver: protocolOf(filename).name, filename };
}

/** A source as the description of an image. */
export function toStack(source: Source): StackObject {
  const stack = namedStack(source);
  // A name selects a protocol, whose content is yet to be looked at; who
  // describes a stack and asks for a protocol in it gets that.
  return isName(source) && isProtocol(stack) ? { file: stack } : stack;
}

function isName(source: Source): boolean {
  return typeof source === "string"
    ? !source.startsWith("json:")
    : source instanceof URL;
}

function isProtocol({ driver }: StackObject): boolean {
  return driver !== undefined && standsForProtocol(getDriver(driver));
}

/** Put `format` on top of what a name selects. */
export function applyFormat(stack: StackObject, format: string): StackObject {
  if (stack.driver === undefined) return { ...stack, driver: format };
  if (stack.driver === format) return stack;
  if (standsForProtocol(getDriver(stack.driver))) {
    return { driver: format, file: stack };
  }
  throw new BlockError("EINVAL", "Driver specified twice");
}

/** The name of the file at the bottom of the `file` or `image` children. */
export function filenameOf(stack: unknown): string {
  if (typeof stack === "string") return stack;
  if (typeof stack !== "object" || stack === null) return "";
  const { filename, file, image } = stack as StackObject;
  return typeof filename === "string" ? filename : filenameOf(file ?? image);
}

/** Whether what a driver's file name leads to is yet to be probed. */
export function standsForProtocol(driver: BlockDriver): boolean {
  return driver.role === "protocol" || driver.schemes !== undefined;
}

/** Whether a child is described by an object, to which more may be added. */
export function isDescription(child: unknown): child is StackObject {
  return typeof child === "object" && child !== null && !isNode(child);
}

/** A `filename` stands for the child of a driver that has none itself. */
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

/** Whether a description needs no file, as `{driver: "memory"}` does not. */
export function isSelfContained(described: unknown): boolean {
  const driver = (described as StackObject | undefined)?.driver;
  return driver !== undefined && getDriver(driver).role === "protocol";
}

/** Whether an option says what a child is, or that there is none. */
export function describesChild(child: unknown): boolean {
  return child === null || isNode(child) || filenameOf(child) !== "" ||
    (child as StackObject | undefined)?.file !== undefined ||
    isSelfContained(child);
}
