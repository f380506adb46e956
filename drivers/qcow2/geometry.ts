/**
 * The sizes of an image's parts, and the arithmetic that relates guest offsets
 * to its tables. (Specification: "Cluster mapping".)
 *
 * @module
 */
import { L2Layout } from "./l2_entry.ts";

/** The sizes that follow from the cluster size, refcount width and features. */
export class Geometry {
  readonly clusterBits: number;
  /** Bytes. */
  readonly clusterSize: number;
  /** How L2 tables are laid out. */
  readonly l2: L2Layout;
  /** Guest bytes that an L2 table covers. */
  readonly l2Coverage: number;
  readonly refcountOrder: number;
  readonly refcountBits: number;
  /** Entries of a refcount block. */
  readonly refcountBlockEntries: number;
  /** The largest refcount; inexact for 64 bits. */
  readonly refcountMax: number;

  /** @param features The lower half of the incompatible features. */
  constructor(clusterBits: number, refcountOrder: number, features = 0) {
    this.clusterBits = clusterBits;
    this.clusterSize = 2 ** clusterBits;
    this.l2 = new L2Layout(clusterBits, features);
    this.l2Coverage = this.clusterSize * this.l2.entriesPerTable;
    this.refcountOrder = refcountOrder;
    this.refcountBits = 2 ** refcountOrder;
    this.refcountBlockEntries = this.clusterSize * 8 / this.refcountBits;
    this.refcountMax = 2 ** this.refcountBits - 1;
  }

  /** Of an image with such a header. */
  static of(header: {
    readonly clusterBits: number;
    readonly refcountOrder: number;
    readonly incompatible: { readonly low: number };
  }): Geometry {
    const { clusterBits, refcountOrder, incompatible } = header;
    return new Geometry(clusterBits, refcountOrder, incompatible.low);
  }

  /** Entries that an L1 table needs for a disk of `size` bytes. */
  l1EntriesFor(size: number): number {
    return Math.ceil(size / this.l2Coverage);
  }

  /** The index in the L1 table. */
  l1Index(guestOffset: number): number {
    return Math.floor(guestOffset / this.l2Coverage);
  }

  /** The index in the L2 table. */
  l2Index(guestOffset: number): number {
    return Math.floor((guestOffset % this.l2Coverage) / this.clusterSize);
  }

  /** The byte of its cluster. */
  offsetInCluster(offset: number): number {
    return offset % this.clusterSize;
  }

  /** The start of its cluster. */
  clusterStart(offset: number): number {
    return offset - offset % this.clusterSize;
  }

  /** The next start of a cluster, unless it is one. */
  clusterEnd(offset: number): number {
    const rest = offset % this.clusterSize;
    return rest === 0 ? offset : offset + this.clusterSize - rest;
  }

  /** Clusters that `bytes` take. */
  clustersFor(bytes: number): number {
    return Math.ceil(bytes / this.clusterSize);
  }

  /** Whether an offset in the file can be that of a cluster. */
  isAligned(offset: number): boolean {
    return offset % this.clusterSize === 0;
  }
}
