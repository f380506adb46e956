/**
 * Descriptions of stacks in all their spellings.
 *
 * @module
 */
import { asBlockError, BlockError, invalid } from "./errors.ts";
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
  if (name.startsWith("json:")) return parseDescription(name.slice(5));
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

/** White space between tokens. */
const SPACE = /[ \t\r\n]*/y;
/** A token: punctuation, a number, a word, or a string in either quotes. */
const TOKEN =
  // deno-lint-ignore no-control-regex
  /[{}[\],:]|-?(?:0(?!\d)|[1-9]\d*)(?:\.\d+|(?!\.))(?:[eE][-+]?\d+|(?![eE]))|[a-z]+|"(?:[^"\\\0-\x1f]|\\.)*"|'(?:[^'\\\0-\x1f]|\\.)*'/y;
/** What is shown of characters that begin no token. */
const STRAY =
  // deno-lint-ignore no-control-regex
  /"(?:[^"\\\0-\x1f]|\\.)*[^]?|'(?:[^'\\\0-\x1f]|\\.)*[^]?|-?(?:0\d|\d+(?:\.\d*)?(?:[eE][-+]?)?[^]?)|-[^]?|[^]/y;

/** What the letters after a backslash stand for; other characters themselves. */
const ESCAPES: Readonly<Record<string, string>> = {
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};

/**
 * JSON as QEMU reads it: strings may be in single quotes, and no name may occur
 * twice in an object. Integers that a number cannot hold stay text.
 */
class JsonReader {
  /** The current token; empty at the end. */
  #token: string = "";
  #start = 0;
  #end = 0;

  constructor(readonly text: string) {}

  /** The only value. */
  read(): unknown {
    this.#next();
    if (this.#token === "") throw invalid("Expecting a JSON value");
    const value = this.#value(1);
    if (this.text.slice(this.#end).trimStart() !== "") {
      throw invalid("Expecting at most one JSON value");
    }
    return value;
  }

  /** A value; its last token is the current one afterwards. */
  #value(depth: number): unknown {
    const token = this.#token;
    if (depth > MAX_NESTING) throw invalid("JSON nesting depth limit exceeded");
    switch (token[0]) {
      case "{":
        return this.#object(depth);
      case "[":
        return this.#list(depth);
      case '"':
      case "'":
        return this.#string();
    }
    if (/^-?\d/.test(token)) {
      const number = Number(token);
      const isExact = Number.isSafeInteger(number) || !/^-?\d+$/.test(token);
      return isExact ? number : token;
    }
    if (token === "true" || token === "false") return token === "true";
    if (token === "null") return null;
    throw this.#mistake(
      /^\w/.test(token) ? `invalid keyword '${token}'` : "expecting value",
    );
  }

  #object(depth: number): OptionValues {
    const found = new Map<string, unknown>();
    this.#next();
    for (let isOver = this.#token === "}"; !isOver;) {
      if (!/^["']/.test(this.#token)) throw this.#mistake("expecting key");
      const name = this.#string();
      this.#next();
      if (this.#token !== ":") throw this.#mistake("expecting ':'");
      this.#next();
      const value = this.#value(depth + 1);
      if (found.has(name)) throw this.#mistake("duplicate key");
      found.set(name, value);
      isOver = this.#isLast("}");
    }
    return Object.fromEntries(found);
  }

  #list(depth: number): unknown[] {
    const found: unknown[] = [];
    this.#next();
    for (let isOver = this.#token === "]"; !isOver;) {
      found.push(this.#value(depth + 1));
      isOver = this.#isLast("]");
    }
    return found;
  }

  /** Whether `end` comes next, rather than a comma and a further member. */
  #isLast(end: string): boolean {
    this.#next();
    if (this.#token === end) return true;
    if (this.#token !== ",") throw this.#mistake(`expected ',' or '${end}'`);
    this.#next();
    return false;
  }

  #string(): string {
    return this.#token.slice(1, -1).replace(
      /\\(?:u([\da-f]{4})(?:(?<=d[89ab]..)\\u(d[c-f][\da-f]{2}))?|(.))/gis,
      (found, unit?: string, second?: string, letter = "", at = 0) => {
        if (unit === undefined) {
          if (letter === "u") throw this.#notUnicode(at);
          if (ESCAPES[letter]) return ESCAPES[letter];
          if (/["'\\/]/.test(letter)) return letter;
          throw this.#mistake("invalid escape sequence in string");
        }
        const units = second === undefined ? [unit] : [unit, second];
        const text = String.fromCharCode(...units.map((u) => parseInt(u, 16)));
        const point = text.codePointAt(0)!;
        const isCharacter = text.isWellFormed() &&
          (point & 0xfffe) !== 0xfffe &&
          !(point >= 0xfdd0 && point <= 0xfdef);
        if (!isCharacter) throw this.#notUnicode(at);
        return found && text;
      },
    );
  }

  #notUnicode(at: number): BlockError {
    const sequence = this.#token.slice(at + 1, at + 7);
    return this.#mistake(`${sequence} is not a valid Unicode character`);
  }

  #next(): void {
    SPACE.lastIndex = this.#end;
    SPACE.test(this.text);
    TOKEN.lastIndex = STRAY.lastIndex = this.#start = SPACE.lastIndex;
    this.#token = TOKEN.exec(this.text)?.[0] ?? "";
    this.#end = this.#start + this.#token.length;
    if (this.#token !== "" || this.#start === this.text.length) return;
    throw this.#mistake(`stray '${shortened(STRAY.exec(this.text)![0])}'`);
  }

  /** An error at the current token. */
  #mistake(what: string): BlockError {
    const before = this.text.slice(0, this.#start);
    const line = before.slice(before.lastIndexOf("\n") + 1);
    const column = new TextEncoder().encode(line).length + 1 +
      // QEMU counts the character twice that ends a number or a word.
      Number(/[\da-z]$/.test(line));
    const problem = this.#token === "" && this.#start === this.text.length
      ? "premature end of input"
      : what;
    return invalid(
      `${before.split("\n").length}:${column}: JSON parse error, ${problem}`,
    );
  }
}

/**
 * The value that JSON text stands for, in QEMU's dialect.
 *
 * @throws {BlockError} EINVAL if it is malformed, with the line and the column.
 */
export function parseJson(text: string): unknown {
  return new JsonReader(text).read();
}

function parseDescription(text: string): StackObject {
  let value: unknown;
  try {
    value = parseJson(text);
  } catch (error) {
    throw asBlockError(error).prefixed("Could not parse the JSON options: ");
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

/** The warning about an empty name of a backing file. */
export const NO_BACKING =
  'Use of "backing": "" is deprecated; use "backing": null instead';

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
    if (isNone) warn?.(NO_BACKING);
  }
  return nestOptions(flat);
}
