/**
 * Driver options: typed tables that parse and validate, and the two spellings
 * in which users give them (`a=b,c.d=e` and nested objects).
 *
 * @module
 */
import { BlockError, invalid } from "./errors.ts";
import { isPlainObject, shortened, valueText } from "./values.ts";

/**
 * Options by name; children of a stack are nested objects or nodes.
 *
 * @category Drivers
 */
export type OptionValues = { [name: string]: unknown };

/**
 * An option of a driver.
 *
 * @category Drivers
 */
export interface OptionSpec {
  /**
   * How its value is written. Sizes are bytes and accept suffixes. Numbers have
   * 64 bits, in which negative ones wrap around; integers have a sign.
   */
  readonly type:
    | "string"
    | "size"
    | "number"
    | "integer"
    | "boolean"
    | "enum";
  /** Its purpose, one line. */
  readonly help: string;
  /** The accepted values of an `enum`. */
  readonly values?: readonly string[];
  /** Older words that are accepted as well; help and messages leave them out. */
  readonly oldValues?: readonly string[];
  /**
   * Known but unsupported: the whole option, or some values. The driver refuses
   * it with its own message, and the help leaves it out.
   */
  readonly unsupported?: true | readonly string[];
  /** Least and greatest value of a `number`; by default, QEMU's: any of 64 bits. */
  readonly range?: readonly [least: number, greatest: number];
  /** The default value. */
  readonly default?: string | number | boolean;
}

/**
 * A driver's options by name, in the order of the help.
 *
 * @category Drivers
 */
export type OptionTable = { readonly [name: string]: OptionSpec };

/** What messages about sizes add. */
export const SIZE_HINT =
  "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n" +
  "and exabytes, respectively.";

const SUFFIXES = "BKMGTPE";

/**
 * Parse a size in bytes: decimal or `0x` hexadecimal, with an optional suffix
 * K, M, G, T, P or E (powers of 1024, any case) that permits a fraction.
 *
 * @returns the size, or `undefined` if `text` is not a size; a size of 2^53
 * or more loses precision, which the caller's range check refuses.
 *
 * @example
 * ```ts
 * import { parseSize } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 * assertEquals(parseSize("1.5k"), 1536);
 * assertEquals(parseSize("64 apples"), undefined);
 * ```
 *
 * @category Stacks
 */
export function parseSize(text: string): number | undefined {
  if (typeof text !== "string") return undefined;
  const match = /^\s*\+?(?:0[xX]([0-9a-fA-F]+)|(\d+)(\.\d*)?)([bkmgtpe]?)$/i
    .exec(text);
  if (!match) return undefined;
  const [, hex, whole, fraction, suffix] = match;
  if (hex !== undefined) {
    const scale = suffix ? 1024 ** SUFFIXES.indexOf(suffix.toUpperCase()) : 1;
    return parseInt(hex, 16) * scale;
  }
  const exponent = suffix ? SUFFIXES.indexOf(suffix.toUpperCase()) : 0;
  // A fraction of a byte has no meaning.
  if (fraction && Number(fraction + "0") !== 0 && exponent === 0) {
    return undefined;
  }
  const scale = 1024 ** exponent;
  if (scale === 1) return roundedDown(whole);
  return Number(whole) * scale +
    Math.round(Number("0" + (fraction ?? "") + "0") * scale);
}

/** An integer; rounded down, so that limits such as 2^63 are not exceeded. */
function roundedDown(digits: string): number {
  const number = Number(digits);
  const isExceeded = number > Number.MAX_SAFE_INTEGER &&
    Number.isFinite(number) && BigInt(number) > BigInt(digits);
  if (!isExceeded) return number;
  // The next smaller number, whose 53 bits are one less.
  const unit = 2n ** BigInt(BigInt(digits).toString(2).length - 53);
  return Number(BigInt(digits) / unit * unit);
}

const YES: readonly unknown[] = [true, "on", "yes", "true", "y"];
const NO: readonly unknown[] = [false, "off", "no", "false", "n"];

/**
 * Parse a flag, as QEMU spells them.
 *
 * @returns `undefined` if it is none.
 */
export function parseBoolean(value: unknown): boolean | undefined {
  if (YES.includes(value)) return true;
  return NO.includes(value) ? false : undefined;
}

function raise(error: BlockError): never {
  throw error;
}

/** Check a value against its specification and convert it to its type. */
export function parseOption(
  name: string,
  spec: OptionSpec,
  value: unknown,
): string | number | boolean {
  const refuse = (expected: string, hint?: string) => {
    const detail = `, not ${valueText(value)}`;
    return new BlockError(
      "EINVAL",
      `Parameter '${shortened(name, 80)}' expects ${expected}${detail}`,
      { hint, detail },
    );
  };
  if (!isScalar(value)) throw refuse(EXPECTED[spec.type]);
  switch (spec.type) {
    case "boolean":
      return parseBoolean(value) ?? raise(refuse(EXPECTED.boolean));
    case "size": {
      const size = typeof value === "number" ? value : parseSize(String(value));
      const isSize = size !== undefined && size >= 0 && size < 2 ** 64 &&
        Number.isInteger(size);
      if (isSize) return size;
      if (typeof value === "string" && isOutOfRange(value, size)) {
        throw invalid(
          `Value '${shortened(value, 80)}' is out of range for parameter ` +
            `'${shortened(name, 80)}'`,
        );
      }
      throw refuse(EXPECTED.size, SIZE_HINT);
    }
    case "number": {
      if (spec.range) {
        const [least, greatest] = spec.range;
        const number = Number(
          typeof value === "number" ? value : parseInteger(String(value)),
        );
        if (
          Number.isInteger(number) && number >= least && number <= greatest
        ) return number;
        throw refuse(`a number from ${least} to ${greatest}`);
      }
      if (typeof value === "number") {
        if (Number.isInteger(value) && value >= 0) return value;
        throw refuse(EXPECTED.number);
      }
      const number = parseInteger(String(value));
      if (number === undefined) throw refuse(EXPECTED.number);
      if (number >= 2n ** 64n || number <= -(2n ** 64n)) {
        throw invalid(
          `Value '${shortened(String(value), 80)}' is too large for ` +
            `parameter '${shortened(name, 80)}'`,
        );
      }
      // Negative numbers wrap around, as in C's strtoull.
      return Number(BigInt.asUintN(64, number));
    }
    case "integer": {
      if (typeof value === "number" && Number.isInteger(value)) {
        // The largest one has been rounded up.
        if (Math.abs(value) <= 2 ** 63) return value;
      }
      const number = parseInteger(String(value));
      if (number === undefined || BigInt.asIntN(64, number) !== number) {
        throw refuse(EXPECTED.integer);
      }
      return Number(number);
    }
    case "enum": {
      const word = String(value);
      if (!spec.values!.includes(word) && !spec.oldValues?.includes(word)) {
        throw notAmong(
          `Parameter '${
            lastName(name).replaceAll("_", "-")
          }' does not accept ` +
            `value '${shortened(word, 80)}'`,
          supportedValues(spec),
        );
      }
      return word;
    }
    case "string":
      return String(value);
  }
}

/** Whether text is a size, or a negative number of bytes, out of range. */
function isOutOfRange(text: string, size: number | undefined): boolean {
  return (size !== undefined && size >= 2 ** 64) || /^\s*-\d+$/.test(text);
}

/**
 * Parse an integer, with an optional sign: decimal, `0x` hexadecimal, or octal
 * after a zero, as in C.
 *
 * @returns `undefined` if it is none.
 */
export function parseInteger(text: string): bigint | undefined {
  const [, sign, digits] =
    /^\s*([-+]?)(0x[0-9a-f]+|0[0-7]*|[1-9]\d*)$/i.exec(text) ?? [];
  if (digits === undefined) return undefined;
  const number = BigInt(digits.replace(/^0(?=\d)/, "0o"));
  return sign === "-" ? -number : number;
}

/** The values that each type accepts, for messages. */
const EXPECTED: { readonly [type in OptionSpec["type"]]: string } = {
  boolean: "'on' or 'off'",
  size: "a non-negative number below 2^64",
  number: "a number",
  integer: "integer",
  enum: "a word",
  string: "a string",
};

function isScalar(value: unknown): boolean {
  return ["string", "number", "bigint", "boolean"].includes(typeof value);
}

/** The error for an unknown word: QEMU's message, and the known words. */
export function notAmong(
  message: string,
  words: readonly string[],
): BlockError {
  const detail = words.length === 1
    ? `; it must be ${words[0]}`
    : `; it must be one of ${shortened(words.join(", "))}`;
  return new BlockError("EINVAL", message + detail, { detail, words });
}

/** The supported values of an enumeration. */
function supportedValues({ values = [], unsupported }: OptionSpec) {
  return Array.isArray(unsupported)
    ? values.filter((value) => !unsupported.includes(value))
    : values;
}

/** The part of a name after its last dot. */
function lastName(name: string): string {
  return name.slice(name.lastIndexOf(".") + 1);
}

/** There is no option of that name. */
export class UnknownOptionError extends BlockError {
  /** The option's name. */
  readonly option: string;

  /** Create an error about `option`; `words` are the known options. */
  constructor(option: string, words?: readonly string[]) {
    super("EINVAL", `Invalid parameter '${shortened(option, 80)}'`, { words });
    this.option = option;
  }
}

/**
 * Convert each option to its type. Options that the table lacks are refused,
 * except those whose name (up to the first dot) is in `others`.
 */
export function parseOptions(
  table: OptionTable,
  values: OptionValues,
  others: readonly string[] = [],
): OptionValues {
  if (typeof values !== "object" || values === null) {
    throw invalid(`Options must be an object, not ${valueText(values)}`);
  }
  const parsed: OptionValues = {};
  for (const [name, value] of Object.entries(values)) {
    const spec = Object.hasOwn(table, name) ? table[name] : undefined;
    if (spec) {
      if (value !== undefined) parsed[name] = parseOption(name, spec, value);
    } else if (others.includes(name)) {
      parsed[name] = value;
    } else {
      throw new UnknownOptionError(leafOf(name, value), [
        ...optionNames(table),
        ...others,
      ]);
    }
  }
  return parsed;
}

/** The supported options of a table. */
export function optionNames(table: OptionTable): string[] {
  return Object.keys(table).filter((name) => table[name].unsupported !== true);
}

/** The dotted name of the first value within an option. */
function leafOf(name: string, value: unknown, depth = 0): string {
  const isNested = isPlainObject(value) || Array.isArray(value);
  // Cut very long names short: a cyclic object would have no end.
  if (!isNested || depth > 20) return name;
  const [first] = Object.entries(value);
  return first ? leafOf(`${name}.${first[0]}`, first[1], depth + 1) : name;
}

/**
 * The options of a new image: those of its format, and those of the protocol
 * that creates its file.
 */
export function newImageOptions(
  format: { readonly createOptions?: OptionTable },
  protocol: { readonly createOptions?: OptionTable } | undefined,
): OptionTable {
  const { createOptions } = format;
  return { ...createOptions, ...protocol?.createOptions, ...createOptions };
}

/** The defaults of a table. */
export function defaultOptions(table: OptionTable): OptionValues {
  const values: OptionValues = {};
  for (const [name, spec] of Object.entries(table)) {
    if (spec.default !== undefined) values[name] = spec.default;
  }
  return values;
}

/**
 * Split `a=b,c=d` into pairs. A doubled comma stands for one within a value. A
 * name without `=` is the flag `on`, `noname` is `off`; `warn` reports both,
 * since they should be written out. The first element, if it has no `=`, is the
 * value of `firstKey` where one is given.
 *
 * @example
 * ```ts
 * import { parseKeyValueList } from "@bdrv/bdrv";
 * import { assertEquals } from "@std/assert";
 * assertEquals(
 *   parseKeyValueList("driver=raw,file.filename=a,,b"),
 *   [["driver", "raw"], ["file.filename", "a,b"]],
 * );
 * ```
 *
 * @category Stacks
 */
export function parseKeyValueList(
  text: string,
  firstKey?: string,
  warn?: (message: string) => void,
): [name: string, value: string][] {
  if (typeof text !== "string") {
    throw invalid(`Options are parsed from text, not from ${valueText(text)}`);
  }
  const pairs: [string, string][] = [];
  for (const element of splitList(text)) {
    const equals = element.indexOf("=");
    if (equals >= 0) {
      pairs.push([element.slice(0, equals), element.slice(equals + 1)]);
    } else if (firstKey !== undefined && pairs.length === 0) {
      pairs.push([firstKey, element]);
    } else {
      const pair: [string, string] = element.startsWith("no")
        ? [element.slice(2), "off"]
        : [element, "on"];
      warn?.(
        `short-form boolean option '${element}' deprecated\n` +
          `Please use ${pair.join("=")} instead`,
      );
      pairs.push(pair);
    }
  }
  return pairs;
}

/** Split at commas; a doubled comma stands for a comma within an element. */
function splitList(text: string): string[] {
  const elements: string[] = [];
  let element = "";
  for (let i = 0; i < text.length; i++) {
    if (text[i] !== ",") {
      element += text[i];
    } else if (text[i + 1] === ",") {
      element += ",";
      i++;
    } else {
      elements.push(element);
      element = "";
    }
  }
  if (element !== "" || elements.length === 0) elements.push(element);
  return elements.filter((element) => element !== "");
}

/**
 * Nest dotted names: `{"file.driver": "raw"}` becomes
 * `{file: {driver: "raw"}}`. Objects among the values are kept as they are.
 *
 * @throws {BlockError} EINVAL if a name is both a value and an object.
 */
export function nestOptions(flat: OptionValues): OptionValues {
  const nested: OptionValues = {};
  for (const [name, value] of Object.entries(flat)) {
    let at = nested;
    const path = name.split(".");
    for (const step of path.slice(0, -1)) {
      if (!Object.hasOwn(at, step)) at[step] = {};
      const next = at[step];
      if (typeof next !== "object" || next === null) throw mixed(step);
      at = next as OptionValues;
    }
    const last = path[path.length - 1];
    if (Object.hasOwn(at, last)) throw mixed(last);
    at[last] = value;
  }
  return nested;
}

function mixed(name: string): BlockError {
  return new BlockError(
    "EINVAL",
    `Cannot mix scalar and non-scalar keys at '${name}'`,
  );
}
