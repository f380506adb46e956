/**
 * Creating VMDK images.
 *
 * @module
 */
import {
  allocate,
  divideUp,
  isExactSize,
  roundUp,
  SECTOR_SIZE,
} from "../../core/bytes.ts";
import type { CreateContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import { lastSeparator } from "../../core/names.ts";
import type { BlockNode } from "../../core/node.ts";
import { notAmong, type OptionValues } from "../../core/options.ts";
import { nameText } from "../../core/values.ts";
import { type NewDescriptor, newDescriptor, NO_PARENT } from "./descriptor.ts";
import {
  DESCRIPTOR,
  encodeHeader,
  FLAG,
  GRAIN_SECTORS,
  TABLE_ENTRIES,
  TABLE_SECTORS,
} from "./layout.ts";

const SUBFORMATS = [
  "monolithicSparse",
  "monolithicFlat",
  "twoGbMaxExtentSparse",
  "twoGbMaxExtentFlat",
  "streamOptimized",
];
const ADAPTER_TYPES = ["ide", "buslogic", "lsilogic", "legacyESX"];

/** The file's name in a descriptor whose real name is not known. */
const FILENAME = "disk.vmdk";

/** The longest name in the descriptor of a stream, in UTF-16 code units. */
const MAX_NAME = 255;

/** Bytes of each extent of a split disk. */
const EXTENT_SIZE = 2 ** 31;
/**
 * Most bytes of a sparse extent: 32 Mi tables, as many as QEMU's driver reads.
 * (Only 2 TiB of them can be written.)
 */
const MAX_SPARSE = 2 ** 25 * TABLE_ENTRIES * GRAIN_SECTORS * SECTOR_SIZE;
/** Directory entries written at once. */
const DIRECTORY_PIECE = 64 * 1024;

/** The validated options. */
export interface Plan {
  readonly subformat: string;
  readonly isFlat: boolean;
  readonly isSplit: boolean;
  readonly isStream: boolean;
  readonly zeroedGrains: boolean;
  /** Bytes, a multiple of 512. */
  readonly size: number;
  readonly backingFile?: string;
  readonly about: Pick<
    NewDescriptor,
    "adapterType" | "hwVersion" | "toolsVersion"
  >;
}

/**
 * Check the options of a new image.
 *
 * @throws {BlockError} EINVAL, ENOTSUP or EFBIG, with QEMU's messages.
 */
export function planImage(options: OptionValues): Plan {
  if (options.backing_fmt !== undefined && options.backing_fmt !== "vmdk") {
    throw invalid("backing_file must be a vmdk image");
  }
  if (options.size === undefined) {
    throw invalid("Image creation needs a size parameter");
  }
  const word = (name: string, words: readonly string[]) => {
    const value = options[name] as string | undefined ?? words[0];
    if (words.includes(value)) return value;
    throw notAmong(`invalid parameter value: ${nameText(value)}`, words);
  };
  const adapterType = word("adapter_type", ADAPTER_TYPES);
  const subformat = word("subformat", SUBFORMATS);
  const isFlat = subformat.endsWith("Flat");
  const isSplit = subformat.startsWith("twoGb");
  const backingFile = options.backing_file as string | undefined;
  const zeroedGrains = options.zeroed_grain === true;
  const hwversion = options.hwversion as string | undefined ?? "undefined";
  if (options.compat6 === true && hwversion !== "undefined") {
    throw invalid("compat6 cannot be enabled with hwversion set");
  }
  if (isFlat && backingFile !== undefined) {
    throw new BlockError("ENOTSUP", "Flat image can't have backing file");
  }
  if (isFlat && zeroedGrains) {
    throw new BlockError("ENOTSUP", "Flat image can't enable zeroed grain");
  }
  const size = roundUp(options.size as number, SECTOR_SIZE);
  if (!isExactSize(size) || (!isFlat && !isSplit && size > MAX_SPARSE)) {
    throw new BlockError("EFBIG", "The disk is too large for a VMDK");
  }
  const hwVersion = options.compat6 === true
    ? "6"
    : hwversion === "undefined"
    ? "4"
    : hwversion;
  const toolsVersion = options.toolsversion as string | undefined ??
    "2147483647";
  for (const text of [backingFile, hwVersion, toolsVersion]) {
    if (text !== undefined) checkQuotable(text);
  }
  return {
    subformat,
    isFlat,
    isSplit,
    isStream: subformat === "streamOptimized",
    zeroedGrains,
    size,
    backingFile,
    about: { adapterType, hwVersion, toolsVersion },
  };
}

function isQuotable(text: string): boolean {
  return !/["\r\n\0]/.test(text);
}

/** Refuse characters that would end the quotes in a descriptor. */
function checkQuotable(text: string): void {
  if (isQuotable(text)) return;
  throw invalid(`A VMDK descriptor cannot hold the text ${nameText(text)}`);
}

/** Create an image. */
export async function create(
  options: OptionValues,
  context: CreateContext,
): Promise<void> {
  const plan = planImage(options);
  const { size, isFlat, isSplit, backingFile } = plan;
  const parts = partsOf(plan, context.filename);
  for (const { name } of parts) checkQuotable(name);
  const parent = backingFile === undefined
    ? {}
    : { parentFile: backingFile, parentCid: await readCid(context, plan) };
  const own = fileName(context.filename);
  checkQuotable(own);
  const isAlone = !isFlat && !isSplit;
  const text = newDescriptor({
    createType: plan.subformat,
    parentCid: NO_PARENT,
    ...parent,
    extents: isAlone
      ? [sparseLine(size, own)]
      : parts.map(({ name, size }) =>
        isFlat
          ? `RW ${size / SECTOR_SIZE} FLAT "${name}" 0`
          : sparseLine(size, name)
      ),
    size,
    ...plan.about,
  });
  if (isAlone && text.length > DESCRIPTOR.length * SECTOR_SIZE) {
    throw invalid("The VMDK descriptor would be too long");
  }
  const file = await context.createFile(0);
  for (const { name, size } of parts) {
    await context.createPart(
      name,
      isFlat ? size : 0,
      undefined,
      async (part) => {
        if (!isFlat) await writeTables(part, size, plan);
      },
    );
  }
  if (isAlone) await writeTables(file, size, plan);
  await file.writev!(isAlone ? DESCRIPTOR.start * SECTOR_SIZE : 0, [text]);
}

/** The name in the descriptor of a stream, whatever becomes of that. */
export function streamName(path = ""): string {
  const name = fileName(path);
  return isQuotable(name) && name.length <= MAX_NAME ? name : FILENAME;
}

/** The line of a sparse extent in the descriptor. */
export function sparseLine(size: number, name: string): string {
  return `RW ${size / SECTOR_SIZE} SPARSE "${name}"`;
}

/** The extents in files of their own. */
function partsOf(
  { size, isFlat, isSplit }: Plan,
  filename: string,
): { name: string; size: number }[] {
  if (!isFlat && !isSplit) return [];
  const name = fileName(filename);
  const dot = name.lastIndexOf(".");
  const stem = dot < 0 ? name : name.slice(0, dot);
  const suffix = dot < 0 ? "" : name.slice(dot);
  const parts: { name: string; size: number }[] = [];
  for (let at = 0; at < size;) {
    const length = isSplit ? Math.min(EXTENT_SIZE, size - at) : size;
    const number = `${parts.length + 1}`.padStart(3, "0");
    const mark = isSplit ? `${isFlat ? "f" : "s"}${number}` : "flat";
    parts.push({ name: `${stem}-${mark}${suffix}`, size: length });
    at += length;
  }
  return parts;
}

/** The name of a file in its folder, or any name if it has no folder. */
function fileName(path: string): string {
  if (path === "" || path.startsWith("json:")) return FILENAME;
  return path.slice(lastSeparator(path) + 1);
}

/** The current content id of the parent. */
async function readCid(
  context: CreateContext,
  { backingFile }: Plan,
): Promise<number> {
  const parent = await context.openBeside(backingFile!);
  try {
    const { name } = parent.driver;
    if (name !== "vmdk") {
      throw invalid(`Invalid backing file format: ${name}. Must be vmdk`);
    }
    const { specific } = await parent.info!();
    return specific!.data.cid as number;
  } finally {
    await parent.close();
  }
}

/**
 * Write the header and the directories of a sparse extent; its tables are zero.
 */
async function writeTables(
  file: BlockNode,
  size: number,
  { isStream, zeroedGrains }: Plan,
): Promise<void> {
  const capacity = size / SECTOR_SIZE;
  const tables = divideUp(divideUp(capacity, GRAIN_SECTORS), TABLE_ENTRIES);
  const directorySectors = divideUp(tables * 4, SECTOR_SIZE);
  const redundant = DESCRIPTOR.start + DESCRIPTOR.length;
  const directory = redundant + directorySectors + tables * TABLE_SECTORS;
  const overhead = roundUp(
    directory + directorySectors + tables * TABLE_SECTORS,
    GRAIN_SECTORS,
  );
  await file.truncate!(overhead * SECTOR_SIZE);
  for (const start of [redundant, directory]) {
    await writeDirectory(file, start, start + directorySectors, tables);
  }
  const header = encodeHeader({
    version: isStream ? 3 : zeroedGrains ? 2 : 1,
    flags: FLAG.NEWLINES | FLAG.REDUNDANT |
      (isStream ? FLAG.COMPRESSED | FLAG.MARKERS : 0) |
      (zeroedGrains ? FLAG.ZEROED_GRAINS : 0),
    capacity,
    redundant,
    directory,
    overhead,
    isCompressed: isStream,
  });
  await file.writev!(0, [header]);
}

async function writeDirectory(
  file: BlockNode,
  start: number,
  firstTable: number,
  tables: number,
): Promise<void> {
  for (let from = 0; from < tables; from += DIRECTORY_PIECE) {
    const count = Math.min(DIRECTORY_PIECE, tables - from);
    const bytes = allocate(count * 4);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    for (let i = 0; i < count; i++) {
      view.setUint32(i * 4, firstTable + (from + i) * TABLE_SECTORS, true);
    }
    await file.writev!(start * SECTOR_SIZE + from * 4, [bytes]);
  }
}
