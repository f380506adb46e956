/** `map`: show what is allocated in an image, and where. @module */
import "../../drivers/reading.ts";
import { reasonOf } from "../../core/errors.ts";
import {
  type ChainExtent,
  chainStatus,
  isStored,
  skipFilters,
} from "../../core/extents.ts";
import { nameOf } from "../../core/node_names.ts";
import type { BlockNode } from "../../core/node.ts";
import {
  type Command,
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  type Invocation,
  OBJECT,
  OUTPUT,
  outputFormat,
} from "../command.ts";
import { openImageArgument, usingNodes } from "../images.ts";
import { integerText, sizeArgument } from "../numbers.ts";
import type { PictureSettings } from "../picture.ts";
import { CommandError, usageError } from "../program.ts";
import { inRelease } from "../qemu_releases.ts";

/** One line of the map. */
interface Entry {
  start: number;
  length: number;
  depth: number;
  present: boolean;
  zero: boolean;
  data: boolean;
  compressed: boolean;
  /** Offset in `file`, if it is stored plainly. */
  offset?: number;
  file?: BlockNode;
}

/** Characters printed at once, which is faster than line by line. */
const PIECE = 4096;

/** The command. */
export const command: Command = {
  summary: "Show what is allocated in an image, and where",
  operands: "FILE",
  options: [
    HELP,
    OBJECT,
    IMAGE_OPTS,
    FORCE_SHARE,
    FORMAT,
    OUTPUT,
    {
      short: "s",
      long: "start-offset",
      argument: "SIZE",
      help: "offset to begin at",
    },
    {
      short: "l",
      long: "max-length",
      argument: "SIZE",
      help: "length of the range to show",
    },
  ],
  ownOptions: [
    {
      long: "picture",
      help: "draw the disk and its file in letters, coloured on a terminal",
    },
    {
      long: "svg",
      argument: "OUT",
      help: "write that picture to a file as SVG; - is standard output",
    },
    {
      long: "png",
      argument: "OUT",
      help: "write that picture to a file as PNG; - is standard output",
    },
    {
      long: "bitmap",
      argument: "NAME",
      help: "mark what this bitmap has recorded in the picture",
    },
  ],

  async run(invocation) {
    const { program } = invocation;
    const { output, start, maxLength, drawing } = parse(invocation);
    const [file] = invocation.operands;
    const node = await openImageArgument(program, file, invocation.image);
    return await usingNodes([node], async () => {
      if (drawing) {
        const { draw } = await import("../picture.ts");
        await draw(program, node, drawing);
        return 0;
      }
      const end = Math.min(node.size, start + maxLength);
      let text = "";
      const print = (line: string) => {
        text += line;
        if (text.length < PIECE) return;
        program.print(text);
        text = "";
      };
      const walk = (found: (entry: Entry) => void) =>
        forEachEntry(node, start, end, found);
      try {
        if (output === "json") await printJson(walk, start, print);
        else await printHuman(walk, print);
      } finally {
        program.print(text);
      }
      return 0;
    });
  },
};

function parse(invocation: Invocation) {
  let output: string | undefined;
  let start = 0;
  let maxLength = Infinity;
  const settings: PictureSettings = {};
  for (const [option, argument] of invocation.options()) {
    if (option === "output") output = argument;
    else if (option === "s") start = sizeArgument("start offset", argument);
    else if (option === "l") maxLength = sizeArgument("max length", argument);
    else if (option === "picture") settings.text = true;
    else if (option === "svg") settings.svg = argument;
    else if (option === "png") settings.png = argument;
    else if (option === "bitmap") settings.bitmap = argument;
  }
  invocation.expectOneImage();
  const isDrawn = settings.text || (settings.svg ?? settings.png) !== undefined;
  if (!isDrawn && settings.bitmap !== undefined) {
    throw usageError("--bitmap needs --picture, --svg or --png");
  }
  const isMap = output !== undefined || start > 0 || maxLength < Infinity;
  if (isDrawn && isMap) {
    throw usageError("A picture shows all of an image: no -s, -l or --output");
  }
  return {
    output: outputFormat(output),
    start,
    maxLength,
    drawing: isDrawn ? settings : undefined,
  };
}

/** Visits all entries in order. */
type Walk = (found: (entry: Entry) => void) => Promise<void>;

/**
 * The entries of a range, not yet merged. (Not a generator, which is slower:
 * there may be millions of them.)
 */
async function forEachEntry(
  node: BlockNode,
  start: number,
  end: number,
  found: (entry: Entry) => void,
): Promise<void> {
  for (let at = start; at < end;) {
    let extent: ChainExtent;
    try {
      extent = await chainStatus(node, at, end - at);
    } catch (error) {
      throw new CommandError(
        `Could not read file metadata: ${reasonOf(error)}`,
      );
    }
    found(
      isUnknown(node, extent)
        ? { ...NOTHING, ...rangeOf(extent) }
        : entryOf(extent),
    );
    at += extent.length;
  }
}

/**
 * Whether the content of a range is unknown: below a protocol, no layer reads
 * as zeroes. (`x-dirty-bitmap` of `nbd` reports dirty ranges like that.)
 */
function isUnknown(top: BlockNode, { allocated, depth }: ChainExtent): boolean {
  return !allocated && depth === 0 &&
    skipFilters(top).driver.role === "protocol";
}

function rangeOf({ offset: start, length }: ChainExtent) {
  return { start, length };
}

function entryOf(extent: ChainExtent): Entry {
  const { allocated, zero, compressed, hostOffset, file } = extent;
  return {
    start: extent.offset,
    length: extent.length,
    depth: extent.depth,
    present: allocated,
    zero,
    data: isStored(extent),
    compressed,
    offset: hostOffset,
    file: hostOffset === undefined ? undefined : file,
  };
}

/** Whether `next` continues `entry` in every respect. */
function continues(entry: Entry, next: Entry): boolean {
  return entry.zero === next.zero && entry.data === next.data &&
    entry.depth === next.depth && entry.present === next.present &&
    entry.compressed === next.compressed &&
    entry.file === next.file &&
    (entry.offset === undefined
      ? next.offset === undefined
      : next.offset === entry.offset + entry.length);
}

async function printJson(
  walk: Walk,
  start: number,
  print: (text: string) => void,
): Promise<void> {
  print("[");
  const showsCompressed = inRelease("mapCompressed");
  let entry: Entry | undefined;
  await walk((next) => {
    if (entry && continues(entry, next)) {
      entry.length += next.length;
      return;
    }
    if (entry) print(`${jsonLine(entry, showsCompressed)},\n`);
    entry = next;
  });
  const last = entry ?? { ...NOTHING, start };
  print(`${jsonLine(last, showsCompressed)}]\n`);
}

/** The entry of an empty range. */
const NOTHING: Entry = {
  start: 0,
  length: 0,
  depth: 0,
  present: false,
  zero: false,
  data: false,
  compressed: false,
};

function jsonLine(entry: Entry, showsCompressed: boolean): string {
  const compressed = showsCompressed
    ? `, "compressed": ${entry.compressed}`
    : "";
  const place = entry.offset === undefined ? "" : `, "offset": ${entry.offset}`;
  return `{ "start": ${integerText(entry.start)}, ` +
    `"length": ${integerText(entry.length)}, ` +
    `"depth": ${entry.depth}, "present": ${entry.present}, ` +
    `"zero": ${entry.zero}, "data": ${entry.data}${compressed}${place}}`;
}

async function printHuman(
  walk: Walk,
  print: (text: string) => void,
): Promise<void> {
  const columns = ["Offset", "Length", "Mapped to"];
  print(`${columns.map((name) => name.padEnd(16)).join("")}File\n`);
  let entry: Entry | undefined;
  await walk((next) => {
    if (entry && continues(entry, next)) {
      entry.length += next.length;
      return;
    }
    if (entry) print(humanLine(entry));
    entry = next;
    // Only data is shown, so all other kinds can be merged.
    if (!entry.data || entry.zero) {
      entry.data = false;
      entry.zero = true;
    }
  });
  if (entry) print(humanLine(entry));
}

function humanLine(entry: Entry): string {
  if (!entry.data) return "";
  if (entry.offset === undefined) {
    throw new CommandError(
      "File contains external, encrypted or compressed clusters.",
    );
  }
  if (entry.zero) return "";
  const numbers = [entry.start, entry.length, entry.offset];
  const file = entry.file ? nameOf(entry.file) : "";
  return `${numbers.map(hexColumn).join("")}${file}\n`;
}

/** C's `%#-16x`, which writes zero without its prefix. */
function hexColumn(value: number): string {
  return (value === 0 ? "0" : `0x${value.toString(16)}`).padEnd(16);
}
