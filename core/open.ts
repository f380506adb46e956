/**
 * From the description of a stack to open nodes: protocols by name, formats by
 * probing, children by the wish of the driver, backing files through the gate.
 *
 * @module
 */
import { allocate } from "./bytes.ts";
import type { BlockDriver, OpenContext, OpenPurpose } from "./driver.ts";
import { asBlockError, BlockError } from "./errors.ts";
import { canonicalName, type Gate, type ImplicitOpen, passes } from "./gate.ts";
import { applyLimits } from "./limits.ts";
import { resolveName } from "./names.ts";
import type { BlockNode } from "./node.ts";
import { rememberOrigin, resolveFrom } from "./node_names.ts";
import {
  applyNodeOptions,
  checkForceShare,
  inheritOptions,
  openAsPermitted,
  takeNodeOptions,
  wantsWritable,
} from "./node_options.ts";
import { type OptionValues, UnknownOptionError } from "./options.ts";
import { ACCESS, ALL_ACCESS, claim, Claims } from "./permissions.ts";
import { getDriver, PROBE_LENGTH, probeFormat } from "./registry.ts";
import { findSecret, type SecretSource } from "./secrets.ts";
import {
  isNode,
  parseFilename,
  type Source,
  type StackObject,
} from "./spec.ts";

/** How writes reach the disk; the names are qemu-img's `-t`. */
export type CacheMode =
  | "writeback"
  | "writethrough"
  | "none"
  | "directsync"
  | "unsafe";

/** How to open an image. */
export interface OpenOptions {
  /** The format's driver; found by probing if absent. */
  format?: string;
  /** Refuse to write. Default: false. */
  readOnly?: boolean;
  /** Why it is opened. Default: `io`. */
  purpose?: OpenPurpose;
  /**
   * Open it even if another process is writing to it: what is read may then be
   * half done. Read-only images only. Default: false.
   */
  forceShare?: boolean;
  /** Whether others may write to it meanwhile if it can take it. Default: true. */
  share?: boolean;
  /** Whether its size will be changed: others must agree now. Default: false. */
  resize?: boolean;
  /** Whether to open backing files. Default: true. */
  backing?: boolean;
  /**
   * Which backing files may be written to, as `commit` needs it, apart from
   * those that an option says so of. Default: none.
   */
  writableBacking?(request: ImplicitOpen): boolean;
  /**
   * Which files the image may have opened. Default: those in or below the
   * folder of the file that was asked for.
   */
  gate?: Gate;
  /** Most images in a chain of backing files. Default: 256. */
  maxChain?: number;
  /** How writes reach the disk. Default: `writeback`. */
  cache?: CacheMode;
  /** Whether files are to have the option `aio=native`. Default: false. */
  nativeAio?: boolean;
  /** Where the keys of encrypted images come from. Default: nowhere. */
  secrets?: SecretSource;
  /**
   * Receives what drivers do as they do it (allocation, copy-on-write, loads
   * and updates of metadata, flushes), by the names QEMU's `blkdebug` uses.
   */
  onEvent?(name: string, filename: string): void;
  /** Receives warnings. Default: they are dropped. */
  warn?(message: string): void;
  /**
   * Learns that a file that is written to cannot be locked, so that nothing
   * keeps another process off. Default: nobody does.
   */
  onUnlocked?(why: string): void;
  /**
   * Receives findings, a line each: damage, and repairs made on opening.
   * Default: they are dropped.
   */
  report?(line: string): void;
}

/** What stays the same from the top of a stack to its bottom. */
interface Opening {
  options: OpenOptions;
  /** Where the default gate lets files be opened. */
  home: string;
}

/** Where in the stack we are. */
interface Place {
  readOnly: boolean;
  /** Whether others may do anything with it, if an option says so. */
  forceShare?: boolean;
  /** Whether to bypass the page cache, if an option says so. */
  direct?: boolean;
  /** Whether to ignore flushes, if an option says so. */
  noFlush?: boolean;
  /** The images of the backing chain above, by canonical name. */
  chain: readonly string[];
  /** Whether the format of the child `file` is to be found by probing. */
  probeFile?: boolean;
}

/**
 * Open a stack and answer its top node. Most callers want `openImage`, whose
 * handle checks requests; a node trusts them.
 *
 * @throws {BlockError} with the driver's own message, not naming the source.
 */
export async function openNode(
  source: Source | BlockNode,
  options: OpenOptions = {},
): Promise<BlockNode> {
  if (isNode(source)) return source;
  let stack = toStack(source);
  if (options.format !== undefined) {
    stack = applyFormat(stack, options.format);
  }
  const name = filenameOf(stack);
  const home = name.slice(0, name.lastIndexOf("/") + 1) || ".";
  return await claimed(
    openStack(
      stack,
      { options, home },
      topPlace(options),
      false,
    ),
    options,
  );
}

function topPlace({ readOnly = false, forceShare }: OpenOptions): Place {
  return { readOnly, forceShare, chain: [] };
}

/** Claim of a node what its user is going to do. */
async function claimed(
  opened: Promise<BlockNode>,
  { purpose, resize, share = true }: OpenOptions,
): Promise<BlockNode> {
  const { READ, WRITE, WRITE_UNCHANGED, RESIZE } = ACCESS;
  const node = await opened;
  let needs = resize ? RESIZE : 0;
  if (purpose !== "info") needs |= node.readOnly ? READ : READ | WRITE;
  try {
    claim(node, { needs, shares: share ? ALL_ACCESS : READ | WRITE_UNCHANGED });
  } catch (error) {
    await node.close();
    throw error;
  }
  return node;
}

/** Open only the protocol node of a source, without looking for a format. */
export async function openProtocol(
  source: Source,
  options: OpenOptions = {},
): Promise<BlockNode> {
  return await claimed(
    openStack(
      protocolStack(source),
      { options, home: "." },
      topPlace(options),
      true,
    ),
    options,
  );
}

/** A source as the description of a protocol node. */
export function protocolStack(source: Source): StackObject {
  const stack = namedStack(source);
  return stack.driver === undefined ? { driver: "file", ...stack } : stack;
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
  return { driver: "file", filename: decodeURIComponent(source.pathname) };
}

/** A source as the description of an image. */
function toStack(source: Source): StackObject {
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
function applyFormat(stack: StackObject, format: string): StackObject {
  if (stack.driver === undefined) return { ...stack, driver: format };
  if (stack.driver === format) return stack;
  if (standsForProtocol(getDriver(stack.driver))) {
    return { driver: format, file: stack };
  }
  throw new BlockError("EINVAL", "Driver specified twice");
}

/** The name of the file at the bottom of the `file` or `image` children. */
function filenameOf(stack: unknown): string {
  if (typeof stack === "string") return stack;
  if (typeof stack !== "object" || stack === null) return "";
  const { filename, file, image } = stack as StackObject;
  return typeof filename === "string" ? filename : filenameOf(file ?? image);
}

async function openStack(
  source: unknown,
  opening: Opening,
  place: Place,
  wantProtocol: boolean,
): Promise<BlockNode> {
  if (isNode(source)) return source;
  let stack: StackObject;
  if (typeof source === "string" || source instanceof URL) {
    stack = toStack(source);
  } else if (typeof source === "object" && source !== null) {
    stack = source as StackObject;
  } else {
    throw new BlockError("EINVAL", `Cannot open '${source}' as an image`);
  }
  const { driver: name, ...options } = stack;
  if (name !== undefined) {
    const driver = getDriver(String(name));
    if (driver.role === "protocol") {
      return await openDriver(driver, options, opening, place);
    }
    return await openDriver(driver, withFile(driver, options), opening, {
      ...place,
      // What a filter passes through may be probed if the filter itself may.
      probeFile: driver.role === "filter" && !wantProtocol &&
        !standsForProtocol(driver),
    });
  }
  if (typeof options.filename === "string" && isDescription(options.file)) {
    const { filename, file, ...others } = options;
    const below = { filename, ...file };
    return await openStack({ ...others, file: below }, opening, place, false);
  }
  if (typeof options.filename === "string") {
    const { filename, ...others } = options;
    const byName = parseFilename(filename);
    if (byName.driver === undefined) byName.driver = "file";
    if (wantProtocol) {
      return await openStack({ ...byName, ...others }, opening, place, true);
    }
    if (!standsForProtocol(getDriver(byName.driver))) {
      return await openStack({ ...byName, ...others }, opening, place, false);
    }
    return await openProbed(others, byName, opening, place);
  }
  if (options.file !== undefined && options.file !== null) {
    if (wantProtocol) {
      return await openStack(options.file, opening, place, true);
    }
    const { file, ...others } = options;
    return await openProbed(others, file, opening, place);
  }
  throw new BlockError("EINVAL", "A block device must be specified for 'file'");
}

/** Whether what a driver's file name leads to is yet to be probed. */
function standsForProtocol(driver: BlockDriver): boolean {
  return driver.role === "protocol" || driver.schemes !== undefined;
}

/** Whether a child is described by an object, to which more may be added. */
function isDescription(child: unknown): child is StackObject {
  return typeof child === "object" && child !== null && !isNode(child);
}

/** A `filename` stands for the child of a driver that has none itself. */
function withFile(driver: BlockDriver, options: OptionValues): OptionValues {
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

/** Open the file below, look at it, and put the fitting format on top. */
async function openProbed(
  options: OptionValues,
  fileSource: unknown,
  opening: Opening,
  above: Place,
): Promise<BlockNode> {
  const place = inheritOptions(above, takeNodeOptions(options)[0]);
  const file = await openStack(fileSource, opening, place, true);
  try {
    const head = allocate(Math.min(PROBE_LENGTH, file.size));
    await file.readv(0, [head]);
    const driver = probeFormat(head, file.filename);
    return await openDriver(
      driver,
      { ...options, file },
      opening,
      place,
      driver.name === "raw",
    );
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function openDriver(
  driver: BlockDriver,
  allOptions: OptionValues,
  opening: Opening,
  above: Place,
  probed = false,
): Promise<BlockNode> {
  const opened: BlockNode[] = [];
  const [common, options] = takeNodeOptions(allOptions);
  const place = inheritOptions(above, common);
  const filename = isNode(options.file)
    ? options.file.filename
    : filenameOf(options);
  const keep = async (name: string, opening: Promise<BlockNode>) => {
    const node = await opening;
    opened.push(node);
    claims.adopt(name, node);
    return node;
  };
  const { cache, purpose = "io" } = opening.options;
  const { readOnly, forceShare = false } = place;
  const parent = { driver, readOnly, purpose, forceShare, options };
  const claims = new Claims(parent);
  const isWritable = (backing: unknown, request: ImplicitOpen) =>
    wantsWritable(backing) ||
    opening.options.writableBacking?.(request) === true;
  const context: OpenContext = {
    filename,
    readOnly,
    probed,
    purpose,
    noFlush: place.noFlush ?? cache === "unsafe",
    direct: place.direct ?? (cache === "none" || cache === "directsync"),
    nativeAio: opening.options.nativeAio ?? false,
    ...(opening.options.onEvent && {
      event: (name: string) => opening.options.onEvent?.(name, filename),
    }),
    warn: (message) => opening.options.warn?.(message),
    unlocked: (why) => opening.options.onUnlocked?.(why),
    report: (line) => opening.options.report?.(line),
    secret: (id) => findSecret(opening.options.secrets, { id, filename }),
    describes: (name) =>
      options[name] === null || isNode(options[name]) ||
      filenameOf(options[name]) !== "" ||
      (options[name] as StackObject | undefined)?.file !== undefined ||
      isSelfContained(options[name]),
    openChild: (name, description) => {
      const given = description ?? options[name];
      if (isNode(given)) {
        claims.adopt(name, given);
        return Promise.resolve(given);
      }
      if (given === undefined || given === null) {
        throw new BlockError(
          "EINVAL",
          `A block device must be specified for '${name}'`,
        );
      }
      const isBacking = name === "backing";
      const { probeFile, ...below } = place;
      if (isBacking) {
        const request = { filename: filenameOf(given), namedBy: filename };
        below.readOnly = !isWritable(given, request);
      }
      // A protocol that is named is wanted as it is.
      const asProtocol = !isBacking && description === undefined &&
        (!probeFile || isSelfContained(given));
      return keep(name, openStack(given, opening, below, asProtocol));
    },
    openImplicit: async (child, name, format) => {
      if (
        opening.options.backing === false || context.purpose === "info"
      ) return undefined;
      const chain = [...place.chain, canonicalName(filename, driver)];
      const overrides = { ...options[child] as OptionValues };
      const file = isNode(options.file) ? options.file : opened[0];
      const request = {
        filename: file ? resolveFrom(file, name) : resolveName(filename, name),
        format,
        namedBy: filename,
      };
      const readOnly = !isWritable(overrides, request);
      const below = { chain, readOnly, forceShare };
      return await keep(child, openBacking(overrides, request, opening, below));
    },
  };
  try {
    checkForceShare(place);
    const node = await openAsPermitted(driver, options, context, common);
    await applyNodeOptions(node, common);
    const otherBacking = options.backing !== undefined &&
      context.purpose !== "info";
    rememberOrigin(node, { options, otherBacking });
    const limited = applyLimits(node);
    claims.complete(limited);
    return limited;
  } catch (error) {
    for (const node of opened) await node.close();
    if (error instanceof UnknownOptionError) throw notSupported(driver, error);
    throw asBlockError(error);
  }
}

/** An option that a driver lacks, in the words of those who open nodes. */
function notSupported(
  driver: BlockDriver,
  { option }: UnknownOptionError,
): BlockError {
  return new BlockError(
    "EINVAL",
    standsForProtocol(driver)
      ? `Block protocol '${driver.name}' doesn't support the option '${option}'`
      : `Block format '${driver.name}' does not support the option '${option}'`,
  );
}

/** Whether a description needs no file, as `{driver: "memory"}` does not. */
function isSelfContained(described: unknown): boolean {
  const driver = (described as StackObject | undefined)?.driver;
  return driver !== undefined && getDriver(driver).role === "protocol";
}

async function openBacking(
  overrides: OptionValues,
  request: ImplicitOpen,
  opening: Opening,
  place: Place,
): Promise<BlockNode> {
  const { filename, format } = request;
  const { chain } = place;
  const refuse = (code: "ELOOP" | "EACCES", why: string) =>
    new BlockError(code, `Could not open backing file: ${why}`);
  if (chain.includes(canonicalName(filename))) {
    throw refuse("ELOOP", `'${filename}' creates an infinite loop`);
  }
  const limit = opening.options.maxChain ?? 256;
  if (chain.length >= limit) {
    throw refuse("ELOOP", `the chain is longer than ${limit} images`);
  }
  const gate = opening.options.gate ?? { below: opening.home };
  if (!await passes(gate, request)) {
    throw refuse(
      "EACCES",
      `'${request.namedBy}' names '${filename}', which is not permitted`,
    );
  }
  try {
    let stack: StackObject = { ...toStack(filename), ...overrides };
    if (format !== undefined && overrides.driver === undefined) {
      stack = applyFormat(stack, format);
    }
    return await openStack(stack, opening, place, false);
  } catch (error) {
    const cause = asBlockError(error);
    if (cause.message.startsWith("Could not open backing file: ")) throw cause;
    throw cause.prefixed("Could not open backing file: ");
  }
}
