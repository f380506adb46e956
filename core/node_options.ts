/**
 * The generic options, which every node has whatever its driver.
 *
 * @module
 */
import type { BlockDriver, OpenContext } from "./driver.ts";
import { asBlockError, BlockError } from "./errors.ts";
import { wrapNode } from "./filter.ts";
import type { ImplicitOpen } from "./gate.ts";
import type { BlockNode } from "./node.ts";
import type { OpenOptions } from "./open_options.ts";
import {
  notAmong,
  type OptionTable,
  type OptionValues,
  parseBoolean,
  parseOption,
} from "./options.ts";
import { isPlainObject, shortened, valueText } from "./values.ts";

/** The options that every driver has. */
export const NODE_OPTIONS = {
  "node-name": { type: "string", help: "A name for the node" },
  "read-only": { type: "boolean", help: "Refuse to be written to" },
  "auto-read-only": {
    type: "boolean",
    help: "Be read-only if the file cannot be written to",
  },
  "force-share": {
    type: "boolean",
    help: "Let other processes do what they like with it meanwhile",
  },
  "discard": { type: "string", help: "ignore (or off), or unmap (or on)" },
  "detect-zeroes": {
    type: "string",
    help: "Write zeroes for data that is zero: off, on, or unmap",
  },
  "cache.direct": { type: "boolean", help: "Bypass the page cache" },
  "cache.no-flush": { type: "boolean", help: "Ignore flushes" },
} as const satisfies OptionTable;

/** The parsed options; absent where not given. */
export interface NodeOptions {
  /** Its name in messages. */
  readonly name?: string;
  /** For this node and those below. */
  readonly readOnly?: boolean;
  /** Whether to open read-only what cannot be opened for writing. */
  readonly autoReadOnly?: boolean;
  /** For this node and those below: whether to share all access. */
  readonly forceShare?: boolean;
  /** Whether discards do anything. */
  readonly discards?: boolean;
  /** Whether to detect writes of zeroes, and whether those may unmap. */
  readonly detectZeroes?: "on" | "unmap";
  /** For this node and those below. */
  readonly direct?: boolean;
  /** For this node and those below. */
  readonly noFlush?: boolean;
}

/**
 * Separate the generic options from those of the driver.
 *
 * @throws {BlockError} EINVAL for invalid values.
 */
export function takeNodeOptions(
  options: OptionValues,
): [common: NodeOptions, own: OptionValues] {
  const own: [name: string, value: unknown][] = [];
  const common: { -readonly [name in keyof typeof NODE_OPTIONS]?: unknown } =
    {};
  for (const [name, value] of Object.entries(withDottedCache(options))) {
    if (!Object.hasOwn(NODE_OPTIONS, name)) own.push([name, value]);
    else if (value !== undefined) {
      const known = name as keyof typeof NODE_OPTIONS;
      const isMode = NODE_OPTIONS[known].type === "string" &&
        parseBoolean(value) === value;
      // JSON has flags of its own for these words.
      const mode = value ? "on" : "off";
      common[known] = parseOption(
        name,
        NODE_OPTIONS[known],
        isMode ? mode : value,
      );
    }
  }
  const name = common["node-name"] as string | undefined;
  checkName(name);
  const discards = discardsOf(common.discard as string | undefined);
  const flag = (name: keyof typeof NODE_OPTIONS) =>
    common[name] as boolean | undefined;
  return [{
    name,
    readOnly: flag("read-only"),
    autoReadOnly: flag("auto-read-only"),
    forceShare: flag("force-share"),
    discards,
    detectZeroes: detectionOf(common["detect-zeroes"], discards),
    direct: flag("cache.direct"),
    noFlush: flag("cache.no-flush"),
  }, Object.fromEntries(own)];
}

/** `{cache: {direct: true}}` as `{"cache.direct": true}`. */
function withDottedCache({ cache, ...options }: OptionValues): OptionValues {
  if (!isPlainObject(cache)) {
    return cache === undefined ? options : { cache, ...options };
  }
  for (const [name, value] of Object.entries(cache)) {
    options[`cache.${name}`] = value;
  }
  return options;
}

function checkName(name: string | undefined): void {
  if (name === undefined || /^[a-z][-._0-9a-z]{0,30}$/i.test(name)) return;
  throw new BlockError("EINVAL", `Invalid node-name: ${valueText(name)}`);
}

function discardsOf(mode: string | undefined): boolean | undefined {
  if (mode === undefined) return undefined;
  if (mode === "unmap" || mode === "on") return true;
  if (mode === "ignore" || mode === "off") return false;
  throw notAmong("Invalid discard option", ["ignore", "unmap", "off", "on"]);
}

/** Settings that a node inherits from its parent. */
interface Inherited {
  readonly readOnly: boolean;
  readonly forceShare?: boolean;
  readonly direct?: boolean;
  readonly noFlush?: boolean;
}

/** Inherited settings, overridden by the node's own options. */
export function inheritOptions<Place extends Inherited>(
  above: Place,
  options: NodeOptions,
): Place {
  return {
    ...above,
    readOnly: above.readOnly || options.readOnly === true,
    forceShare: options.forceShare ?? above.forceShare,
    direct: options.direct ?? above.direct,
    noFlush: options.noFlush ?? above.noFlush,
  };
}

/** Whether a backing file may be written to, which is read-only by default. */
export function isWritable(
  options: OpenOptions,
  description: unknown,
  request: ImplicitOpen,
): boolean {
  const readOnly = (description as OptionValues | undefined)?.["read-only"];
  return parseBoolean(readOnly) === false ||
    options.writableBacking?.(request) === true;
}

/** A writer must not ignore the locks of others. */
export function checkForceShare({ forceShare, readOnly }: Inherited): void {
  if (!forceShare || readOnly) return;
  throw new BlockError(
    "EINVAL",
    "force-share=on can only be used with read-only images",
  );
}

function detectionOf(
  mode: unknown,
  discards = true,
): "on" | "unmap" | undefined {
  if (mode === undefined || mode === "off") return undefined;
  if (mode === "unmap" && !discards) {
    throw new BlockError(
      "EINVAL",
      "setting detect-zeroes to unmap is not allowed without setting " +
        "discard operation to unmap",
    );
  }
  if (mode === "on" || mode === "unmap") return mode;
  throw notAmong(`invalid parameter value: ${shortened(String(mode), 80)}`, [
    "off",
    "on",
    "unmap",
  ]);
}

/** Apply the generic options to a node; returns it or a wrapper. */
export async function applyNodeOptions(
  node: BlockNode,
  { discards, detectZeroes: detection }: NodeOptions,
): Promise<BlockNode> {
  if (discards === false) node = ignoreDiscards(node);
  if (!detection) return node;
  const { detectZeroes } = await import("./detect_zeroes.ts");
  return detectZeroes(node, detection === "unmap");
}

function ignoreDiscards(node: BlockNode): BlockNode {
  return wrapNode(node, {
    discard: undefined,
    writeZeroes: (offset, length, flags) =>
      node.writeZeroes!(offset, length, { ...flags, unmap: false }),
  });
}

/**
 * Open a node; read-only if that is all that is permitted and `auto-read-only`
 * allows it.
 *
 * @param forget Releases what the first attempt opened.
 */
export async function openAsPermitted(
  driver: BlockDriver,
  options: OptionValues,
  context: OpenContext,
  { autoReadOnly }: NodeOptions,
  forget: () => Promise<void>,
): Promise<BlockNode> {
  try {
    return await driver.open(options, context);
  } catch (error) {
    const isEnough = autoReadOnly && !context.readOnly &&
      ["EACCES", "EPERM", "EROFS"].includes(asBlockError(error).code);
    if (!isEnough) throw error;
    await forget();
    return await driver.open(options, { ...context, readOnly: true });
  }
}
