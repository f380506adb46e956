/**
 * From the description of a stack to open nodes: protocols by name, formats by
 * probing, children by the wish of the driver, backing files through the gate.
 *
 * @module
 */
import { allocate } from "./bytes.ts";
import type { BlockDriver, OpenContext, OpenPurpose } from "./driver.ts";
import { asBlockError, BlockError } from "./errors.ts";
import { canonicalName, type ImplicitOpen, passes } from "./gate.ts";
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
import type { OpenOptions } from "./open_options.ts";
import { type OptionValues, UnknownOptionError } from "./options.ts";
import { ACCESS, ALL_ACCESS, claim, Claims } from "./permissions.ts";
import { getDriver, PROBE_LENGTH, probeFormat } from "./registry.ts";
import { findSecret } from "./secrets.ts";
import {
  applyFormat,
  describesChild,
  filenameOf,
  isDescription,
  isSelfContained,
  protocolStack,
  standsForProtocol,
  toStack,
  withFile,
} from "./sources.ts";
import {
  isNode,
  parseFilename,
  type Source,
  type StackObject,
} from "./spec.ts";

/** What stays the same from the top of a stack to its bottom. */
interface Opening {
  options: OpenOptions;
  /** Where the default gate lets files be opened. */
  home: string;
}

/** An image of a backing chain, and those above it. */
interface ChainLink {
  /** Its canonical name. */
  readonly name: string;
  readonly above?: ChainLink;
  /** How many images the chain has down to this one. */
  readonly length: number;
}

function isInChain(link: ChainLink | undefined, name: string): boolean {
  for (; link; link = link.above) if (link.name === name) return true;
  return false;
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
  /** The images of the backing chain above. */
  chain?: ChainLink;
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
  return { readOnly, forceShare };
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
    if (typeof name !== "string") {
      throw new BlockError("EINVAL", "Must specify either driver or file");
    }
    const driver = getDriver(name);
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

/** A node that is about to be opened, and what is already open below it. */
interface Pending {
  driver: BlockDriver;
  /** Its own options, without those that every node has. */
  options: OptionValues;
  filename: string;
  /** Whether its format was found by probing. */
  probed: boolean;
  purpose: OpenPurpose;
  opening: Opening;
  place: Place;
  claims: Claims;
  opened: BlockNode[];
}

async function openDriver(
  driver: BlockDriver,
  allOptions: OptionValues,
  opening: Opening,
  above: Place,
  probed = false,
): Promise<BlockNode> {
  const [common, options] = takeNodeOptions(allOptions);
  const place = inheritOptions(above, common);
  const filename = isNode(options.file)
    ? options.file.filename
    : filenameOf(options);
  const { purpose = "io" } = opening.options;
  const { readOnly, forceShare = false } = place;
  const claims = new Claims({ driver, readOnly, purpose, forceShare, options });
  const opened: BlockNode[] = [];
  const pending: Pending = {
    driver,
    options,
    filename,
    probed,
    purpose,
    opening,
    place,
    claims,
    opened,
  };
  try {
    checkForceShare(place);
    const node = await openAsPermitted(
      driver,
      options,
      contextOf(pending),
      common,
    );
    await applyNodeOptions(node, common);
    const otherBacking = options.backing !== undefined && purpose !== "info";
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

/** What the driver of a node may ask for while it opens it. */
function contextOf(pending: Pending): OpenContext {
  const { filename, probed, purpose, options, place } = pending;
  const wishes = pending.opening.options;
  const { cache } = wishes;
  return {
    filename,
    readOnly: place.readOnly,
    probed,
    purpose,
    noFlush: place.noFlush ?? cache === "unsafe",
    direct: place.direct ?? (cache === "none" || cache === "directsync"),
    nativeAio: wishes.nativeAio ?? false,
    ...(wishes.onEvent && {
      event: (name: string) => wishes.onEvent?.(name, filename),
    }),
    warn: (message) => wishes.warn?.(message),
    unlocked: (why) => wishes.onUnlocked?.(why),
    report: (line) => wishes.report?.(line),
    secret: (id) => findSecret(wishes.secrets, { id, filename }),
    describes: (name) => describesChild(options[name]),
    openChild: (name, description) => openChild(pending, name, description),
    openImplicit: (child, name, format) =>
      openImplicit(pending, child, name, format),
  };
}

/** A child that will be closed if its parent cannot be opened. */
async function keep(
  { opened, claims }: Pending,
  name: string,
  opening: Promise<BlockNode>,
): Promise<BlockNode> {
  const node = await opening;
  opened.push(node);
  claims.adopt(name, node);
  return node;
}

async function openChild(
  pending: Pending,
  name: string,
  description?: unknown,
): Promise<BlockNode> {
  const { options, filename, opening, place, claims } = pending;
  const given = description ?? options[name];
  if (isNode(given)) {
    claims.adopt(name, given);
    return given;
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
    below.readOnly = !isWritable(opening, given, request);
  }
  // A protocol that is named is wanted as it is.
  const asProtocol = !isBacking && description === undefined &&
    (!probeFile || isSelfContained(given));
  return await keep(
    pending,
    name,
    openStack(given, opening, below, asProtocol),
  );
}

async function openImplicit(
  pending: Pending,
  child: string,
  name: string,
  format?: string,
): Promise<BlockNode | undefined> {
  const { driver, options, filename, opening, place, opened } = pending;
  if (opening.options.backing === false || pending.purpose === "info") {
    return undefined;
  }
  const chain = {
    name: canonicalName(filename, driver),
    above: place.chain,
    length: (place.chain?.length ?? 0) + 1,
  };
  const overrides = { ...options[child] as OptionValues };
  const file = isNode(options.file) ? options.file : opened[0];
  const request = {
    filename: file ? resolveFrom(file, name) : resolveName(filename, name),
    format,
    namedBy: filename,
  };
  const readOnly = !isWritable(opening, overrides, request);
  const below = { chain, readOnly, forceShare: place.forceShare ?? false };
  return await keep(
    pending,
    child,
    openBacking(overrides, request, opening, below),
  );
}

/** Whether a backing file may be written to. */
function isWritable(
  { options }: Opening,
  backing: unknown,
  request: ImplicitOpen,
): boolean {
  return wantsWritable(backing) || options.writableBacking?.(request) === true;
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

/** Codes of errors that a chain without end or with too many files leads to. */
const TOO_MUCH = new Set(["ELOOP", "EMFILE", "ENFILE"]);

async function openBacking(
  overrides: OptionValues,
  request: ImplicitOpen,
  opening: Opening,
  place: Place,
): Promise<BlockNode> {
  const { filename, format } = request;
  const { chain } = place;
  const limit = opening.options.maxChain ?? 256;
  const refuse = (code: "ELOOP" | "EACCES", why: string) =>
    new BlockError(code, `Could not open backing file: ${why}`);
  if (isInChain(chain, canonicalName(filename))) {
    throw refuse("ELOOP", `'${filename}' creates an infinite loop`);
  }
  if (chain!.length >= limit) {
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
    // It is said once for each image of the chain, but not where the chain
    // itself is too much.
    if (TOO_MUCH.has(cause.code)) throw cause;
    throw cause.prefixed("Could not open backing file: ");
  }
}
