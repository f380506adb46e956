/**
 * Opening a VMDK: its header or descriptor, and the extents they refer to.
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import type { OpenContext } from "../../core/driver.ts";
import { BlockError, invalid } from "../../core/errors.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import {
  createTypeOf,
  type Descriptor,
  descriptorText,
  type ExtentLine,
  MAX_DESCRIPTOR,
  parseDescriptor,
  parseExtents,
} from "./descriptor.ts";
import { type Extent, FlatExtent, ZeroExtent } from "./extent.ts";
import {
  descriptorAlone,
  MAGIC,
  readLayout,
  readSector,
  type SparseLayout,
} from "./layout.ts";
import { readSeSparse } from "./sesparse.ts";
import { SparseExtent } from "./sparse_extent.ts";
import { ImageTables, type Step } from "../../core/table_pages.ts";

/** The parts of an opened image. */
export interface OpenedImage {
  readonly createType: string;
  readonly extents: readonly Extent[];
  /** The files of the extents, by child name. */
  readonly files: { readonly [name: string]: BlockNode };
  readonly descriptor: Descriptor;
  /** Offset and maximum length of the descriptor in `file`. */
  readonly place: { readonly offset: number; readonly length: number };
  /** Whether all of it can be written. */
  readonly isWritable: boolean;
}

/** Opens the file of an extent, which the image names. */
type OpenPart = (
  index: number,
  name: string,
) => Promise<{ child: string; node: BlockNode }>;

/** Most bytes of an embedded descriptor. */
const MAX_EMBEDDED = 1024 * 1024;

/** Determine the kind of an image, and open its extents. */
export async function openImage(
  file: BlockNode,
  context: OpenContext,
  openPart: OpenPart,
): Promise<OpenedImage> {
  if (file.size < 4) {
    throw invalid("File is too small, not a valid image");
  }
  const header = await readSector(file, 0);
  const magic = header.getUint32(0);
  if (magic !== MAGIC.HOSTED && magic !== MAGIC.COWD) {
    return await openDescribed(file, 0, context, openPart);
  }
  const alone = descriptorAlone(header);
  if (alone !== undefined) {
    const text = await readText(file, alone);
    // The descriptor of an empty disk in one file has no other extents.
    if (!isOneFile(text)) {
      return await openDescribed(file, alone, context, openPart);
    }
  }
  const layout = await readLayout(file, context.readOnly, header);
  const { offset, length } = layout.descriptor;
  const place = { offset, length: Math.min(length, MAX_EMBEDDED) };
  const descriptor = parseDescriptor(await readBytes(file, place));
  const tables = new ImageTables(stepOf(context));
  const extent = new SparseExtent("", 0, file, layout, tables);
  return {
    createType: layout.isCompressed ? "streamOptimized" : "monolithicSparse",
    extents: [extent],
    files: {},
    descriptor,
    place,
    isWritable: isWritable(layout),
  };
}

function isOneFile(text: string): boolean {
  return /^[ \t]*createType[ \t]*=[ \t]*"(monolithicSparse|streamOptimized)"/im
    .test(text);
}

/** Whether it can be written without updating other metadata. */
function isWritable({ kind, version, isCompressed, hasFooter }: SparseLayout) {
  return kind === "hosted" && !hasFooter && (version < 3 || isCompressed);
}

async function readBytes(
  file: BlockNode,
  { offset, length }: { offset: number; length: number },
): Promise<Uint8Array> {
  const inside = Math.max(0, Math.min(length, file.size - offset));
  const bytes = allocate(inside);
  if (inside > 0) await readPadded(file, offset, [bytes]);
  return bytes;
}

async function readText(file: BlockNode, offset: number): Promise<string> {
  return descriptorText(
    await readBytes(file, { offset, length: MAX_DESCRIPTOR }),
  );
}

/** Open an image from its descriptor. */
async function openDescribed(
  file: BlockNode,
  offset: number,
  context: OpenContext,
  openPart: OpenPart,
): Promise<OpenedImage> {
  const place = { offset, length: MAX_DESCRIPTOR };
  const bytes = await readBytes(file, place);
  const text = descriptorText(bytes);
  const createType = createTypeOf(text);
  const lines = parseExtents(text);
  const descriptor = parseDescriptor(bytes);
  const opener = new Opener(context, openPart);
  for (const line of lines) await opener.add(line);
  const { extents, files, isWritable } = opener;
  return { createType, extents, files, descriptor, place, isWritable };
}

/** The announcer of steps, for listeners. */
export function stepOf(context: OpenContext): Step {
  return (name, file) => {
    context.event?.(name);
    return file.debug?.event(name);
  };
}

/** Opens the extents one by one. */
class Opener {
  readonly extents: Extent[] = [];
  readonly files: { [name: string]: BlockNode } = {};
  isWritable = true;
  readonly #context: OpenContext;
  readonly #openPart: OpenPart;
  readonly #tables: ImageTables;
  /** By their names in the image. */
  readonly #opened = new Map<string, BlockNode>();
  /** Files with tables: none can be two extents at once. */
  readonly #sparse = new Set<BlockNode>();

  constructor(context: OpenContext, openPart: OpenPart) {
    this.#context = context;
    this.#tables = new ImageTables(stepOf(context));
    this.#openPart = openPart;
  }

  async add(line: ExtentLine): Promise<void> {
    const { extents } = this;
    const start = extents.at(-1)?.end ?? 0;
    this.isWritable &&= line.isWritable;
    if (line.type === "ZERO") {
      extents.push(new ZeroExtent(start, line.size));
      return;
    }
    const file = await this.#open(line.filename);
    const { type, size } = line;
    if (type === "FLAT" || type === "VMFS") {
      extents.push(new FlatExtent(type, start, size, file, line.start));
      return;
    }
    const { readOnly } = this.#context;
    const layout = type === "SESPARSE"
      ? await readSeSparse(file, readOnly)
      : await readLayout(file, readOnly);
    this.isWritable &&= isWritable(layout) && !layout.isCompressed &&
      !this.#sparse.has(file);
    this.#sparse.add(file);
    // Its own capacity applies, as in QEMU; without any it is left out.
    if (layout.capacity === 0) return;
    extents.push(new SparseExtent(type, start, file, layout, this.#tables));
    if (!Number.isSafeInteger(extents.at(-1)!.end)) {
      throw new BlockError("EFBIG");
    }
  }

  async #open(name: string): Promise<BlockNode> {
    const known = this.#opened.get(name);
    if (known) return known;
    const { child, node } = await this.#openPart(this.extents.length, name);
    this.files[child] = node;
    this.#opened.set(name, node);
    return node;
  }
}
