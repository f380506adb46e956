/**
 * Opening stacks: protocols are found by name, formats by probing, and children
 * are opened as drivers ask for them.
 *
 * @module
 */
import { checkSignal, unlessAborted } from "./abort.ts";
import {
  adoptNode,
  checkDriverOptions,
  checkNode,
  driverError,
  trustNode,
} from "./checks.ts";
import { attachRoot, hold } from "./drain.ts";
import type { BlockDriver, OpenContext } from "./driver.ts";
import { BlockError, invalid } from "./errors.ts";
import { detach, findGraphNode, GraphNode } from "./graph.ts";
import { heldKind } from "./held.ts";
import type { KeptSettings } from "./kept_nodes.ts";
import type { ImageFormat, Wrapping } from "./formats.ts";
import type { BlockNode } from "./node.ts";
import {
  applyNodeOptions,
  checkForceShare,
  inheritOptions,
  isWritable,
  openAsPermitted,
  takeNodeOptions,
} from "./node_options.ts";
import type { OpenOptions } from "./open_options.ts";
import type { Opening, Pending, Place } from "./opening.ts";
import { type OptionValues, UnknownOptionError } from "./options.ts";
import { ACCESS, ALL_ACCESS } from "./permissions.ts";
import {
  findDriver,
  getDriver,
  isProvided,
  loadDriver,
  loadForOpening,
  protocolOf,
} from "./registry.ts";
import type { SecretSource } from "./secrets.ts";
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
import type { Permissions } from "./traits.ts";
import { shortened } from "./values.ts";

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
  checkSignal(options.signal);
  if (isNode(source)) return await givenNode("The source", source);
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

/** Attach a root to a node once it is open, with its user's claims. */
async function claimed(
  opened: Promise<BlockNode>,
  options: OpenOptions,
): Promise<BlockNode> {
  let node: BlockNode;
  try {
    node = await unlessAborted(opened, options.signal);
  } catch (error) {
    // After an abort, the node may still be opened.
    opened.then(closeUnused, () => {});
    throw error;
  }
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
  if (others[childRole] !== undefined) {
    throw invalid(
      `The child '${childRole}' of '${name}' is the node below the filter; ` +
        "its description cannot name another",
    );
  }
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
  checkSignal(options.signal);
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
  if (isNode(source)) return await givenNode("The child 'file'", source);
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
    // Loaded where no format is given.
    const { doubtsOfRaw, driverOf, onlyFormat, probe } = await import(
      "./probe.ts"
    );
    const { wrappingOf } = await import("./formats.ts");
    const { guess, head } = await probe(file);
    const format = onlyFormat(guess, filename);
    const isRaw = format.name === "raw";
    packed = isRaw
      ? unpacking(wrappingOf(head), fileSource, opening, place)
      : undefined;
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
  // From its description, so that it can be reopened. A guest may have written
  // the header to a raw disk, so it must not name other files.
  const inside = {
    ...opening,
    options: { ...opening.options, gate: "deny" as const },
    unpacked: (opening.unpacked ?? 0) + 1,
  };
  return await openProbed(options, packed, inside, above);
}

/** A compressed archive counts as two. More may be one that contains itself. */
const MAX_WRAPPINGS = 4;

/**
 * The driver for an archive or compressed file that would otherwise be taken
 * for raw, if wanted: only for files that the user names, not for those that an
 * image does.
 *
 * @throws {BlockError} ENOTSUP if there is none.
 */
function unpacking(
  wrapping: Wrapping | undefined,
  file: unknown,
  { options, unpacked = 0 }: Opening,
  { chain }: Place,
): StackObject | undefined {
  if (!options.unpack || chain) return undefined;
  if (!wrapping) return undefined;
  const { what, driver, command } = wrapping;
  if (driver === undefined || !findDriver(driver)) {
    throw new BlockError(
      "ENOTSUP",
      `It is ${what}, for which there is no driver`,
      {
        hint:
          `Unpack it first (${command}), or say that it is raw (-f raw) to ` +
          "have its bytes taken as they are.",
      },
    );
  }
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
  // Opened only to be described, an image has no claims and no locks.
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
  inGraph.name = common.name ?? (shortened(filename) || driver.name);
  const pending: Pending = {
    driver,
    options,
    filename,
    probed,
    purpose,
    opening,
    place,
    inGraph,
    open: (child, source, place, wantProtocol) =>
      keep(pending, child, openStack(source, opening, place, wantProtocol)),
  };
  let made: BlockNode | undefined;
  try {
    checkForceShare(place);
    checkDriverOptions(driver, options);
    const context = contextOf(pending);
    const forget = () => inGraph.abandon();
    made = await openAsPermitted(driver, options, context, common, forget);
    if (isProvided(driver)) trustNode(made);
    const adopted = adoptNode(driver, made, place.readOnly);
    if (isInUse(adopted)) {
      // The driver returned its child unchanged.
      await inGraph.abandon(adopted);
      return adopted;
    }
    const node = await keepingLimits(
      await applyNodeOptions(adopted, common),
    );
    trustNode(node);
    const otherBacking = options.backing !== undefined && purpose !== "info";
    inGraph.origin = { options, otherBacking };
    inGraph.opened = {
      options: describedAs,
      again: ({ options = describedAs, settings, kept }) =>
        openDriver(
          driver,
          options,
          { ...opening, options: { ...opening.options, ...settings }, kept },
          { ...above, readOnly: settings?.readOnly ?? above.readOnly },
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

/** A wrapper for requests beyond a node's limits, if any can be made. */
async function keepingLimits(node: BlockNode): Promise<BlockNode> {
  const { limits, readOnly, setMode } = node;
  if (!limits) return node;
  // Most limits are about writing, and the node may stay read-only.
  const hasOnRead = limits.maxTransfer || (limits.requestAlignment ?? 1) > 1;
  if (readOnly && !setMode && !hasOnRead) return node;
  const { applyLimitsOnce } = await import("./limits.ts");
  return await applyLimitsOnce(node);
}

/**
 * A node that the caller passed in, with a wrapper if it is the caller's own and
 * has limits.
 *
 * @param what What messages call it.
 * @throws {BlockError} EINVAL if it is no node.
 */
export async function givenNode(
  what: string,
  node: BlockNode,
): Promise<BlockNode> {
  checkNode(what, node);
  return !node.limits || isInUse(node) ? node : await keepingLimits(node);
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

/** The bytes of a secret, whose code is loaded for the first one. */
export async function secretOf(
  secrets: SecretSource | undefined,
  id: string | undefined,
  filename: string,
): Promise<Uint8Array | undefined> {
  const { findSecret } = await import("./secrets.ts");
  return await findSecret(secrets, { id, filename });
}

const loadNamedFiles = () => import("./named_files.ts");

/** The context of a driver's `open`. */
function contextOf(pending: Pending): OpenContext {
  const { filename, probed, purpose, options, place } = pending;
  const settings = pending.opening.options;
  return {
    filename,
    get readOnly() {
      return place.readOnly;
    },
    probed,
    isNamed: place.named !== undefined,
    purpose,
    ...cachingOf(settings, place),
    aio: settings.aio,
    ...(settings.onEvent && {
      event: (name: string) => settings.onEvent?.(name, filename),
    }),
    warn: (message) => settings.warn?.(message),
    unlocked: (why) => settings.onUnlocked?.(why),
    report: (line, named) => settings.report?.(line, named),
    secret: (id) => secretOf(settings.secrets, id, filename),
    withoutKeys: purpose === "info" || settings.withoutKeys === true,
    signal: settings.signal,
    ...(settings.onUnlocking && {
      unlocking: (done: number, total: number) =>
        settings.onUnlocking?.({ filename, done, total }),
    }),
    checkRedirect: async (url) => {
      // The user's own URL may lead anywhere, unless the user gave a gate.
      if (!place.named && settings.gate === undefined) return;
      await (await loadNamedFiles()).checkRedirect(pending, url);
    },
    describes: (name) => describesChild(options[name]),
    openChild: (name, description) => openChild(pending, name, description),
    openImplicit: async (child, name, format) => {
      if (settings.backing === false || purpose === "info") return undefined;
      const { openImplicit } = await loadNamedFiles();
      return await openImplicit(pending, child, name, format);
    },
    openNamed: async (child, path) =>
      await (await loadNamedFiles()).openNamed(pending, child, path),
    openPart: async (child, name, description) =>
      isNode(description)
        ? await openChild(pending, child, description)
        : await (await loadNamedFiles())
          .openPart(pending, child, name, description),
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
    const node = await givenNode(`The child '${name}'`, given);
    if (opening.kept?.some((kept) => kept.node === node)) {
      const { adjust } = await import("./kept_nodes.ts");
      await adjust(node, () => settingsOf(opening, place));
    }
    adoptChild(pending, name, node);
    return node;
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
    below.readOnly = !isWritable(opening.options, given, request);
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
