/**
 * From the description of a stack to open nodes: protocols by name, formats by
 * probing, children by the wish of the driver, backing files through the gate.
 *
 * @module
 */
import {
  adoptNode,
  checkDriverOptions,
  checkNode,
  driverError,
} from "./checks.ts";
import type { BlockDriver, OpenContext } from "./driver.ts";
import { asBlockError, BlockError, invalid } from "./errors.ts";
import {
  canonicalName,
  type ImplicitOpen,
  passes,
  passesByDefault,
} from "./gate.ts";
import { applyLimits } from "./limits.ts";
import { resolveName } from "./names.ts";
import type { ImageFormat } from "./formats.ts";
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
import { doubtsOfRaw, driverOf, onlyFormat, probe } from "./probe.ts";
import { findDriver, getDriver, protocolOf } from "./registry.ts";
import { findSecret } from "./secrets.ts";
import {
  applyFormat,
  checkedStack,
  describesChild,
  filenameOf,
  isDescription,
  isSelfContained,
  MAX_DEPTH,
  protocolStack,
  standsForProtocol,
  toStack,
  withFile,
} from "./sources.ts";
import { isNode, type Source, type StackObject } from "./spec.ts";
import type { OpenPurpose } from "./traits.ts";
import { shortened, valueText } from "./values.ts";

/** What stays the same from the top of a stack to its bottom. */
interface Opening {
  options: OpenOptions;
  /** What the user asked for: its folder is open to what images name. */
  source: unknown;
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
  /** How many descriptions it lies in. */
  depth: number;
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
  if (isNode(source)) {
    checkNode("The source", source);
    return source;
  }
  let stack = toStack(source);
  if (options.format !== undefined) {
    stack = applyFormat(stack, options.format);
  }
  return await claimed(
    openStack(
      stack,
      { options, source: stack },
      topPlace(options),
      false,
    ),
    options,
  );
}

function topPlace({ readOnly = false, forceShare }: OpenOptions): Place {
  return { depth: 0, readOnly, forceShare };
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
    await closeQuietly(node);
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
      { options, source },
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
  } else {
    stack = checkedStack(source);
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
    // In a description, a scheme is what `driver` says: this is a path.
    const { filename, ...others } = options;
    const file = { driver: protocolOf(filename).name, filename };
    return wantProtocol
      ? await openStack({ ...file, ...others }, opening, place, true)
      : await openProbed(others, file, opening, place);
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
    const { filename } = file;
    const { guess, head } = await probe(file);
    const format = onlyFormat(guess, filename);
    const isRaw = format.name === "raw";
    if (isRaw) {
      const doubts = doubtsOfRaw(head, guess, filename);
      if (doubts) opening.options.warn?.(doubts);
    }
    const isKnown = findDriver(format.name) !== undefined;
    const driver = isKnown || opening.options.purpose !== "info"
      ? driverOf(format, filename)
      : await describingDriver(format);
    return await openDriver(
      driver,
      { ...options, file },
      opening,
      place,
      isRaw,
    );
  } catch (error) {
    await closeQuietly(file);
    throw error;
  }
}

async function describingDriver(format: ImageFormat): Promise<BlockDriver> {
  return (await import("./described_format.ts")).describingDriver(format);
}

/** Close what is of no use; why it is none is what the user wants to know. */
async function closeQuietly(node: BlockNode): Promise<void> {
  try {
    await node.close();
  } catch {
    // It could not be used either.
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
  if (++place.depth > MAX_DEPTH) {
    throw invalid(`More than ${MAX_DEPTH} nodes lie on top of each other`);
  }
  // Descriptions may lie in each other deeper than calls may.
  if (place.depth % 16 === 0) await undefined;
  const filename = isNode(options.file)
    ? options.file.filename
    : filenameOf(options);
  const { purpose = "io" } = opening.options;
  const { forceShare = false } = place;
  const claims = new Claims({
    driver,
    get readOnly() {
      return place.readOnly;
    },
    purpose,
    forceShare,
    options,
  });
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
  let made: BlockNode | undefined;
  try {
    checkForceShare(place);
    checkDriverOptions(driver, options);
    const context = contextOf(pending);
    made = await openAsPermitted(driver, options, context, common);
    const adopted = adoptNode(driver, made, place.readOnly);
    const node = applyLimits(await applyNodeOptions(adopted, common));
    const otherBacking = options.backing !== undefined && purpose !== "info";
    rememberOrigin(node, { options, otherBacking });
    claims.complete(node);
    return node;
  } catch (error) {
    // What a node has open, if it is not its children, is its own.
    const open = opened.length > 0 || !made ? opened : [made];
    for (const node of open) await closeQuietly(node);
    if (error instanceof UnknownOptionError) throw notSupported(driver, error);
    throw driverError(driver, error);
  }
}

/** What the driver of a node may ask for while it opens it. */
function contextOf(pending: Pending): OpenContext {
  const { filename, probed, purpose, options, place } = pending;
  const wishes = pending.opening.options;
  const { cache } = wishes;
  return {
    filename,
    get readOnly() {
      return place.readOnly;
    },
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
    withoutKeys: purpose === "info" || wishes.withoutKeys === true,
    signal: wishes.signal,
    describes: (name) => describesChild(options[name]),
    openChild: (name, description) => openChild(pending, name, description),
    openImplicit: (child, name, format) =>
      openImplicit(pending, child, name, format),
  };
}

/** A child that will be closed if its parent cannot be opened. */
async function keep(
  pending: Pending,
  name: string,
  opening: Promise<BlockNode>,
): Promise<BlockNode> {
  const node = await opening;
  pending.opened.push(node);
  adoptChild(pending, name, node);
  return node;
}

/** The children through which a node writes. */
const WRITTEN = ["file", "image", "data-file"];

/** Claim of a child what its parent needs, which it may be unable to do. */
function adoptChild(
  { place, claims }: Pending,
  name: string,
  node: BlockNode,
): void {
  if (!node.writev && WRITTEN.includes(name)) place.readOnly = true;
  claims.adopt(name, node);
}

async function openChild(
  pending: Pending,
  name: string,
  description?: unknown,
): Promise<BlockNode> {
  const { options, filename, opening, place } = pending;
  const given = description ?? options[name];
  if (isNode(given)) {
    checkNode(`The child '${name}'`, given);
    adoptChild(pending, name, given);
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
  if (typeof name !== "string") {
    throw invalid(`The name of a backing file cannot be ${valueText(name)}`);
  }
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
  const { forceShare = false } = place;
  // Chains have a limit of their own.
  const below = { depth: 0, chain, readOnly, forceShare };
  return await keep(
    pending,
    child,
    openBacking(overrides, { ...request, file }, opening, below),
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
  { option: unknown, words }: UnknownOptionError,
): BlockError {
  const option = shortened(unknown, 80);
  return new BlockError(
    "EINVAL",
    standsForProtocol(driver)
      ? `Block protocol '${driver.name}' doesn't support the option '${option}'`
      : `Block format '${driver.name}' does not support the option '${option}'`,
    { words },
  );
}

/** Codes of errors that a chain without end or with too many files leads to. */
const TOO_MUCH = new Set(["ELOOP", "EMFILE", "ENFILE"]);

async function openBacking(
  overrides: OptionValues,
  { file, ...request }: ImplicitOpen & { file: BlockNode | undefined },
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
  const { gate } = opening.options;
  const isPermitted = gate === undefined
    ? passesByDefault(opening.source, file, request)
    : await passes(gate, request);
  if (!isPermitted) {
    const namedBy = request.namedBy ? `'${request.namedBy}'` : "the image";
    throw refuse(
      "EACCES",
      `${namedBy} names '${filename}', which is not permitted`,
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
