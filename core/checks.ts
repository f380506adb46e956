/**
 * Checks of what callers and drivers hand in: nodes, and options of functions.
 * They are made once for each opening or job, not for each request.
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
  UnexpectedError,
} from "./errors.ts";
import { nodesOf, primaryChild } from "./extents.ts";
import { wrapNode } from "./filter.ts";
import type { BlockNode, RequestLimits } from "./node.ts";
import { type OptionValues, parseOption } from "./options.ts";
import { valueText } from "./values.ts";
import { OPTIONAL_VERBS } from "./verbs.ts";

const VERBS = ["readv", "status", "close"] as const;

/** Groups of verbs, with those that must be there and those that may. */
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
  ["image", [], ["check", "amend", "changeBacking", "makeEmpty"]],
  ["vmState", ["save", "load"], []],
  ["debug", ["event"], []],
];

const LIMITS = [
  "maxTransfer",
  "writeZeroesAlignment",
  "maxWriteZeroes",
  "discardAlignment",
  "maxDiscard",
] as const satisfies readonly (keyof RequestLimits)[];

/** Why a value is no node that can be used; `undefined` if it is one. */
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
  const given = limits as { readonly [name: string]: unknown };
  const isCount = (value: unknown, least: number) =>
    value === undefined ||
    typeof value === "number" && isExactSize(value) && value >= least;
  const wrong = isCount(given.requestAlignment, 1)
    ? LIMITS.find((name) => !isCount(given[name], 0))
    : "requestAlignment";
  return wrong && `its limit '${wrong}' is ${valueText(given[wrong])}`;
}

/** As {@linkcode faultOf}, of values whose getters may throw. */
function safeFaultOf(value: unknown): string | undefined {
  try {
    return faultOf(value);
  } catch (error) {
    return `looking at it fails: ${(error as Error)?.message}`;
  }
}

/**
 * Refuse what is no node.
 *
 * @param what What it is to be, such as `The target`.
 * @throws {BlockError} EINVAL
 */
export function checkNode(
  what: string,
  value: unknown,
): asserts value is BlockNode {
  const fault = safeFaultOf(value);
  if (fault === undefined) return;
  throw invalid(
    `${what} must be a node, such as the 'node' of an image: ${fault}`,
  );
}

/**
 * Refuse a node that cannot be written to.
 *
 * @throws {BlockError} ENOTSUP if its driver cannot write, EACCES if it was
 * opened read-only.
 */
export function checkWritable(what: string, node: BlockNode): void {
  checkNode(what, node);
  if (node.readOnly || !node.writev) throw cannotWrite(what, node);
}

/** Why a node that is read-only is not written to. */
export function cannotWrite(what: string, node: BlockNode): BlockError {
  let unable: BlockNode | undefined;
  for (let at: BlockNode | undefined = node; at; at = primaryChild(at)) {
    if (!at.writev) unable = at;
  }
  return unable
    ? new BlockError(
      "ENOTSUP",
      `${what}: driver '${unable.driver.name}' cannot write to ` +
        `'${unable.filename}'`,
    )
    : new BlockError(
      "EACCES",
      `${what}: '${node.filename}' was opened read-only`,
    );
}

/**
 * What was thrown by a request to a stack, as a `BlockError`. Where a driver
 * has called what a node below it cannot do, both are named.
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
 * What a driver failed with while it opened or made something. Errors that it
 * has thrown on purpose say enough; of others, nothing would tell whose they
 * are.
 */
export function driverError(driver: BlockDriver, thrown: unknown): BlockError {
  const error = asBlockError(thrown);
  const isMistake = error instanceof UnexpectedError ||
    error instanceof AbsentVerbError;
  return isMistake ? error.prefixed(`Driver '${driver.name}': `) : error;
}

/**
 * Refuse options of a driver that are not of the type its table says.
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
 * Refuse what a driver opened if that is no node, and have one that cannot be
 * written to, or is not to be (`readOnly`), say so.
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
 * What an option may be: of a type; one of several words; or a number within
 * bounds, whole unless `whole` is false.
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
  /** The least one. */
  readonly least: number;
  /** The largest one. Default: none. */
  readonly most?: number;
  /** What it must be a multiple of. Default: 1. 0: it may be fractional. */
  readonly unit?: number;
}

/** Any amount, or none. */
export const AMOUNT: Bounds = { least: 0, unit: 0 };

/**
 * Refuse options of a function that make no sense. Others than `kinds` names,
 * and those that are `undefined`, are not looked at.
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
