/**
 * The files that an image names: its backing file, its data file and its
 * extents. They must pass the gate, as must the targets of redirects.
 *
 * @module
 */
import { asBlockError, BlockError, invalid } from "./errors.ts";
import {
  type Gate,
  type ImplicitOpen,
  passes,
  passesByDefault,
} from "./gate.ts";
import { asPath, resolveName } from "./names.ts";
import type { BlockNode } from "./node.ts";
import { resolveFrom } from "./node_names.ts";
import { isWritable } from "./node_options.ts";
import type { ChainLink, Opening, Pending } from "./opening.ts";
import type { OptionValues } from "./options.ts";
import { protocolOf } from "./registry.ts";
import {
  applyFormat,
  canonicalName,
  describesChild,
  protocolStack,
  toStack,
} from "./sources.ts";
import { isNode, type StackObject } from "./spec.ts";
import { valueText } from "./values.ts";

/** Open the backing file that an image names. */
export async function openImplicit(
  pending: Pending,
  child: string,
  name: string,
  format?: string,
): Promise<BlockNode> {
  const { driver, options, filename, opening, place } = pending;
  if (typeof name !== "string") {
    throw invalid(`The name of a backing file cannot be ${valueText(name)}`);
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
  const what = "Could not open backing file";
  checkChain(chain, request.filename, opening, what);
  await checkGate(opening, file, request, what);
  try {
    let stack: StackObject = { ...toStack(request.filename), ...overrides };
    if (format !== undefined && overrides.driver === undefined) {
      stack = applyFormat(stack, format);
    }
    return await pending.open(child, stack, {
      // Chains have their own limit.
      depth: 0,
      chain,
      readOnly: !isWritable(opening.options, overrides, request),
      forceShare: place.forceShare ?? false,
      named: { request, file },
    }, false);
  } catch (error) {
    const cause = asBlockError(error);
    // Prefixed once per image, unless the chain itself is the problem.
    if (TOO_MUCH.has(cause.code)) throw cause;
    throw cause.prefixed(`${what}: `);
  }
}

/** Error codes of an endless chain, or of one with too many files. */
const TOO_MUCH = new Set(["ELOOP", "EMFILE", "ENFILE"]);

/** Refuse an endless chain, and one that is too long. */
function checkChain(
  chain: ChainLink,
  filename: string,
  { options: { maxChain = 256 } }: Opening,
  what: string,
): void {
  const refuse = (why: string) => new BlockError("ELOOP", `${what}: ${why}`);
  if (isInChain(chain, canonicalName(filename))) {
    throw refuse(`'${filename}' creates an infinite loop`);
  }
  if (chain.length >= maxChain) {
    throw refuse(`the chain is longer than ${maxChain} images`);
  }
}

function isInChain(link: ChainLink | undefined, name: string): boolean {
  for (; link; link = link.above) if (link.name === name) return true;
  return false;
}

/** The child that contains the image. */
function fileOf({ options, inGraph }: Pending): BlockNode | undefined {
  if (isNode(options.file)) return options.file;
  const [first] = inGraph.children.values();
  return first?.target.node;
}

/** Open a file by its path, which an image names. */
export async function openNamed(
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
  return await pending.open(child, stack, below, true);
}

/**
 * Open a part of an image: what the user describes, or else the file that the
 * image names.
 */
export async function openPart(
  pending: Pending,
  child: string,
  name: string,
  description: unknown,
): Promise<BlockNode> {
  const { filename, opening, place } = pending;
  const { probeFile: _, ...below } = place;
  const open = (stack: unknown, named = below.named) =>
    pending.open(child, stack, { ...below, named }, true);
  if (description !== null && describesChild(description)) {
    return await open(description);
  }
  const file = fileOf(pending)!;
  const request = {
    // What looks like a URL in an extent line is a path, as in QEMU.
    filename: resolveFrom(file, asPath(name)),
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

/** Refuse a redirect to a file that the image could not name itself. */
export async function checkRedirect(
  { opening: { options: { gate }, source }, place, filename }: Pending,
  url: string,
): Promise<void> {
  const { named } = place;
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

async function isPermitted(
  { gate, source }: { gate?: Gate; source: unknown },
  file: BlockNode | undefined,
  request: ImplicitOpen,
): Promise<boolean> {
  return gate === undefined
    ? passesByDefault(source, file, request)
    : await passes(gate, request);
}
