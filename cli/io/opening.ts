/**
 * How `qemu-io` opens files.
 *
 * @module
 */
import { createImage } from "../../core/create.ts";
import type { BlockNode } from "../../core/driver.ts";
import {
  type CacheMode,
  openNode as open,
  type OpenOptions,
} from "../../core/open.ts";
import {
  nestOptions,
  type OptionValues,
  parseOption,
} from "../../core/options.ts";
import { parseFilename, type Source } from "../../core/spec.ts";
import { MemoryStore } from "../../mod.ts";
import { CommandError, type Program } from "../program.ts";

/** What was said about a file, and how it is to be opened. */
export interface Opening {
  /** Its name; without it, `options` tell all. */
  readonly filename?: string;
  /** Options of the drivers, by their dotted names. */
  readonly options: OptionValues;
  readonly readOnly: boolean;
  /** How writes reach the disk. */
  readonly cache: CacheMode;
  /** Whether discards do anything. */
  readonly discard: boolean;
  /** Whether to keep what is read from backing files. */
  readonly copyOnRead: boolean;
  /** Whether to write to a temporary overlay. */
  readonly snapshot: boolean;
}

/** How files are opened if nothing else is said. */
export const DEFAULT_OPENING: Opening = {
  options: {},
  readOnly: false,
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
  const { readOnly, cache, copyOnRead, snapshot } = opening;
  const options: OpenOptions = {
    readOnly: readOnly || snapshot,
    cache,
    gate: "allow",
    secrets: program.secrets,
    warn: (message) => program.warn(message),
    report: (line) => program.printError(`${line}\n`),
  };
  const source = sourceOf(opening);
  let node: BlockNode;
  if (copyOnRead && !readOnly && !snapshot) {
    node = await open({ driver: "copy-on-read", file: source }, options);
  } else {
    node = await open(source, options);
  }
  if (snapshot && !readOnly) node = await temporaryOverlay(node);
  listenToDebuggers(program, node);
  return node;
}

function sourceOf({ filename, options }: Opening): Source {
  const nested = nestOptions(options);
  if (filename === undefined) return nested;
  if (Object.keys(options).length === 0) return filename;
  return filename.startsWith("json:")
    ? { ...parseFilename(filename), ...nested }
    : { ...nested, filename };
}

/** Something to write to that is gone when it is closed. */
async function temporaryOverlay(backing: BlockNode): Promise<BlockNode> {
  try {
    const file = { driver: "memory", store: new MemoryStore() };
    await createImage("qcow2", file, { size: backing.size });
    return await open({ driver: "qcow2", file, backing });
  } catch (error) {
    await backing.close();
    throw error;
  }
}

/** Have all nodes with breakpoints tell when they stop a request. */
function listenToDebuggers(program: Program, node: BlockNode): void {
  if (node.debug) node.debug.report = (line) => program.print(`${line}\n`);
  for (const child of Object.values(node.children)) {
    if (child) listenToDebuggers(program, child);
  }
}

/** What options say that any driver understands. */
export function withCommonOptions(opening: Opening): Opening {
  const {
    "read-only": readOnly = opening.readOnly,
    "discard": discard,
    "cache.direct": direct,
    "cache.no-flush": noFlush,
    ...options
  } = opening.options;
  return {
    ...opening,
    options,
    readOnly: flag("read-only", readOnly),
    discard: discard === undefined ? opening.discard : discardMode(discard),
    cache: cacheWith(
      opening.cache,
      direct === undefined ? undefined : flag("cache.direct", direct),
      noFlush === undefined ? undefined : flag("cache.no-flush", noFlush),
    ),
  };
}

function flag(name: string, value: unknown): boolean {
  const spec = { type: "boolean", help: "" } as const;
  return parseOption(name, spec, value) as boolean;
}

/** A cache mode, two of the three things that it stands for changed. */
function cacheWith(
  mode: CacheMode,
  direct: boolean = mode === "none" || mode === "directsync",
  noFlush: boolean = mode === "unsafe",
): CacheMode {
  if (noFlush) return "unsafe";
  if (direct) return writesThrough(mode) ? "directsync" : "none";
  return writesThrough(mode) ? "writethrough" : "writeback";
}

/** Whether each write is to reach the disk before it is done. */
export function writesThrough(mode: CacheMode): boolean {
  return mode === "writethrough" || mode === "directsync";
}

/** Whether a discard mode lets discards through. */
export function discardMode(mode: unknown): boolean {
  if (mode === "unmap" || mode === "on") return true;
  if (mode === "ignore" || mode === "off") return false;
  throw new CommandError(`Invalid discard option: ${mode}`);
}

/** Refuse what is no way of asynchronous I/O; ours is always the same. */
export function checkAioMode(mode: string): void {
  if (["threads", "native", "io_uring"].includes(mode)) return;
  throw new CommandError(`Invalid aio option: ${mode}`);
}
