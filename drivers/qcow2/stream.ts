/**
 * Writing new images front to back. The allocation is determined first, which
 * fixes where everything goes, so that tables can precede the data: header,
 * refcount table, refcount blocks, L1 table, L2 tables, and data clusters in
 * guest order.
 *
 * @module
 */
import { allocate, viewOf } from "../../core/bytes.ts";
import type { StreamSource } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import type { OptionValues } from "../../core/options.ts";
import { planImage } from "./create.ts";
import {
  ENTRY_SIZE,
  MAX_REFCOUNT_TABLE_BYTES,
  setCopied,
  writeUint64,
} from "./format.ts";
import { Geometry } from "./geometry.ts";
import type { Header } from "./header.ts";
import { encodeHeader } from "./header_encoding.ts";
import { refcountsFor, writeRefcount } from "./refcount_layout.ts";

/** Bytes read at once. */
const READ_SIZE = 1024 * 1024;

/** What a cluster of the disk becomes. */
type Kind = "none" | "data" | "zero";

/** Consecutive clusters of one kind. */
interface Run {
  readonly kind: Kind;
  /** Index of the first one on the disk. */
  readonly start: number;
  /** Index past the last one. */
  end: number;
}

/** The parts of the file, as cluster indices. */
interface Layout {
  refcountTable: number;
  refcountBlocks: number;
  l1: number;
  l2: number;
  data: number;
  end: number;
}

/** Stream an image with the content of `source`. */
export async function* streamImage(
  options: OptionValues,
  source: StreamSource,
): AsyncGenerator<Uint8Array> {
  const { header, size, preallocation } = planImage(options);
  if (preallocation !== "off") throw impossible("Preallocation");
  if (options.encryption || options["encrypt.format"]) {
    throw impossible("Encryption");
  }
  if (header.dataFile !== undefined) throw impossible("A data file");
  const geometry = Geometry.of(header);
  const runs = await findRuns(source, geometry, header);
  const tables = tablesFor(runs, geometry);
  const layout = plan(runs, tables, size, geometry);
  yield* metadata(header, layout, tables, size, geometry);
  yield* l2Tables(runs, tables, layout, geometry);
  yield* data(runs, source, geometry);
}

function impossible(what: string): BlockError {
  return new BlockError("ENOTSUP", `${what} is not possible in a stream`);
}

/**
 * Determine the clusters to be written. A cluster with mixed content becomes
 * data.
 */
async function findRuns(
  source: StreamSource,
  geometry: Geometry,
  { version, backingFile }: Header,
): Promise<Run[]> {
  // Without a backing file, unallocated clusters read as zeroes.
  const hidesBacking = backingFile !== undefined;
  const zero = !hidesBacking ? "none" : version < 3 ? "data" : "zero";
  const runs: Run[] = [];
  const add = (kind: Kind, start: number, end: number) => {
    if (kind === "none" || start === end) return;
    const last = runs.at(-1);
    if (last?.kind === kind && last.end === start) last.end = end;
    else runs.push({ kind, start, end });
  };
  /**
   * // Kind of the cluster in which the last extent ended, if not at its end.
   */
  let begun: Kind | undefined;
  for await (const extent of source.extents()) {
    const end = extent.offset + extent.length;
    const kind = extent.kind === "zero"
      ? zero
      : extent.kind === "data"
      ? "data"
      : "none";
    let first = Math.floor(extent.offset / geometry.clusterSize);
    // The end of the disk ends its last cluster.
    const stop = end === source.size
      ? geometry.clustersFor(end)
      : Math.floor(end / geometry.clusterSize);
    if (begun !== undefined) {
      const both = begun === kind ? kind : "data";
      if (stop === first) {
        begun = both;
        continue;
      }
      add(both, first, ++first);
    }
    add(kind, first, stop);
    begun = geometry.isAligned(end) ? undefined : kind;
  }
  return runs;
}

/** Indices of the L1 entries that have a table. */
function tablesFor(
  runs: readonly Run[],
  { l2: { entriesPerTable } }: Geometry,
): number[] {
  const tables: number[] = [];
  for (const { start, end } of runs) {
    const last = Math.floor((end - 1) / entriesPerTable);
    let index = Math.floor(start / entriesPerTable);
    if (index === tables.at(-1)) index++;
    for (; index <= last; index++) tables.push(index);
  }
  return tables;
}

function plan(
  runs: readonly Run[],
  tables: readonly number[],
  size: number,
  geometry: Geometry,
): Layout {
  const { clusterSize } = geometry;
  let clusters = 0;
  for (const { kind, start, end } of runs) {
    if (kind === "data") clusters += end - start;
  }
  const l1 = geometry.clustersFor(geometry.l1EntriesFor(size) * ENTRY_SIZE);
  const rest = l1 + tables.length + clusters;
  const counts = refcountsFor(geometry, 1 + rest);
  const { blocks, tableClusters: table } = counts;
  if (table * clusterSize > MAX_REFCOUNT_TABLE_BYTES) {
    throw new BlockError("EFBIG");
  }
  const start = 1 + table + blocks;
  return {
    refcountTable: 1,
    refcountBlocks: 1 + table,
    l1: start,
    l2: start + l1,
    data: start + l1 + tables.length,
    end: start + rest,
  };
}

/** Everything before the L2 tables. */
function* metadata(
  header: Header,
  layout: Layout,
  tables: readonly number[],
  size: number,
  geometry: Geometry,
): Generator<Uint8Array> {
  const { clusterSize, refcountBlockEntries, refcountOrder } = geometry;
  const clusters = (count: number) => allocate(count * clusterSize);
  const first = clusters(1);
  first.set(encodeHeader({
    ...header,
    l1Size: geometry.l1EntriesFor(size),
    l1TableOffset: layout.l1 * clusterSize,
    refcountTableOffset: layout.refcountTable * clusterSize,
    refcountTableClusters: layout.refcountBlocks - layout.refcountTable,
  }));
  yield first;
  const blocks = layout.l1 - layout.refcountBlocks;
  const table = clusters(layout.refcountBlocks - layout.refcountTable);
  for (let i = 0; i < blocks; i++) {
    const offset = (layout.refcountBlocks + i) * clusterSize;
    writeUint64(viewOf(table), i * ENTRY_SIZE, offset);
  }
  yield table;
  // All blocks are alike, except for the last one.
  const block = clusters(1);
  const mostInBlock = Math.min(layout.end, refcountBlockEntries);
  const fill = (from: number, refcount: number) => {
    for (let i = from; i < mostInBlock; i++) {
      writeRefcount(viewOf(block), refcountOrder, i, refcount);
    }
  };
  fill(0, 1);
  for (let i = 1; i < blocks; i++) yield block;
  fill(layout.end - (blocks - 1) * refcountBlockEntries, 0);
  yield block;
  const l1 = clusters(layout.l2 - layout.l1);
  for (const [i, index] of tables.entries()) {
    const at = index * ENTRY_SIZE;
    writeUint64(viewOf(l1), at, (layout.l2 + i) * clusterSize);
    setCopied(viewOf(l1), at, true);
  }
  yield l1;
}

function* l2Tables(
  runs: readonly Run[],
  tables: readonly number[],
  layout: Layout,
  { clusterSize, l2 }: Geometry,
): Generator<Uint8Array> {
  const table = allocate(clusterSize);
  const view = viewOf(table);
  let next = layout.data;
  let run = 0;
  for (const index of tables) {
    table.fill(0);
    const from = index * l2.entriesPerTable;
    const to = from + l2.entriesPerTable;
    while (run < runs.length && runs[run].start < to) {
      const { kind, start, end } = runs[run];
      const stop = Math.min(end, to);
      for (let cluster = Math.max(start, from); cluster < stop; cluster++) {
        const entry = cluster - from;
        if (kind === "data") l2.setPlace(view, entry, next++ * clusterSize);
        else l2.clear(view, entry, true);
      }
      if (end > to) break;
      run++;
    }
    yield table;
  }
}

async function* data(
  runs: readonly Run[],
  source: StreamSource,
  { clusterSize }: Geometry,
): AsyncGenerator<Uint8Array> {
  const buffer = allocate(Math.max(READ_SIZE, clusterSize));
  for (const { kind, start, end } of runs) {
    if (kind !== "data") continue;
    const stop = end * clusterSize;
    for (let at = start * clusterSize; at < stop;) {
      const bytes = buffer.subarray(0, Math.min(buffer.length, stop - at));
      const inside = Math.min(bytes.length, source.size - at);
      await source.read(at, bytes.subarray(0, inside));
      bytes.fill(0, inside);
      yield bytes;
      at += bytes.length;
    }
  }
}
