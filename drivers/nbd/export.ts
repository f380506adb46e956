/**
 * An export: a disk with its name and metadata contexts.
 *
 * @module
 */
import { isStored } from "../../core/extents.ts";
import type { Image } from "../../core/image.ts";
import { giveWay } from "../../core/runtime.ts";
import {
  ALLOCATION_DEPTH,
  BASE_ALLOCATION,
  type BlockSizes,
  DIRTY_BITMAP,
  FLAG,
  STATE,
} from "./wire.ts";

/**
 * A bitmap exported as `qemu:dirty-bitmap:NAME`.
 *
 * @category Network
 */
export interface NbdBitmap {
  /** Its name. */
  readonly name: string;
  /** The dirty extents of a range, in order; neighbours are merged. */
  dirty(offset: number, length: number): AsyncIterable<DirtyRange>;
}

/**
 * A dirty range of a disk, in bytes.
 *
 * @category Network
 */
export interface DirtyRange {
  /** Its offset. */
  readonly offset: number;
  /** Its length. */
  readonly length: number;
}

/** A run of a metadata context: a number of bytes with these flags. */
export interface Run {
  readonly length: number;
  readonly flags: number;
}

/** A metadata context. */
export interface MetaContext {
  readonly name: string;
  /** The first run of a range. */
  run(offset: number, length: number): Run | Promise<Run>;
  /** The flags of a block that consists of two runs. */
  join(first: number, second: number): number;
}

/** A disk and its properties as an export. */
export interface Export {
  readonly name: string;
  readonly description: string;
  /** Bytes. */
  readonly size: number;
  readonly writable: boolean;
  /** Whether several clients may use it at once. */
  readonly shared: boolean;
  readonly blockSizes: BlockSizes;
  /** Their indices are the context ids. */
  readonly contexts: readonly MetaContext[];
}

/** The metadata contexts of a disk. */
export function contextsOf(
  image: Image,
  { allocationDepth = false, bitmaps = [] }: {
    readonly allocationDepth?: boolean;
    readonly bitmaps?: readonly NbdBitmap[];
  },
): MetaContext[] {
  return [
    {
      name: BASE_ALLOCATION,
      run: (...range) => allocationRun(image, ...range),
      // Data anywhere makes it neither a hole nor zero.
      join: (first, second) => first & second,
    },
    ...(allocationDepth
      ? [{
        name: ALLOCATION_DEPTH,
        run: (offset: number, length: number) =>
          depthRun(image, offset, length),
        join: Math.max,
      }]
      : []),
    ...bitmaps.map((bitmap): MetaContext => ({
      name: DIRTY_BITMAP + bitmap.name,
      run: (offset, length) => bitmapRun(bitmap, offset, length),
      join: (first, second) => first | second,
    })),
  ];
}

async function allocationRun(
  image: Image,
  offset: number,
  length: number,
): Promise<Run> {
  const extent = await image.status(offset, length);
  const flags = (isStored(extent) ? 0 : STATE.HOLE) |
    (extent.zero ? STATE.ZERO : 0);
  return { length: extent.length, flags };
}

async function depthRun(
  image: Image,
  offset: number,
  length: number,
): Promise<Run> {
  const extent = await image.status(offset, length);
  return {
    length: extent.length,
    flags: extent.allocated ? extent.depth + 1 : 0,
  };
}

async function bitmapRun(
  bitmap: NbdBitmap,
  offset: number,
  length: number,
): Promise<Run> {
  const end = offset + length;
  for await (const dirty of bitmap.dirty(offset, length)) {
    if (dirty.offset > offset) {
      return { length: Math.min(dirty.offset, end) - offset, flags: 0 };
    }
    return {
      length: Math.min(dirty.offset + dirty.length, end) - offset,
      flags: 1,
    };
  }
  return { length, flags: 0 };
}

/** Lookups before other tasks get a turn. */
const BURST = 256;

/**
 * The runs of a range, equal neighbours merged: at most `most`, which may cover
 * only part of it. Runs consist of whole blocks of `unit` bytes, which clients
 * are told not to look into.
 */
export async function runsOf(
  context: MetaContext,
  offset: number,
  length: number,
  most: number,
  unit = 1,
): Promise<Run[]> {
  const runs: { length: number; flags: number }[] = [];
  const end = offset + length;
  for (let count = 1; offset < end; count++) {
    const run = await wholeRun(context, offset, end, unit);
    const last = runs.at(-1);
    if (last?.flags === run.flags) last.length += run.length;
    else if (runs.length === most) break;
    else runs.push({ ...run });
    offset += run.length;
    // Cached lookups never yield by themselves.
    if (count % BURST === 0) await giveWay();
  }
  return runs;
}

/** The first run of a range, in whole blocks. */
async function wholeRun(
  context: MetaContext,
  offset: number,
  end: number,
  unit: number,
): Promise<Run> {
  const first = await context.run(offset, end - offset);
  const whole = first.length - first.length % unit;
  if (whole === first.length || offset + first.length === end) return first;
  if (whole > 0) return { length: whole, flags: first.flags };
  const stop = Math.min(end, offset + unit);
  let { length, flags } = first;
  while (offset + length < stop) {
    const next = await context.run(offset + length, stop - offset - length);
    flags = context.join(flags, next.flags);
    length += next.length;
  }
  return { length, flags };
}

/**
 * The contexts selected by a query; when listing, part of a name selects all
 * with it.
 */
export function selectContexts(
  contexts: readonly MetaContext[],
  query: string,
  list: boolean,
): number[] {
  const isKind = list && [BASE, QEMU, DIRTY_BITMAP].includes(query);
  return [...contexts.keys()].filter((id) =>
    query === contexts[id].name || isKind && contexts[id].name.startsWith(query)
  );
}

/** The namespace of `base:allocation`. */
const BASE = "base:";
const QEMU = "qemu:";

/** The transmission flags of an export, as negotiated. */
export function exportFlags(
  { writable, shared }: Export,
  { structured, extended }: { structured: boolean; extended: boolean },
): number {
  let flags = FLAG.HAS_FLAGS | FLAG.SEND_FLUSH | FLAG.SEND_FUA |
    FLAG.SEND_CACHE;
  flags |= writable
    ? FLAG.SEND_TRIM | FLAG.SEND_WRITE_ZEROES | FLAG.SEND_FAST_ZERO
    : FLAG.READ_ONLY;
  if (shared) flags |= FLAG.CAN_MULTI_CONN;
  if (structured) flags |= FLAG.SEND_DF;
  if (extended) flags |= FLAG.BLOCK_STATUS_PAYLOAD;
  return flags;
}
