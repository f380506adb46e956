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
import { attachRoot, hold } from "./drain.ts";
import type { BlockDriver, OpenContext } from "./driver.ts";
import { asBlockError, BlockError, invalid } from "./errors.ts";
import {
  canonicalName,
  type ImplicitOpen,
  passes,
  passesByDefault,
} from "./gate.ts";
import { detach, findGraphNode, GraphNode, type KeptNode } from "./graph.ts";
import { applyLimits } from "./limits.ts";
import { asPath, resolveName } from "./names.ts";
import type { ImageFormat } from "./formats.ts";
import type { BlockNode } from "./node.ts";
import { resolveFrom } from "./node_names.ts";
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
import { ACCESS, ALL_ACCESS } from "./permissions.ts";
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
import type { OpenPurpose, Permissions } from "./traits.ts";
import { shortened, valueText } from "./values.ts";

/** What stays the same from the top of a stack to its bottom. */
interface Opening {
  options: OpenOptions;
  /** What the user asked for: its folder is open to what images name. */
  source: unknown;
  /** Nodes that are to be used again. */
  kept?: readonly KeptNode[];
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

/** Hold a node that was opened, for what its user is going to do. */
async function claimed(
  opened: Promise<BlockNode>,
  options: OpenOptions,
): Promise<BlockNode> {
  const node = await opened;
  try {
    attachRoot(node, claimsOf(node, options));
  } catch (error) {
    await closeUnused(node);
    throw error;
  }
  return node;
}

/** What the user of a node claims of it. */
export function claimsOf(
  node: BlockNode,
  { purpose, resize, share = true }: OpenOptions,
): Permissions {
  const { READ, WRITE, WRITE_UNCHANGED, RESIZE } = ACCESS;
  let needs = resize ? RESIZE : 0;
  if (purpose !== "info") needs |= node.readOnly ? READ : READ | WRITE;
  return { needs, shares: share ? ALL_ACCESS : READ | WRITE_UNCHANGED };
}

/**
 * Open a filter above a node that is open.
 *
 * @param description Its driver and options, without the child.
 */
export async function openFilter(
  description: StackObject,
  child: BlockNode,
  options: OpenOptions,
): Promise<BlockNode> {
  const { driver: name, ...others } = checkedStack(description);
  if (typeof name !== "string") {
    throw invalid("The description of a filter must name its driver");
  }
  const driver = getDriver(name);
  if (driver.role !== "filter") throw invalid(`'${name}' is no filter`);
  const { childRole = "file" } = driver;
  const place = { ...topPlace(options), readOnly: child.readOnly };
  return await openDriver(
    driver,
    { ...others, [childRole]: child },
    { options, source: child },
    place,
  );
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
  const held = hold(file);
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
    return await openDriver(driver, { ...options, file }, opening, place, {
      probed: isRaw,
      describedAs: { ...options, file: fileSource },
    });
  } finally {
    await detach(held).catch(() => {});
  }
}

async function describingDriver(format: ImageFormat): Promise<BlockDriver> {
  return (await import("./described_format.ts")).describingDriver(format);
}

/** Close what nobody uses; why it is of no use is what the user wants to know. */
async function closeUnused(node: BlockNode): Promise<void> {
  await findGraphNode(node)?.lose().catch(() => {});
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
  /** What it will be in the graph. */
  inGraph: GraphNode;
}

/** How it came about that a node is opened. */
interface Found {
  /** Whether its format was found by probing. */
  probed?: boolean;
  /** What to open it once more by, if its child is open by now. */
  describedAs?: OptionValues;
}

async function openDriver(
  driver: BlockDriver,
  allOptions: OptionValues,
  opening: Opening,
  above: Place,
  { probed = false, describedAs = allOptions }: Found = {},
): Promise<BlockNode> {
  const [common, options] = takeNodeOptions(allOptions);
  const place = inheritOptions(above, common);
  const kept = await keptNode(driver, allOptions, options, opening, place);
  if (kept) return kept;
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
  const inGraph = new GraphNode({
    driver,
    get readOnly() {
      return place.readOnly;
    },
    purpose,
    forceShare,
    options,
  });
  inGraph.name = common.name ?? shortened(filename);
  const pending: Pending = {
    driver,
    options,
    filename,
    probed,
    purpose,
    opening,
    place,
    inGraph,
  };
  let made: BlockNode | undefined;
  try {
    checkForceShare(place);
    checkDriverOptions(driver, options);
    const context = contextOf(pending);
    const forget = () => inGraph.abandon();
    made = await openAsPermitted(driver, options, context, common, forget);
    const adopted = adoptNode(driver, made, place.readOnly);
    if (isInUse(adopted)) {
      // The driver had nothing to add to a child of its own.
      await inGraph.abandon(adopted);
      return adopted;
    }
    const node = applyLimits(await applyNodeOptions(adopted, common));
    const otherBacking = options.backing !== undefined && purpose !== "info";
    inGraph.origin = { options, otherBacking };
    inGraph.opened = {
      options: describedAs,
      again: ({ options = describedAs, wishes, kept }) =>
        openDriver(
          driver,
          options,
          { ...opening, options: { ...opening.options, ...wishes }, kept },
          { ...above, readOnly: wishes?.readOnly ?? above.readOnly },
          { probed },
        ),
    };
    inGraph.complete(node);
    return node;
  } catch (error) {
    // What it has open by itself must be closed as well.
    if (made && inGraph.phase === "opening" && !isInUse(made)) {
      await closeQuietly(made);
    }
    await inGraph.abandon();
    if (error instanceof UnknownOptionError) throw notSupported(driver, error);
    throw driverError(driver, error);
  }
}

/** Options of every node that one that is open can take over. */
const TAKEN_OVER = [
  "read-only",
  "auto-read-only",
  "force-share",
  "cache",
  "cache.direct",
  "cache.no-flush",
];

/**
 * A protocol's node that stays open while what is above it is opened once more:
 * it keeps its locks, and goes on as it would be opened now. One that cannot
 * is closed, and opened like any other.
 */
async function keptNode(
  driver: BlockDriver,
  allOptions: OptionValues,
  { filename, store }: OptionValues,
  opening: Opening,
  place: Place,
): Promise<BlockNode | undefined> {
  const kept = opening.kept?.find(({ node, isTaken }) => {
    const options = findGraphNode(node)?.origin?.options;
    return !isTaken && node.driver === driver &&
      options?.filename === filename && options?.store === store;
  });
  if (!kept) return undefined;
  kept.isTaken = true;
  const known = findGraphNode(kept.node)!;
  const isSame = isEqualOptions(known.opened!.options, allOptions, TAKEN_OVER);
  if (isSame && await adjust(kept.node, opening, place)) return kept.node;
  await kept.letGo();
  return undefined;
}

/** Have a node that is open go on as one that is opened now; if it can. */
async function adjust(
  node: BlockNode,
  { options }: Opening,
  place: Place,
): Promise<boolean> {
  if (!node.setMode) return false;
  checkForceShare(place);
  await node.setMode({
    readOnly: place.readOnly,
    ...cachingOf(options, place),
  });
  findGraphNode(node)!.forceShare = place.forceShare ?? false;
  return node.readOnly === place.readOnly;
}

/** How the caches of the system are used. */
function cachingOf(
  { cache }: OpenOptions,
  { noFlush, direct }: Place,
): { noFlush: boolean; direct: boolean } {
  return {
    noFlush: noFlush ?? cache === "unsafe",
    direct: direct ?? (cache === "none" || cache === "directsync"),
  };
}

/** Whether two sets of options say the same, apart from some of them. */
function isEqualOptions(
  one: OptionValues,
  other: OptionValues,
  except: readonly string[],
): boolean {
  const names = [...Object.keys(one), ...Object.keys(other)];
  return names.every((name) =>
    except.includes(name) || one[name] === other[name]
  );
}

/** Whether a driver has opened a node before. */
function isInUse(node: BlockNode): boolean {
  return findGraphNode(node)?.isForeign === false;
}

/** Have a driver close what it has opened, if that can be closed. */
async function closeQuietly(node: BlockNode): Promise<void> {
  try {
    await node.close();
  } catch {
    // It could not be used either.
  }
}

/** What the driver of a node may ask for while it opens it. */
function contextOf(pending: Pending): OpenContext {
  const { filename, probed, purpose, options, place } = pending;
  const wishes = pending.opening.options;
  return {
    filename,
    get readOnly() {
      return place.readOnly;
    },
    probed,
    purpose,
    ...cachingOf(wishes, place),
    aio: wishes.aio,
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
    openNamed: (child, path) => openNamed(pending, child, path),
  };
}

/** A child that will be closed if its parent cannot be opened. */
async function keep(
  pending: Pending,
  name: string,
  opening: Promise<BlockNode>,
): Promise<BlockNode> {
  const node = await opening;
  try {
    adoptChild(pending, name, node);
  } catch (error) {
    await closeUnused(node);
    throw error;
  }
  return node;
}

/** The children through which a node writes. */
const WRITTEN = ["file", "image", "data-file"];

/** Claim of a child what its parent needs, which it may be unable to do. */
function adoptChild(
  { place, inGraph }: Pending,
  name: string,
  node: BlockNode,
): void {
  if (!node.writev && WRITTEN.includes(name)) place.readOnly = true;
  inGraph.adopt(name, node);
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
    if (opening.kept?.some(({ node }) => node === given)) {
      await adjust(given, opening, place);
    }
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
    const role = "backing" as const;
    const request = { filename: filenameOf(given), namedBy: filename, role };
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
  const { driver, options, filename, opening, place } = pending;
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
  const file = fileOf(pending);
  const request = {
    filename: file ? resolveFrom(file, name) : resolveName(filename, name),
    format,
    namedBy: filename,
    role: "backing" as const,
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

/** The first child, in which an image lies that names others. */
function fileOf({ options, inGraph }: Pending): BlockNode | undefined {
  if (isNode(options.file)) return options.file;
  const [first] = inGraph.children.values();
  return first?.target.node;
}

async function openNamed(
  pending: Pending,
  child: "data-file",
  path: string,
): Promise<BlockNode> {
  const { filename, options, opening, place } = pending;
  const request = { filename: asPath(path), namedBy: filename, role: child };
  const file = fileOf(pending);
  await checkGate(opening, file, request, `Could not open '${path}'`);
  const { probeFile: _, ...below } = place;
  const driver = protocolOf(path).name;
  const stack = { driver, filename: path, ...options[child] as OptionValues };
  return await keep(pending, child, openStack(stack, opening, below, true));
}

/** Refuse a file that an image must not have opened; `what` comes before why. */
async function checkGate(
  { options: { gate }, source }: Opening,
  file: BlockNode | undefined,
  request: ImplicitOpen,
  what: string,
): Promise<void> {
  const isPermitted = gate === undefined
    ? passesByDefault(source, file, request)
    : await passes(gate, request);
  if (isPermitted) return;
  const namedBy = request.namedBy ? `'${request.namedBy}'` : "the image";
  throw new BlockError(
    "EACCES",
    `${what}: ${namedBy} names '${request.filename}', which is not permitted`,
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
  const what = "Could not open backing file";
  const refuse = (why: string) => new BlockError("ELOOP", `${what}: ${why}`);
  if (isInChain(chain, canonicalName(filename))) {
    throw refuse(`'${filename}' creates an infinite loop`);
  }
  if (chain!.length >= limit) {
    throw refuse(`the chain is longer than ${limit} images`);
  }
  await checkGate(opening, file, request, what);
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
    throw cause.prefixed(`${what}: `);
  }
}
