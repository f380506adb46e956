/**
 * Which clusters of the file hold metadata, according to the tables alone: the
 * last safeguard before a repair writes, since refcounts cannot be trusted.
 *
 * @module
 */
import type { BlockNode } from "../../core/node.ts";
import { ENTRY_SIZE, entryOffset } from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { Header } from "./header.ts";
import { ReferenceCounts } from "./reference_counts.ts";
import type { SnapshotTable } from "./snapshot_table.ts";
import type { StoredRefcounts } from "./stored_refcounts.ts";

/** Kinds of metadata; where several overlap, the first is reported. */
const KINDS = [
  "qcow2_header",
  "active L1 table",
  "refcount table",
  "snapshot table",
  "inactive L1 table",
  "active L2 table",
  "refcount block",
  "bitmap directory",
] as const;

/** A kind of metadata. */
export type Metadata = typeof KINDS[number];

/** Clusters past the end of the file that are covered. */
const SLACK = 65536;

/** What a check knows of the image. */
export interface KnownMetadata {
  readonly file: BlockNode;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly stored: StoredRefcounts;
  readonly snapshots: SnapshotTable;
  /** References that were found. */
  readonly counts: ReferenceCounts;
  /** A table of 64-bit entries, in parts. */
  tableParts(
    offset: number,
    entries: number,
  ): AsyncIterable<{ readonly view: DataView }>;
}

/** The locations of all metadata of an image. */
export class MetadataMap {
  /** A set of kinds, as bits, for each cluster. */
  readonly #kinds: ReferenceCounts;
  readonly #clusterSize: number;

  private constructor(clusterSize: number, clusters: number) {
    this.#clusterSize = clusterSize;
    this.#kinds = new ReferenceCounts(clusters, 255);
  }

  /** Determine the locations. */
  static async of(run: KnownMetadata): Promise<MetadataMap> {
    const { header, geometry, stored, snapshots } = run;
    const { clusterSize } = geometry;
    const clusters = Math.max(
      run.counts.length,
      geometry.clustersFor(run.file.size),
    );
    const map = new MetadataMap(clusterSize, clusters + SLACK);
    map.#mark(0, clusterSize, "qcow2_header");
    const l1Bytes = header.l1Size * ENTRY_SIZE;
    map.#mark(header.l1TableOffset, l1Bytes, "active L1 table");
    const tableBytes = header.refcountTableClusters * clusterSize;
    map.#mark(header.refcountTableOffset, tableBytes, "refcount table");
    map.#mark(header.snapshotsOffset, snapshots.byteLength, "snapshot table");
    for (const { l1TableOffset, l1Size } of snapshots.entries) {
      map.#mark(l1TableOffset, l1Size * ENTRY_SIZE, "inactive L1 table");
    }
    const l1 = run.tableParts(header.l1TableOffset, header.l1Size);
    for await (const { view } of l1) {
      for (let at = 0; at < view.byteLength; at += ENTRY_SIZE) {
        const offset = entryOffset(view.getUint32(at), view.getUint32(at + 4));
        if (offset) map.#mark(offset, clusterSize, "active L2 table");
      }
    }
    for (let index = 0; index < stored.tableSize; index++) {
      const offset = stored.blockOffset(index);
      if (offset) map.#mark(offset, clusterSize, "refcount block");
    }
    if (header.bitmaps) {
      const { directoryOffset, directorySize } = header.bitmaps;
      map.#mark(directoryOffset, directorySize, "bitmap directory");
    }
    return map;
  }

  /** What metadata other than `own` is in the clusters of a range. */
  find(offset: number, length: number, own?: Metadata): Metadata | undefined {
    const [first, end] = this.#clusters(offset, length);
    let found = 0;
    for (let cluster = first; cluster < end; cluster++) {
      found |= this.#kinds.get(cluster);
    }
    return KINDS.find((kind, bit) => kind !== own && (found & (1 << bit)));
  }

  #mark(offset: number, length: number, kind: Metadata): void {
    const bit = 1 << KINDS.indexOf(kind);
    const [first, end] = this.#clusters(offset, length);
    for (let cluster = first; cluster < end; cluster++) {
      this.#kinds.set(cluster, this.#kinds.get(cluster) | bit);
    }
  }

  #clusters(offset: number, length: number): [first: number, end: number] {
    if (length <= 0) return [0, 0];
    const first = Math.floor(offset / this.#clusterSize);
    const end = Math.ceil((offset + length) / this.#clusterSize);
    return [first, Math.min(end, this.#kinds.length)];
  }
}
