/**
 * `open`, `reopen` and `close`.
 *
 * @module
 */
import { asBlockError, BlockError } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { type OptionValues, parseKeyValueList } from "../../core/options.ts";
import { loadTables } from "../../core/registry.ts";
import type { DriverTraits } from "../../core/traits.ts";
import type { OptionSpec } from "../getopt.ts";
import { cacheMode } from "../images.ts";
import { CommandError } from "../program.ts";
import { type Call, type IoCommand, Refusal } from "./command.ts";
import {
  aioMode,
  DEFAULT_OPENING,
  discardMode,
  type Opening,
} from "./opening.ts";
import type { Session } from "./session.ts";

/** Options of the program and of `open`. */
export const OPEN_OPTIONS: readonly OptionSpec[] = [
  { short: "r", long: "read-only", help: "do not write to it" },
  { short: "s", long: "snapshot", help: "write to a temporary overlay" },
  { short: "n", long: "nocache", help: "the same as -t none" },
  {
    short: "C",
    long: "copy-on-read",
    help: "copy data read from backing files into the image",
  },
  { short: "k", long: "native-aio", help: "the same as -i native" },
  {
    short: "i",
    long: "aio",
    argument: "MODE",
    help: "threads, native (needs -n) or io_uring; all equivalent",
  },
  {
    short: "d",
    long: "discard",
    argument: "MODE",
    help: "unmap (the default), or ignore discards",
  },
  {
    short: "t",
    long: "cache",
    argument: "MODE",
    help: "writethrough (the default), writeback, none, directsync, unsafe",
  },
  {
    short: "U",
    long: "force-share",
    help: "open it even if another process is writing to it",
  },
];

/** The parts of an {@linkcode Opening} that options change. */
type Changes = { -readonly [name in keyof Opening]?: Opening[name] };

/** Parse an option of {@linkcode OPEN_OPTIONS}. */
export function takeOpening(
  changes: Changes,
  option: string,
  argument: string,
): void {
  if (option === "r") changes.readOnly = true;
  else if (option === "s") changes.snapshot = true;
  else if (option === "n") changes.cache = "none";
  else if (option === "C") changes.copyOnRead = true;
  else if (option === "U") changes.forceShare = true;
  else if (option === "k") changes.aio = "native";
  else if (option === "i") changes.aio = aioMode(argument);
  else if (option === "d") changes.discard = discardMode(argument);
  else if (option === "t") changes.cache = cacheMode(argument, "cache option");
}

/** The options of `name=value,…`, by name. */
function namedOptions(
  { program }: Session,
  text: string,
  firstKey?: string,
): OptionValues {
  const warn = (message: string) => program.warn(message);
  return Object.fromEntries(parseKeyValueList(text, firstKey, warn));
}

/** `open`. */
export const open: IoCommand = {
  name: "open",
  alias: "o",
  usage: "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
  summary: "open the file specified by path",
  min: 1,
  max: Infinity,
  needs: "nothing",
  options: [
    ...OPEN_OPTIONS.map(({ long: _, ...option }) => option),
    { short: "o", argument: "OPTIONS", help: "driver=qcow2,NAME=VALUE,…" },
  ],

  async run(call) {
    const { session } = call;
    const changes: Changes = {};
    const options: OptionValues = {};
    for (const [option, argument] of call.options()) {
      if (option !== "o") takeOpening(changes, option, argument);
      else if (!session.imageOpts) {
        Object.assign(options, namedOptions(call.session, argument));
      } else {
        throw new Refusal(
          "--image-opts and 'open -o' are mutually exclusive",
        );
      }
    }
    if (call.operands.length > 1) throw call.misused();
    const [file] = call.operands;
    await openFile(session, file, { ...changes, options });
  },
};

/** Open the file that `file` names or the options describe. */
export async function openFile(
  session: Session,
  file: string | undefined,
  changes: Changes,
): Promise<void> {
  if (session.isOpen) {
    throw new CommandError("file open already, try 'help close'");
  }
  const options = { ...changes.options };
  let filename = file;
  if (session.imageOpts && file !== undefined) {
    filename = undefined;
    Object.assign(options, namedOptions(session, file, "file"));
  }
  const { "force-share": shares } = options;
  if (changes.forceShare && shares !== undefined && shares !== "on") {
    throw new CommandError("-U conflicts with image options");
  }
  try {
    await session.open({
      ...DEFAULT_OPENING,
      ...changes,
      options,
      ...(filename !== undefined && { filename }),
    });
    if (session.image.readOnly && !session.opening.readOnly) {
      await session.close();
      throw new BlockError("EACCES", "Block node is read-only");
    }
  } catch (error) {
    const name = filename === undefined ? "" : ` device ${filename}`;
    throw asBlockError(error).prefixed(`can't open${name}: `);
  }
}

const CACHE_OPTIONS = ["cache.direct", "cache.no-flush"];

/** Generic options that can be changed. */
const CHANGEABLE = [
  ...CACHE_OPTIONS,
  "read-only",
  "auto-read-only",
  "discard",
  "detect-zeroes",
];

/** `reopen`. */
export const reopen: IoCommand = {
  name: "reopen",
  usage: "[(-r|-w)] [-c cache] [-o options]",
  summary: "reopens an image with new options",
  max: Infinity,
  options: [
    { short: "c", argument: "MODE", help: "the new cache mode" },
    { short: "o", argument: "OPTIONS", help: "new options of the driver" },
    { short: "r", help: "read-only" },
    { short: "w", help: "open for reading and writing" },
  ],

  async run(call) {
    const { session } = call;
    const { options, ...changes } = parseReopen(call);
    if (call.operands.length > 0) throw call.misused();
    if (changes.readOnly !== undefined && "read-only" in options) {
      throw new CommandError("Cannot set both -r/-w and 'read-only'");
    }
    const hasCacheOption = CACHE_OPTIONS.some((name) => name in options);
    if (changes.cache !== undefined && hasCacheOption) {
      throw new CommandError("Cannot set both -c and the cache options");
    }
    const { opening, image: { node } } = session;
    await checkChangeable(node, opening.options, options);
    const changed = reopening(node.driver, opening, changes, options);
    if (opening.snapshot) {
      // The data written to it would be lost.
      throw new CommandError("Cannot reopen a temporary overlay");
    }
    await session.reopen(changed, { ...changes, options });
  },
};

/** How a file will be open after changes. */
function reopening(
  driver: DriverTraits,
  opening: Opening,
  changes: Changes,
  options: OptionValues,
): Opening {
  const before = { ...opening.options };
  // A setting with its own letter replaces the option.
  if (changes.readOnly !== undefined) delete before["read-only"];
  if (changes.cache !== undefined) {
    CACHE_OPTIONS.forEach((name) => delete before[name]);
  }
  const joined = driver.joinOptions?.(before, options) ??
    { ...before, ...options };
  return { ...opening, ...changes, options: joined };
}

function parseReopen(call: Call): Changes & { options: OptionValues } {
  const changes: Changes & { options: OptionValues } = { options: {} };
  for (const [option, argument] of call.options()) {
    if (option === "o") {
      Object.assign(changes.options, namedOptions(call.session, argument));
    } else if (option === "c") {
      changes.cache = cacheMode(argument, "cache option");
    } else {
      if (changes.readOnly !== undefined) {
        throw new CommandError("Only one -r/-w option may be given");
      }
      changes.readOnly = option === "r";
    }
  }
  return changes;
}

/** Refuse options that the driver lacks or that cannot be changed. */
async function checkChangeable(
  node: BlockNode,
  before: OptionValues,
  options: OptionValues,
): Promise<void> {
  await loadTables(node.driver);
  for (const [name, value] of Object.entries(options)) {
    if (before[name] === value || CHANGEABLE.includes(name)) continue;
    if (name === "driver" && value === node.driver.name) continue;
    const [role, ...rest] = name.split(".");
    const child = node.children[role];
    const { role: kind, openOptions = {} } = node.driver;
    if (child && rest.length > 0) {
      await checkChangeable(child, {}, { [rest.join(".")]: value });
    } else if (kind === "protocol" || !Object.hasOwn(openOptions, name)) {
      throw new CommandError(`Cannot change the option '${name}'`);
    }
  }
}

/** `close`. */
export const close: IoCommand = {
  name: "close",
  alias: "c",
  summary: "close the current open file",
  run: async ({ session }) => void await session.close(),
};
