/**
 * How `qemu-io` opens files.
 *
 * @module
 */
import { createImage } from "../../core/create.ts";
import { BlockError } from "../../core/errors.ts";
import { nodesOf } from "../../core/extents.ts";
import type { BlockNode } from "../../core/node.ts";
import { openNode as open } from "../../core/open.ts";
import type { CacheMode, OpenOptions } from "../../core/open_options.ts";
import { nestOptions, type OptionValues } from "../../core/options.ts";
import { findDriver } from "../../core/registry.ts";
import { applyFormat, toStack } from "../../core/sources.ts";
import type { Source } from "../../core/spec.ts";
import { MemoryStore } from "../../core/memory_store.ts";
import { checkStack, reporting } from "../images.ts";
import { notAmong, type Program } from "../program.ts";
import type { AioMode } from "../../core/traits.ts";

/** How to open a file. */
export interface Opening {
  /** Its name; without it, `options` describe the file. */
  readonly filename?: string;
  /** Options of the drivers, by dotted name. */
  readonly options: OptionValues;
  readonly readOnly: boolean;
  /** Whether to share all access. */
  readonly forceShare: boolean;
  /** How writes reach the disk. */
  readonly cache: CacheMode;
  /** How to make requests to files. */
  readonly aio?: AioMode;
  /** Whether discards do anything. */
  readonly discard: boolean;
  /** Whether to copy data that is read from backing files. */
  readonly copyOnRead: boolean;
  /** Whether to write to a temporary overlay. */
  readonly snapshot: boolean;
}

/** How files are opened by default. */
export const DEFAULT_OPENING: Opening = {
  options: {},
  readOnly: false,
  forceShare: false,
  cache: "writethrough",
  discard: true,
  copyOnRead: false,
  snapshot: false,
};

/** Open a file. */
export async function openNode(
  program: Program,
  opening: Opening,
): Promise<BlockNode> {
  const { readOnly, forceShare, cache, aio } = opening;
  const { copyOnRead, snapshot } = opening;
  const options: OpenOptions = {
    readOnly: readOnly || snapshot,
    unpack: program.isOurs,
    forceShare,
    cache,
    aio,
    gate: "allow",
    maxChain: program.maxChain,
    secrets: program.secrets,
    ...reporting(program),
  };
  if (copyOnRead && readOnly) {
    throw new BlockError(
      "EINVAL",
      "Can't use copy-on-read on read-only device",
    );
  }
  const source = program.isOurs
    ? sourceOf(opening)
    : checkedSource(program, opening);
  let node: BlockNode;
  if (copyOnRead && !snapshot) {
    node = await open({ driver: "copy-on-read", file: source }, options);
  } else {
    node = await open(source, options);
  }
  if (snapshot) node = await temporaryOverlay(node, readOnly);
  listenToDebuggers(program, node);
  return node;
}

/** The source, without names of nodes, which QEMU's program would look for. */
function checkedSource(program: Program, opening: Opening): Source {
  const { filename = "json:" } = opening;
  const source = sourceOf(opening);
  if (!filename.startsWith("json:")) return source;
  const stack = toStack(source);
  checkStack(program, stack);
  return stack;
}

function sourceOf({ filename, options }: Opening): Source {
  const nested = nestedOptions(options);
  if (filename === undefined) return nested;
  if (Object.keys(options).length === 0) return filename;
  const { driver } = nested;
  const takesName = typeof driver === "string" &&
    findDriver(driver)?.parseFilename !== undefined;
  if (takesName && !filename.startsWith("json:")) {
    // It parses the file name itself.
    return { filename, ...nested };
  }
  const stack = toStack(filename);
  const named = stack.driver === undefined && typeof driver === "string"
    ? applyFormat(stack, driver)
    : stack;
  return merged(named, nested);
}

/** Options overridden by others, at every level. */
function merged(options: OptionValues, others: OptionValues): OptionValues {
  const all = { ...options };
  for (const [name, value] of Object.entries(others)) {
    const before = all[name];
    all[name] = isPlain(before) && isPlain(value)
      ? merged(before, value)
      : value;
  }
  return all;
}

function isPlain(value: unknown): value is OptionValues {
  return typeof value === "object" && value !== null &&
    Object.getPrototypeOf(value) === Object.prototype;
}

/** Nest dotted names, except those of which a part has a value itself. */
function nestedOptions(options: OptionValues): OptionValues {
  const flat: OptionValues = {};
  const others: OptionValues = {};
  for (const [name, value] of Object.entries(options)) {
    const steps = name.split(".");
    const isMixed = steps.slice(1).some((_, length) =>
      Object.hasOwn(options, steps.slice(0, length + 1).join("."))
    );
    (isMixed ? flat : others)[name] = value;
  }
  return { ...nestOptions(others), ...flat };
}

/** A temporary overlay, which is lost when closed. */
async function temporaryOverlay(
  backing: BlockNode,
  readOnly: boolean,
): Promise<BlockNode> {
  try {
    const file = { driver: "memory", store: new MemoryStore() };
    await createImage("qcow2", file, { size: backing.size });
    return await open({ driver: "qcow2", file, backing }, { readOnly });
  } finally {
    // From here on, only the overlay uses it.
    await backing.close();
  }
}

/** Let all nodes with breakpoints report suspended requests. */
function listenToDebuggers(program: Program, node: BlockNode): void {
  for (const { node: { debug } } of nodesOf(node)) {
    if (!debug?.breakpoints) continue;
    debug.breakpoints.report = (line) => program.print(`${line}\n`);
  }
}

/** Whether each write must be durable before it completes. */
export function writesThrough(mode: CacheMode): boolean {
  return mode === "writethrough" || mode === "directsync";
}

const DISCARD_MODES = ["ignore", "unmap", "off", "on"];
const AIO_MODES: readonly AioMode[] = ["threads", "native", "io_uring"];

/** Whether a discard mode lets discards through. */
export function discardMode(mode: unknown): boolean {
  if (mode === "unmap" || mode === "on") return true;
  if (mode === "ignore" || mode === "off") return false;
  throw notAmong(`Invalid discard option: ${mode}`, DISCARD_MODES);
}

/** Parse a mode of making requests. */
export function aioMode(mode: string): AioMode {
  if (AIO_MODES.includes(mode as AioMode)) return mode as AioMode;
  throw notAmong(`Invalid aio option: ${mode}`, AIO_MODES);
}
