/**
 * What each cluster of the file is used for, and what deleting a snapshot would
 * free: a check counts the references and compares them with the refcounts,
 * then a second walk through the tables finds out who makes them.
 * (Specification: "Host cluster management", "Snapshots".)
 *
 * @module
 */
import { allocate, viewOf } from "../../core/bytes.ts";
import type {
  HostRun,
  HostUse,
  ImageLayout,
  RequestFlags,
} from "../../core/node.ts";
import { bitmapPlaces } from "./bitmaps/check.ts";
import { performCheck } from "./check.ts";
import { CheckRun, type CheckTarget } from "./check_run.ts";
import { ENTRY_SIZE, entryOffset } from "./format.ts";
import { readRefcount } from "./refcount_layout.ts";
import { ReferenceCounts } from "./reference_counts.ts";

/** Uses, indexed by the low bits of a cluster's byte. */
const USES: readonly HostUse[] = [
  "free",
  "data",
  "compressed",
  "snapshot-data",
  "header",
  "l1-table",
  "l2-table",
  "refcounts",
  "snapshot-table",
  "bitmaps",
  "encryption-header",
];
const [DATA, COMPRESSED, SNAPSHOT_DATA] = [1, 2, 3];
const L2_TABLE = USES.indexOf("l2-table");
const USE_MASK = 15;
/** Flags of a cluster's byte. */
const [SHARED, LEAKED, CORRUPT] = [16, 32, 64];

/** Most findings of the check that are kept. */
const MAX_FINDINGS = 1000;

/** A tree of tables, given by its L1 table. */
interface Tree {
  readonly l1TableOffset: number;
  readonly l1Size: number;
}

/** The layout of an image whose caches have been written. */
export async function readLayout(
  target: CheckTarget,
  { signal }: RequestFlags = {},
): Promise<ImageLayout> {
  const findings: string[] = [];
  const run = new CheckRun(target, {
    signal,
    report: (line) => {
      if (findings.length < MAX_FINDINGS) findings.push(line);
    },
  });
  const check = await performCheck(run);
  const map = new ClusterMap(run);
  await map.fill();
  const snapshots = [];
  for (const entry of run.snapshots.entries) {
    const frees = await onlyUsedBy(run, entry);
    snapshots.push({ id: entry.id, name: entry.name, frees });
  }
  const { size } = run.file;
  return {
    size,
    check,
    findings,
    snapshots,
    runAt: (offset, length) =>
      map.runAt(offset, Math.min(length, size - offset)),
  };
}

/** A byte for each cluster of the file: its use and flags. */
class ClusterMap {
  readonly #run: CheckRun;
  readonly #bytes: ReferenceCounts;
  readonly #clusterSize: number;

  constructor(run: CheckRun) {
    this.#run = run;
    this.#clusterSize = run.geometry.clusterSize;
    const inFile = run.geometry.clustersFor(run.file.size);
    const clusters = Math.max(run.counts.length, inFile);
    this.#bytes = new ReferenceCounts(clusters, 255);
  }

  /** Walk all tables. */
  async fill(): Promise<void> {
    const run = this.#run;
    const { header, snapshots, stored } = run;
    await this.#tree(header, true);
    for (const entry of snapshots.entries) await this.#tree(entry, false);
    this.#mark(0, this.#clusterSize, "header");
    const tableBytes = header.refcountTableClusters * this.#clusterSize;
    this.#mark(header.refcountTableOffset, tableBytes, "refcounts");
    for (let index = 0; index < stored.tableSize; index++) {
      const offset = stored.blockOffset(index);
      if (offset) this.#mark(offset, this.#clusterSize, "refcounts");
    }
    const { byteLength } = snapshots;
    this.#mark(header.snapshotsOffset, byteLength, "snapshot-table");
    if (header.encryptionHeader) {
      const { offset, length } = header.encryptionHeader;
      this.#mark(offset, length, "encryption-header");
    }
    for (const { offset, length } of await bitmapPlaces(run)) {
      this.#mark(offset, length, "bitmaps");
    }
    this.#markShared();
    await this.#markWrong();
  }

  runAt(offset: number, length: number): HostRun {
    const clusterSize = this.#clusterSize;
    let cluster = Math.floor(offset / clusterSize);
    const end = Math.ceil((offset + length) / clusterSize);
    const byte = this.#bytes.get(cluster);
    if (byte === 0) cluster = this.#bytes.nextUsed(cluster, end);
    else while (++cluster < end && this.#bytes.get(cluster) === byte);
    return {
      offset,
      length: Math.min(cluster * clusterSize - offset, length),
      use: USES[byte & USE_MASK],
      shared: (byte & SHARED) !== 0,
      leaked: (byte & LEAKED) !== 0,
      corrupt: (byte & CORRUPT) !== 0,
    };
  }

  /** Mark metadata, which takes precedence over other uses. */
  #mark(offset: number, length: number, use: HostUse): void {
    if (length <= 0) return;
    const value = USES.indexOf(use);
    const end = Math.ceil((offset + length) / this.#clusterSize);
    const last = Math.min(end, this.#bytes.length);
    let cluster = Math.floor(offset / this.#clusterSize);
    for (; cluster < last; cluster++) this.#bytes.set(cluster, value);
  }

  /** Mark data, unless the active disk uses it too, or it is metadata. */
  #markData(cluster: number, active: boolean, use: number): void {
    const bytes = this.#bytes;
    if (cluster >= bytes.length) return;
    const known = bytes.get(cluster);
    if (known === 0) bytes.set(cluster, active ? use : SNAPSHOT_DATA);
    // Compressed clusters of several disks may share a host cluster.
    else if (known === COMPRESSED && !active) {
      bytes.set(cluster, known | SHARED);
    }
  }

  async #tree(tree: Tree, active: boolean): Promise<void> {
    const run = this.#run;
    const { l1TableOffset, l1Size } = tree;
    this.#mark(l1TableOffset, l1Size * ENTRY_SIZE, "l1-table");
    for await (const { cluster, table } of l2Tables(run, tree)) {
      if (this.#bytes.get(cluster) === L2_TABLE) continue; // Visited already.
      this.#bytes.set(cluster, L2_TABLE);
      const isShared = run.counts.get(cluster) > 1;
      forEachCluster(run, await table(), (first, end, compressed) => {
        const use = compressed
          ? isShared ? COMPRESSED | SHARED : COMPRESSED
          : DATA;
        for (let at = first; at < end; at++) this.#markData(at, active, use);
      });
    }
  }

  /** Flag clusters with several users. */
  #markShared(): void {
    const { counts } = this.#run;
    if (!counts.hasShared) return;
    for (
      let at = counts.nextUsed(0);
      at < counts.length;
      at = counts.nextUsed(at + 1)
    ) {
      const byte = this.#bytes.get(at);
      // A cluster with compressed data is counted once for each compressed
      // cluster.
      if (counts.get(at) < 2 || (byte & USE_MASK) === COMPRESSED) continue;
      this.#bytes.set(at, byte | SHARED);
    }
  }

  /** Flag the clusters whose refcounts are wrong. */
  async #markWrong(): Promise<void> {
    const { counts, stored, geometry } = this.#run;
    const { refcountBlockEntries, refcountOrder } = geometry;
    for (let index = 0; index * refcountBlockEntries < counts.length; index++) {
      const first = index * refcountBlockEntries;
      const end = Math.min(first + refcountBlockEntries, counts.length);
      if (stored.isAbsent(index) && counts.nextUsed(first, end) === end) {
        continue;
      }
      const block = await stored.blockOnce(index);
      if (block === null) continue; // The check has reported it.
      const next = (from: number) =>
        counts.nextDifferent(block, refcountOrder, first, from, end);
      for (let at = next(first); at < end; at = next(at + 1)) {
        const refcount = readRefcount(block, refcountOrder, at - first);
        const flag = refcount > counts.get(at) ? LEAKED : CORRUPT;
        this.#bytes.set(at, this.#bytes.get(at) | flag);
      }
    }
  }
}

/**
 * How many bytes of the file only one snapshot uses. An L2 table with other
 * users leads to nothing that would be freed, so it is not read.
 */
async function onlyUsedBy(run: CheckRun, tree: Tree): Promise<number> {
  const { counts, geometry } = run;
  const { clusterSize } = geometry;
  const own = new ReferenceCounts(counts.length, counts.max);
  const count = (cluster: number) => {
    if (cluster < own.length) own.add(cluster, 1);
  };
  for await (const { cluster, table } of l2Tables(run, tree)) {
    count(cluster);
    if (counts.get(cluster) > 1) continue;
    forEachCluster(run, await table(), (first, end) => {
      for (let at = first; at < end; at++) count(at);
    });
  }
  let clusters = geometry.clustersFor(tree.l1Size * ENTRY_SIZE);
  for (
    let at = own.nextUsed(0);
    at < own.length;
    at = own.nextUsed(at + 1)
  ) if (own.get(at) === counts.get(at)) clusters++;
  return clusters * clusterSize;
}

/** The correctly placed L2 tables of a tree, read on demand. */
async function* l2Tables(run: CheckRun, tree: Tree): AsyncGenerator<{
  cluster: number;
  /** Reads the table; valid until the next one is read. */
  table(): Promise<DataView>;
}> {
  const { geometry, file } = run;
  const { l1TableOffset, l1Size } = tree;
  if (!geometry.isAligned(l1TableOffset)) return;
  const bytes = allocate(geometry.clusterSize);
  for await (const { view } of run.tableParts(l1TableOffset, l1Size)) {
    for (let at = 0; at < view.byteLength; at += ENTRY_SIZE) {
      const offset = entryOffset(view.getUint32(at), view.getUint32(at + 4));
      if (offset === 0 || !geometry.isAligned(offset)) continue;
      if (offset >= file.size) continue;
      yield {
        cluster: offset / geometry.clusterSize,
        async table() {
          await run.read(offset, bytes);
          return viewOf(bytes);
        },
      };
    }
  }
}

/** Visit the ranges of the file that an L2 table refers to. */
function forEachCluster(
  run: CheckRun,
  table: DataView,
  found: (first: number, end: number, compressed: boolean) => void,
): void {
  const { l2, clusterSize } = run.geometry;
  const isElsewhere = run.uses("DATA_FILE");
  for (let index = 0; index < l2.entriesPerTable; index++) {
    if (l2.isEmpty(table, index) || isElsewhere) continue;
    if (l2.isCompressed(table, index)) {
      const offset = l2.compressedOffset(table, index);
      const end = offset + l2.compressedLength(table, index);
      const first = Math.floor(offset / clusterSize);
      found(first, Math.ceil(end / clusterSize), true);
    } else if (l2.isPlaced(table, index)) {
      const cluster = Math.floor(l2.offset(table, index) / clusterSize);
      found(cluster, cluster + 1, false);
    }
  }
}
