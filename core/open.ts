/**
 * Opening stacks: protocols are found by name, formats by probing, children are
 * opened as drivers ask for them, and backing files must pass the gate.
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
  type Gate,
  type ImplicitOpen,
  passes,
  passesByDefault,
} from "./gate.ts";
import { detach, findGraphNode, GraphNode, type KeptNode } from "./graph.ts";
import { heldKind } from "./held.ts";
import type { KeptSettings } from "./kept_nodes.ts";
import { asPath, resolveName } from "./names.ts";
import { type ImageFormat, wrappingOf } from "./formats.ts";
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
import {
  findDriver,
  getDriver,
  loadDriver,
  loadForOpening,
  protocolOf,
} from "./registry.ts";
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

/** Settings for a whole stack. */
interface Opening {
  options: OpenOptions;
  /**
   * The source that the user asked for: images may name files in its folder.
   */
  source: unknown;
  /** Nodes to be reused. */
  kept?: readonly KeptNode[];
  /** How many archives and compressed files have been looked into. */
  unpacked?: number;
}

/** An image of a backing chain, linked to those above it. */
interface ChainLink {
  /** Its canonical name. */
  readonly name: string;
  readonly above?: ChainLink;
  /** Length of the chain down to this image. */
  readonly length: number;
}

function isInChain(link: ChainLink | undefined, name: string): boolean {
  for (; link; link = link.above) if (link.name === name) return true;
  return false;
}

/** A position in the stack. */
interface Place {
  /** How many descriptions enclose it. */
  depth: number;
  readOnly: boolean;
  /** Whether to share all access, if an option says so. */
  forceShare?: boolean;
  /** Whether to bypass the page cache, if an option says so. */
  direct?: boolean;
  /** Whether to ignore flushes, if an option says so. */
  noFlush?: boolean;
  /** The images of the backing chain above. */
  chain?: ChainLink;
  /** Whether to probe the format of the child `file`. */
  probeFile?: boolean;
  /** What an image names, at or above this place; else the user named it. */
  named?: { request: ImplicitOpen; file: BlockNode | undefined };
}

/**
 * Open a stack and return its top node. Most callers want `openImage`, whose
 * handle checks requests; a node trusts its callers.
 *
 * @throws {BlockError} with the driver's own message, which does not name the
 * source.
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

/** Attach a root to an opened node, with its user's claims. */
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

/** The permissions that a root claims. */
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
 * Open a filter above an open node.
 *
 * @param description The filter's driver and options, without the child.
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
  const driver = await loadDriver(getDriver(name));
  if (driver.role !== "filter") throw invalid(`'${name}' is not a filter`);
  const { childRole = "file" } = driver;
  const place = { ...topPlace(options), readOnly: child.readOnly };
  return await openDriver(
    driver,
    { ...others, [childRole]: child },
    { options, source: child },
    place,
  );
}

/** Open only the protocol node of a source, without probing the format. */
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
  if (
    typeof source === "string" || source instanceof URL || heldKind(source)
  ) {
    stack = toStack(source as Source);
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
    if (driver.isContainer && !wantProtocol) {
      return await openProbed({}, stack, opening, place);
    }
    return await openDriver(driver, withFile(driver, options), opening, {
      ...place,
      // A filter's child may be probed if the filter may.
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
    // In a description, `driver` selects the protocol: the filename is a path.
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
  throw new BlockError("EINVAL", "Must specify either driver or file");
}

/** Open the file, probe it, and open the format above it. */
async function openProbed(
  options: OptionValues,
  fileSource: unknown,
  opening: Opening,
  above: Place,
): Promise<BlockNode> {
  const place = inheritOptions(above, takeNodeOptions(options)[0]);
  const file = await openStack(fileSource, opening, place, true);
  const held = hold(file);
  let packed: StackObject | undefined;
  try {
    const { filename } = file;
    const { guess, head } = await probe(file);
    const format = onlyFormat(guess, filename);
    const isRaw = format.name === "raw";
    packed = isRaw ? unpacking(head, fileSource, opening, place) : undefined;
    if (isRaw && !packed) {
      const doubts = doubtsOfRaw(head, guess, filename);
      if (doubts) opening.options.warn?.(doubts);
    }
    if (!packed) {
      const isKnown = findDriver(format.name) !== undefined;
      const driver = isKnown || opening.options.purpose !== "info"
        ? driverOf(format, filename)
        : await describingDriver(format);
      return await openDriver(driver, { ...options, file }, opening, place, {
        probed: isRaw,
        describedAs: { ...options, file: fileSource },
      });
    }
  } finally {
    await detach(held).catch(() => {});
  }
  // From its description, with which it can be reopened. A guest may have
  // written it onto a disk that was raw until then, so it names no other files.
  const inside = {
    ...opening,
    options: { ...opening.options, gate: "deny" as const },
    unpacked: (opening.unpacked ?? 0) + 1,
  };
  return await openProbed(options, packed, inside, above);
}

/** A compressed archive is two of them; more may be one that holds itself. */
const MAX_WRAPPINGS = 4;

/**
 * What looks into a file that seems raw, if that is wanted: into those that the
 * user names, not into those that an image does.
 */
function unpacking(
  head: Uint8Array,
  file: unknown,
  { options, unpacked = 0 }: Opening,
  { chain }: Place,
): StackObject | undefined {
  if (!options.unpack || chain) return undefined;
  const driver = wrappingOf(head)?.driver;
  if (driver === undefined || !findDriver(driver)) return undefined;
  if (unpacked < MAX_WRAPPINGS) return { driver, file };
  throw new BlockError(
    "ELOOP",
    `More than ${MAX_WRAPPINGS} archives or compressed files are packed into ` +
      "each other",
  );
}

async function describingDriver(format: ImageFormat): Promise<BlockDriver> {
  return (await import("./described_format.ts")).describingDriver(format);
}

/** Close an unused node; its own errors would hide the reason it is unused. */
async function closeUnused(node: BlockNode): Promise<void> {
  await findGraphNode(node)?.lose().catch(() => {});
}

/** A node about to be opened, and its children that are already open. */
interface Pending {
  driver: BlockDriver;
  /** The driver's options, without the generic ones. */
  options: OptionValues;
  filename: string;
  /** Whether its format was found by probing. */
  probed: boolean;
  purpose: OpenPurpose;
  opening: Opening;
  place: Place;
  /** Its entry in the graph. */
  inGraph: GraphNode;
}

/** How a node came to be opened. */
interface Found {
  /** Whether its format was found by probing. */
  probed?: boolean;
  /** The description to open it again with, if its child is open already. */
  describedAs?: OptionValues;
}

async function openDriver(
  found: BlockDriver,
  allOptions: OptionValues,
  opening: Opening,
  above: Place,
  { probed = false, describedAs = allOptions }: Found = {},
): Promise<BlockNode> {
  const [common, options] = takeNodeOptions(allOptions);
  const driver = found.load || found.loadTables
    ? await loadForOpening(found, options)
    : found;
  const place = inheritOptions(above, common);
  // What only describes an image has no claims on it, and no locks.
  if (opening.options.purpose === "info") place.readOnly = true;
  if (driver.isReadOnly && opening.options.readOnly === undefined) {
    place.readOnly ||= common.readOnly === undefined;
  }
  if (opening.kept) {
    const { keptNode } = await import("./kept_nodes.ts");
    const settings = () => settingsOf(opening, place);
    const kept = await keptNode(opening.kept, driver, allOptions, settings);
    if (kept) return kept;
  }
  if (++place.depth > MAX_DEPTH) {
    throw invalid(`More than ${MAX_DEPTH} nodes lie on top of each other`);
  }
  // Descriptions may be nested deeper than the call stack allows.
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
      // The driver returned its child unchanged.
      await inGraph.abandon(adopted);
      return adopted;
    }
    const node = await keepingLimits(
      await applyNodeOptions(adopted, common),
    );
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
    // Close what the driver opened by itself, too.
    if (made && inGraph.phase === "opening" && !isInUse(made)) {
      await closeQuietly(made);
    }
    await inGraph.abandon();
    if (error instanceof UnknownOptionError) throw notSupported(driver, error);
    throw driverError(driver, error);
  }
}

/** The settings with which a node that stays open would be opened now. */
function settingsOf({ options }: Opening, place: Place): KeptSettings {
  checkForceShare(place);
  const { readOnly, forceShare = false } = place;
  return { readOnly, forceShare, ...cachingOf(options, place) };
}

/** The cache settings of a node. */
function cachingOf(
  { cache }: OpenOptions,
  { noFlush, direct }: Place,
): { noFlush: boolean; direct: boolean } {
  return {
    noFlush: noFlush ?? cache === "unsafe",
    direct: direct ?? (cache === "none" || cache === "directsync"),
  };
}

/** A node that takes requests beyond its limits, if it can get any. */
async function keepingLimits(node: BlockNode): Promise<BlockNode> {
  const { limits, readOnly, setMode } = node;
  if (!limits) return node;
  // Most are about writing, and it may stay read-only.
  const hasOnRead = limits.maxTransfer || (limits.requestAlignment ?? 1) > 1;
  if (readOnly && !setMode && !hasOnRead) return node;
  const { applyLimits } = await import("./limits.ts");
  return await applyLimits(node);
}

/** Whether a node is in the graph already. */
function isInUse(node: BlockNode): boolean {
  return findGraphNode(node)?.isForeign === false;
}

/** Close a node that a driver returned, ignoring errors. */
async function closeQuietly(node: BlockNode): Promise<void> {
  try {
    await node.close();
  } catch {
    // The caller reports why the node was rejected.
  }
}

/** The context of a driver's `open`. */
function contextOf(pending: Pending): OpenContext {
  const { filename, probed, purpose, options, place } = pending;
  const wishes = pending.opening.options;
  return {
    filename,
    get readOnly() {
      return place.readOnly;
    },
    probed,
    isNamed: place.named !== undefined,
    purpose,
    ...cachingOf(wishes, place),
    aio: wishes.aio,
    ...(wishes.onEvent && {
      event: (name: string) => wishes.onEvent?.(name, filename),
    }),
    warn: (message) => wishes.warn?.(message),
    unlocked: (why) => wishes.onUnlocked?.(why),
    report: (line, named) => wishes.report?.(line, named),
    secret: (id) => findSecret(wishes.secrets, { id, filename }),
    withoutKeys: purpose === "info" || wishes.withoutKeys === true,
    signal: wishes.signal,
    ...(wishes.onUnlocking && {
      unlocking: (done: number, total: number) =>
        wishes.onUnlocking?.({ filename, done, total }),
    }),
    checkRedirect: (url) => checkRedirect(pending, url),
    describes: (name) => describesChild(options[name]),
    openChild: (name, description) => openChild(pending, name, description),
    openImplicit: (child, name, format) =>
      openImplicit(pending, child, name, format),
    openNamed: (child, path) => openNamed(pending, child, path),
    openPart: (child, name, description) =>
      openPart(pending, child, name, description),
  };
}

/** Register a child, to be closed if its parent cannot be opened. */
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

/** The children through which a node writes, and the parts of an image. */
const WRITTEN = /^(file|image|data-file|extents\.\d+)$/;

/**
 * Claim what the parent needs of a child; falls back to reading if the child
 * cannot write.
 */
function adoptChild(
  { place, inGraph }: Pending,
  name: string,
  node: BlockNode,
): void {
  if (!node.writev && WRITTEN.test(name)) place.readOnly = true;
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
      const { adjust } = await import("./kept_nodes.ts");
      await adjust(given, () => settingsOf(opening, place));
    }
    adoptChild(pending, name, given);
    return given;
  }
  if (given === undefined || given === null) {
    throw new BlockError(
      "EINVAL",
      `A block device must be specified for "${name}"`,
    );
  }
  const isBacking = name === "backing";
  const { probeFile, ...below } = place;
  if (isBacking) {
    const role = "backing" as const;
    const request = { filename: filenameOf(given), namedBy: filename, role };
    below.readOnly = !isWritable(opening, given, request);
  }
  // A file name alone means the protocol node itself.
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
  // Chains have their own limit.
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
  const { probeFile: _, ...above } = place;
  const below = { ...above, named: { request, file } };
  const driver = protocolOf(path).name;
  const stack = { driver, filename: path, ...options[child] as OptionValues };
  return await keep(pending, child, openStack(stack, opening, below, true));
}

async function openPart(
  pending: Pending,
  child: string,
  name: string,
  description: unknown,
): Promise<BlockNode> {
  if (isNode(description)) return await openChild(pending, child, description);
  const { filename, opening, place } = pending;
  const { probeFile: _, ...below } = place;
  const open = (stack: unknown, named = below.named) =>
    keep(pending, child, openStack(stack, opening, { ...below, named }, true));
  if (description !== null && describesChild(description)) {
    return await open(description);
  }
  const file = fileOf(pending)!;
  const request = {
    filename: resolveFrom(file, name),
    namedBy: filename,
    role: "extent" as const,
  };
  await checkGate(opening, file, request, "Could not open extent file");
  const overrides = description as OptionValues | undefined;
  try {
    const stack = { ...protocolStack(request.filename), ...overrides };
    return await open(stack, { request, file });
  } catch (thrown) {
    const error = asBlockError(thrown);
    if (error.message.startsWith("Could not open '")) throw error;
    throw error.prefixed(`Could not open '${request.filename}': `);
  }
}

async function isPermitted(
  { gate, source }: { gate?: Gate; source: unknown },
  file: BlockNode | undefined,
  request: ImplicitOpen,
): Promise<boolean> {
  return gate === undefined
    ? passesByDefault(source, file, request)
    : await passes(gate, request);
}

/** Refuse a redirect to what the image that names it could not have named. */
async function checkRedirect(
  { opening: { options: { gate }, source }, place, filename }: Pending,
  url: string,
): Promise<void> {
  const { named } = place;
  // The user's own URL may lead anywhere, unless the user gave a gate.
  if (!named && gate === undefined) return;
  const request = { namedBy: filename, ...named?.request, filename: url };
  if (await isPermitted({ gate, source }, named?.file, request)) return;
  throw new BlockError(
    "EACCES",
    `The server redirects to '${url}', which is not permitted`,
  );
}

/** Refuse a file that an image must not have opened; `what` comes before why. */
async function checkGate(
  { options: { gate }, source }: Opening,
  file: BlockNode | undefined,
  request: ImplicitOpen,
  what: string,
): Promise<void> {
  if (await isPermitted({ gate, source }, file, request)) return;
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

/** The error for an option that a driver lacks, as `open` words it. */
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

/** Error codes of an endless chain, or of one with too many files. */
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
    const below = { ...place, named: { request, file } };
    return await openStack(stack, opening, below, false);
  } catch (error) {
    const cause = asBlockError(error);
    // Prefixed once per image, unless the chain itself is the problem.
    if (TOO_MUCH.has(cause.code)) throw cause;
    throw cause.prefixed(`${what}: `);
  }
}
