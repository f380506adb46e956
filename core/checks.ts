/**
 * Validating what callers and drivers pass in: nodes, and options of functions.
 * This happens once per open or job, not per request.
 *
 * @module
 */
import { isExactSize } from "./bytes.ts";
import type { BlockDriver } from "./driver.ts";
import {
  AbsentVerbError,
  asBlockError,
  BlockError,
  invalid,
  OPTIONAL_VERBS,
  UnexpectedError,
} from "./errors.ts";
import { nodesOf, primaryChild } from "./extents.ts";
import { wrapNode } from "./filter.ts";
import type { BlockNode, Disk, RequestLimits } from "./node.ts";
import { type OptionValues, parseOption } from "./options.ts";
import { hasSecrets } from "./redaction.ts";
import { isPlainObject, valueText } from "./values.ts";

const VERBS = ["readv", "status", "close"] as const;

/** Groups of verbs: the required ones and the optional ones. */
const GROUPS: readonly [
  group: keyof BlockNode,
  verbs: readonly string[],
  optional: readonly string[],
][] = [
  [
    "snapshots",
    ["list", "create", "apply", "delete", "loadTemporary"],
    [],
  ],
  ["image", [], ["check", "amend", "changeBacking", "makeEmpty", "layout"]],
  ["vmState", ["save", "load"], []],
  ["debug", ["event"], []],
];

/** Limits that are multiples of `requestAlignment`; 0 means no limit. */
const MULTIPLES = [
  "maxTransfer",
  "writeZeroesAlignment",
  "discardAlignment",
] as const satisfies readonly (keyof RequestLimits)[];

/** The largest requests, and the units they are best made in. */
const LARGEST = [
  ["maxWriteZeroes", "writeZeroesAlignment"],
  ["maxDiscard", "discardAlignment"],
] as const satisfies readonly (readonly (keyof RequestLimits)[])[];

const LIMITS = [
  "requestAlignment",
  ...MULTIPLES,
  "maxWriteZeroes",
  "maxDiscard",
] as const satisfies readonly (keyof RequestLimits)[];

/** Why a value cannot be used as a node; `undefined` if it can. */
function faultOf(value: unknown): string | undefined {
  if (typeof value !== "object" || value === null) {
    return `it is ${valueText(value)}`;
  }
  const node = value as { readonly [name in keyof BlockNode]: unknown };
  const verb = VERBS.find((verb) => typeof node[verb] !== "function");
  if (verb) return `it has no method '${verb}'`;
  const odd = OPTIONAL_VERBS.find((verb) =>
    node[verb] !== undefined && typeof node[verb] !== "function"
  );
  if (odd) return `its '${odd}' is ${valueText(node[odd])}`;
  const { driver, filename, size, readOnly = false, children } = node;
  if (typeof (driver as BlockDriver | undefined)?.name !== "string") {
    return "it has no 'driver'";
  }
  if (typeof filename !== "string") {
    return `its 'filename' is ${valueText(filename)}`;
  }
  if (typeof size !== "number" || !isExactSize(size) || size < 0) {
    return `its 'size' is ${valueText(size)}`;
  }
  if (typeof readOnly !== "boolean") {
    return `its 'readOnly' is ${valueText(readOnly)}`;
  }
  return faultOfGroups(node) ?? faultOfChildren(children) ??
    faultOfLimits(node.limits);
}

function faultOfGroups(
  node: { readonly [name in keyof BlockNode]: unknown },
): string | undefined {
  for (const [group, verbs, optional] of GROUPS) {
    const value = node[group];
    if (value === undefined) continue;
    if (typeof value !== "object" || value === null) {
      return `its '${group}' is ${valueText(value)}`;
    }
    const given = value as { readonly [verb: string]: unknown };
    const odd = verbs.find((verb) => typeof given[verb] !== "function") ??
      optional.find((verb) =>
        !["function", "undefined"].includes(typeof given[verb])
      );
    if (odd) return `its '${group}.${odd}' is ${valueText(given[odd])}`;
  }
  return undefined;
}

function faultOfChildren(children: unknown): string | undefined {
  if (typeof children !== "object" || children === null) {
    return `its 'children' are ${valueText(children)}`;
  }
  for (const [role, child] of Object.entries(children)) {
    if (child === undefined || typeof child?.readv === "function") continue;
    return `its child '${role}' is ${valueText(child)}`;
  }
  return undefined;
}

function faultOfLimits(limits: unknown): string | undefined {
  if (limits === undefined) return undefined;
  if (typeof limits !== "object" || limits === null) {
    return `its 'limits' are ${valueText(limits)}`;
  }
  const given = limits as { readonly [name in keyof RequestLimits]: unknown };
  const wrong = LIMITS.find((name) => {
    const value = given[name];
    return value !== undefined &&
      !(typeof value === "number" && isExactSize(value) && value >= 0);
  });
  if (wrong) return `its limit '${wrong}' is ${valueText(given[wrong])}`;
  return faultOfSizes(limits);
}

/** The largest alignment: a unit has to fit in memory. */
const MAX_ALIGNMENT = 2 ** 30;

/** Limits that contradict each other: no request could keep to all of them. */
function faultOfSizes(limits: RequestLimits): string | undefined {
  const { requestAlignment: unit = 1 } = limits;
  const isWrong = (name: keyof RequestLimits, why: string) =>
    `its limit '${name}' is ${limits[name]}, ${why}`;
  if (unit > MAX_ALIGNMENT || !Number.isInteger(Math.log2(unit))) {
    return isWrong(
      "requestAlignment",
      `not a power of two up to ${MAX_ALIGNMENT}`,
    );
  }
  for (const name of MULTIPLES) {
    const value = limits[name] || unit;
    // Preferring less than what is required is harmless.
    const isHarmless = name !== "maxTransfer" && value < unit;
    if (value % unit !== 0 && !isHarmless) {
      return isWrong(name, `not a multiple of ${unit}`);
    }
  }
  for (const [name, preferred] of LARGEST) {
    const least = Math.max(unit, limits[preferred] ?? 0);
    if ((limits[name] || least) < least) {
      return isWrong(name, `less than ${least}`);
    }
  }
  return undefined;
}

/** Nodes that need not be checked. */
const trusted = new WeakSet<BlockNode>();

/** Do not check a node: one of our own drivers', or one checked before. */
export function trustNode(node: BlockNode): void {
  trusted.add(node);
}

/** As {@linkcode faultOf}, for values whose getters may throw. */
function safeFaultOf(value: unknown): string | undefined {
  if (trusted.has(value as BlockNode)) return undefined;
  try {
    return faultOf(value);
  } catch (error) {
    return `accessing it fails: ${(error as Error)?.message}`;
  }
}

/**
 * Refuse anything but a node.
 *
 * @param what What messages call it, such as `The target`.
 * @throws {BlockError} EINVAL
 */
export function checkNode(
  what: string,
  value: unknown,
): asserts value is BlockNode {
  const fault = safeFaultOf(value);
  if (fault === undefined) return;
  throw invalid(
    unwrapped(value as Disk) === value
      ? `${what} must be an image or a node: ${fault}`
      : `${what} must be a node; of an image, pass the property 'node'`,
  );
}

/**
 * The node of a disk.
 *
 * @param what What messages call it, such as `The target`.
 * @throws {BlockError} EINVAL for anything but an image or a node.
 */
export function nodeOf(what: string, disk: Disk): BlockNode {
  const node = unwrapped(disk);
  checkNode(what, node);
  return node;
}

/** The node of a handle; anything else is returned as it is. */
function unwrapped(disk: Disk): unknown {
  try {
    return "driver" in disk ? disk : disk.node ?? disk;
  } catch {
    // Neither null nor a primitive has members, and a getter may throw.
    return disk;
  }
}

/**
 * The node of a disk that can be written to.
 *
 * @throws {BlockError} ENOTSUP if its driver cannot write, EACCES if it was
 * opened read-only.
 */
export function writableNodeOf(what: string, disk: Disk): BlockNode {
  const node = nodeOf("The disk to be written", disk);
  checkWritable(what, node);
  return node;
}

/** Refuse a node that cannot be written to, as {@linkcode writableNodeOf}. */
export function checkWritable(what: string, node: BlockNode): void {
  checkNode(what, node);
  if (node.readOnly || !node.writev) throw cannotWrite(what, node);
}

/**
 * Refuse to store a name in an image that contains secrets, which others could
 * read, or that no file can have.
 *
 * @throws {BlockError} EINVAL
 */
export function checkStoredName(name: unknown): void {
  if (typeof name !== "string") return;
  if (name.includes("\0")) {
    throw invalid(
      `The name of a file cannot have NUL in it: ${valueText(name)}`,
    );
  }
  const isSecret = hasSecrets(name) ||
    (name.startsWith("json:") && /["'](cookie|headers)\b/.test(name));
  if (!isSecret) return;
  throw invalid(
    `Cannot write '${name}' into an image: whoever reads the image would ` +
      "learn the password or the signature in it",
    "Give it when the image is opened, by options of the backing file: " +
      "username and password-secret, bearer-secret, cookie-secret, or url.",
  );
}

/** A node's name in messages, which memory lacks. */
function quoted(filename: string): string {
  return filename === "" ? "it" : `'${filename}'`;
}

/** The error for writing to a read-only node. */
export function cannotWrite(what: string, node: BlockNode): BlockError {
  let unable: BlockNode | undefined;
  for (let at: BlockNode | undefined = node; at; at = primaryChild(at)) {
    if (!at.writev) unable = at;
  }
  return unable
    ? new BlockError(
      "ENOTSUP",
      `${what}: driver '${unable.driver.name}' cannot write` +
        (unable.filename && ` to '${unable.filename}'`),
    )
    : new BlockError(
      "EACCES",
      `${what}: ${quoted(node.filename)} was opened read-only`,
    );
}

/**
 * Whatever a request threw, as a `BlockError`. If a driver called a verb that a
 * node below it lacks, both are named.
 */
export function requestError(top: BlockNode, thrown: unknown): BlockError {
  const error = asBlockError(thrown);
  if (!(error instanceof AbsentVerbError)) return error;
  const { verb } = error;
  for (const { node, above } of nodesOf(top)) {
    if (node[verb] || !above) continue;
    return new BlockError(
      error.code,
      `Driver '${above.node.driver.name}' calls ${verb}() of ` +
        `'${node.filename}', which driver '${node.driver.name}' does not have`,
      { cause: error },
    );
  }
  return error;
}

/**
 * The error of a driver's `open` or `create`. A `BlockError` says enough; any
 * other exception gets the driver's name, since nothing else would tell whose
 * it is.
 */
export function driverError(driver: BlockDriver, thrown: unknown): BlockError {
  const error = asBlockError(thrown);
  const isMistake = error instanceof UnexpectedError ||
    error instanceof AbsentVerbError;
  return isMistake ? error.prefixed(`Driver '${driver.name}': `) : error;
}

/**
 * Refuse driver options whose type differs from the driver's table.
 *
 * @throws {BlockError} EINVAL
 */
export function checkDriverOptions(
  { name: driver, openOptions = {} }: BlockDriver,
  options: OptionValues,
): void {
  for (const [name, spec] of Object.entries(openOptions)) {
    const value = Object.hasOwn(options, name) ? options[name] : undefined;
    if (value === undefined) continue;
    // Some options may be a value or a group: the driver parses those.
    const isGroup = isPlainObject(value) &&
      Object.keys(openOptions).some((other) => other.startsWith(`${name}.`));
    if (isGroup) continue;
    try {
      parseOption(name, spec, value);
    } catch (thrown) {
      const { code, message, hint, words, detail = "" } = asBlockError(thrown);
      const named = ` (driver '${driver}')`;
      throw new BlockError(code, message + named, {
        cause: thrown,
        hint,
        words,
        detail: detail + named,
      });
    }
  }
}

/**
 * Check the node that a driver opened, and make it read-only if it cannot be
 * written to or `readOnly` asks for it.
 *
 * @throws {BlockError} EINVAL
 */
export function adoptNode(
  driver: BlockDriver,
  value: unknown,
  readOnly = false,
): BlockNode {
  const fault = safeFaultOf(value);
  if (fault !== undefined) {
    throw invalid(`Driver '${driver.name}' opened no usable node: ${fault}`);
  }
  const node = value as BlockNode;
  const mustBe = readOnly || !node.writev;
  if (!mustBe && node.readOnly === undefined) {
    return wrapNode(node, { readOnly: false });
  }
  return mustBe && !node.readOnly ? wrapNode(node, { readOnly: true }) : node;
}

/**
 * What an option may be: a value of a type, one of several words, or a number
 * within bounds.
 */
export type OptionKind =
  | "boolean"
  | "function"
  | "object"
  | "string"
  | readonly string[]
  | Bounds;

/** A range of numbers. */
export interface Bounds {
  /** The smallest. */
  readonly least: number;
  /** The largest. Default: no limit. */
  readonly most?: number;
  /** The number must be a multiple of this. Default: 1. 0 permits fractions. */
  readonly unit?: number;
}

/** Any non-negative number. */
export const AMOUNT: Bounds = { least: 0, unit: 0 };

/**
 * Refuse invalid options of a function. Options that `kinds` does not name, and
 * those that are `undefined`, are ignored.
 *
 * @param what What the options are for, such as `convert`.
 * @throws {BlockError} EINVAL
 */
export function checkOptions(
  what: string,
  options: unknown,
  kinds: { readonly [name: string]: OptionKind },
): void {
  if (typeof options !== "object" || options === null) {
    throw invalid(
      `Cannot ${what}: the options must be an object, not ${
        valueText(options)
      }`,
    );
  }
  for (const [name, kind] of Object.entries(kinds)) {
    let value: unknown;
    try {
      value = (options as { readonly [name: string]: unknown })[name];
    } catch (error) {
      throw asBlockError(error); // A getter's, or a proxy's.
    }
    if (value === undefined || fits(kind, value)) continue;
    throw invalid(
      `Cannot ${what}: option '${name}' must be ${kindText(kind)}, not ${
        valueText(value)
      }`,
    );
  }
}

function fits(kind: OptionKind, value: unknown): boolean {
  if (typeof kind === "string") return typeof value === kind && value !== null;
  if (isWords(kind)) return kind.includes(value as string);
  const { least, most = Infinity, unit = 1 } = kind;
  return typeof value === "number" && value >= least && value <= most &&
    (unit === 0 || value % unit === 0);
}

function kindText(kind: OptionKind): string {
  if (typeof kind === "string") {
    return kind === "object" ? "an object" : `a ${kind}`;
  }
  if (isWords(kind)) return `one of ${kind.join(", ")}`;
  const { least, most, unit = 1 } = kind;
  const number = unit === 0
    ? "a number"
    : unit === 1
    ? "a whole number"
    : `a multiple of ${unit}`;
  return most === undefined
    ? `${number} from ${least} on`
    : `${number} from ${least} to ${most}`;
}

function isWords(kind: OptionKind): kind is readonly string[] {
  return Array.isArray(kind);
}
