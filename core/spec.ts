/**
 * Descriptions of stacks in all their spellings.
 *
 * @module
 */
import { BlockError, invalid } from "./errors.ts";
import type { HeldSource } from "./held.ts";
import { asPath, schemeOf } from "./names.ts";
import type { BlockNode } from "./node.ts";
import {
  nestOptions,
  type OptionValues,
  parseKeyValueList,
} from "./options.ts";
import { findDriver, findProtocol } from "./registry.ts";
import { shortened, valueText } from "./values.ts";

/**
 * A stack: a driver, its options, and its children, each again such an object,
 * an open node, or a file name; in the field names of QEMU's `blockdev`.
 * Without `driver` the format is probed, and a `filename` is a path even if it
 * contains colons.
 *
 * @category Stacks
 */
export interface StackObject {
  /** Name of a registered driver. */
  driver?: string;
  /** The driver's options, and its children. */
  [option: string]: unknown;
}

/**
 * Whatever can be opened: a file name, `json:{"driver": "raw"}`, `scheme:rest`,
 * a description of a stack, or bytes and open files.
 *
 * @category Stacks
 */
export type Source = string | URL | StackObject | HeldSource;

/**
 * Whether a value is an open node, or is meant to be one and lacks a method. (An
 * open file of Node.js has `readv`, too.)
 */
export function isNode(value: unknown): value is BlockNode {
  if (typeof value !== "object" || value === null) return false;
  const { readv, status, driver } = value as Partial<BlockNode>;
  const count = Number(typeof readv === "function") +
    Number(typeof status === "function");
  return count === 2 || count === 1 && typeof driver === "object";
}

/**
 * The stack that a file name stands for. A plain name becomes `{filename:
 * name}`, whose protocol and format are found later.
 *
 * @throws {BlockError} EINVAL on malformed `json:` and unknown protocols.
 */
export function parseFilename(name: string): StackObject {
  if (name.startsWith("json:")) return parseJson(name.slice(5));
  const scheme = schemeOf(name);
  if (scheme === undefined) return { filename: name };
  const driver = findProtocol(scheme) ?? findDriver(scheme);
  if (!driver) {
    throw invalid(`Unknown protocol ${valueText(scheme)}`);
  }
  const rest = name.slice(scheme.length + 1);
  if (driver.parseFilename) {
    return { driver: driver.name, ...driver.parseFilename(name) };
  }
  if (driver.role === "protocol") {
    // In a protocol whose names are paths, a second scheme is part of the path.
    const filename = driver.canonicalName ? asPath(rest) : rest;
    return { driver: driver.name, filename };
  }
  return { driver: driver.name, file: rest };
}

/** A JSON string, or one in single quotes, which QEMU accepts as well. */
const STRING = /"(?:[^"\\]|\\.)*"|'((?:[^'\\]|\\.)*)'/gs;

function inDoubleQuotes(found: string, content?: string): string {
  if (content === undefined) return found;
  const escaped = content.replace(/\\.|"/gs, (part) => {
    if (part === '"') return '\\"';
    return part === "\\'" ? "'" : part;
  });
  return `"${escaped}"`;
}

function parseJson(text: string): StackObject {
  let value: unknown;
  try {
    value = JSON.parse(text.replace(STRING, inDoubleQuotes));
  } catch (error) {
    throw new BlockError(
      "EINVAL",
      `Could not parse the JSON options: ${
        shortened((error as Error).message)
      }`,
      { cause: error },
    );
  }
  if (!isObject(value)) {
    throw new BlockError("EINVAL", "Invalid JSON object given");
  }
  return nestDeeply(value);
}

/** Deepest nesting of objects, as in QEMU. */
const MAX_NESTING = 1024;

/** As `nestOptions`, at every level. */
function nestDeeply(options: OptionValues, depth = 1): OptionValues {
  if (depth > MAX_NESTING) {
    throw invalid("Could not parse the JSON options: they are nested too deep");
  }
  const nested = Object.entries(options).map(([name, value]) =>
    [name, isObject(value) ? nestDeeply(value, depth + 1) : value] as const
  );
  return nestOptions(Object.fromEntries(nested));
}

function isObject(value: unknown): value is OptionValues {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * The stack that `driver=qcow2,file.filename=a.qcow2` stands for; this is what
 * `--image-opts` takes. `warn` receives warnings about deprecated spellings.
 *
 * @example
 * ```ts
 * import { parseStack } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 * assertEquals(parseStack("driver=raw,offset=512,file.filename=disk.img"), {
 *   driver: "raw",
 *   offset: "512",
 *   file: { filename: "disk.img" },
 * });
 * ```
 *
 * @category Stacks
 */
export function parseStack(
  text: string,
  warn?: (message: string) => void,
): StackObject {
  if (typeof text !== "string") {
    throw invalid(`A stack is parsed from text, not from ${valueText(text)}`);
  }
  const flat: OptionValues = {};
  for (const [name, value] of parseKeyValueList(text, "file", warn)) {
    const isNone = /^(.*\.)?backing$/.test(name) && value === "";
    flat[name] = isNone ? null : value;
    if (isNone) {
      warn?.('Use of "backing": "" is deprecated; use "backing": null instead');
    }
  }
  return nestOptions(flat);
}
