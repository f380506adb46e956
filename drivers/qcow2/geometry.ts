/**
 * Sizes of an image's structures, and the arithmetic from guest offsets to
 * table indices. (Specification: "Cluster mapping".)
 *
 * @module
 */
import { L2Layout } from "./l2_entry.ts";

/** Sizes that follow from the cluster size, refcount width and features. */
export class Geometry {
  readonly clusterBits: number;
  /** Bytes of a cluster. */
  readonly clusterSize: number;
  /** The layout of L2 entries. */
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

  /** The geometry of an image with this header. */
  static of(header: {
    readonly clusterBits: number;
    readonly refcountOrder: number;
    readonly incompatible: { readonly low: number };
  }): Geometry {
    const { clusterBits, refcountOrder, incompatible } = header;
    return new Geometry(clusterBits, refcountOrder, incompatible.low);
  }

  /** Where VM state begins: past all that L2 tables of the disk cover. */
  vmStateOffset(diskSize: number): number {
    return this.l1EntriesFor(diskSize) * this.l2Coverage;
  }

  /** Entries that an L1 table needs for a disk of `size` bytes. */
  l1EntriesFor(size: number): number {
    return Math.ceil(size / this.l2Coverage);
  }

  /** Index in the L1 table. */
  l1Index(guestOffset: number): number {
    return Math.floor(guestOffset / this.l2Coverage);
  }

  /** Index in the L2 table. */
  l2Index(guestOffset: number): number {
    return Math.floor((guestOffset % this.l2Coverage) / this.clusterSize);
  }

  /** Byte within the cluster. */
  offsetInCluster(offset: number): number {
    return offset % this.clusterSize;
  }

  /** Start of the cluster. */
  clusterStart(offset: number): number {
    return offset - offset % this.clusterSize;
  }

  /** The offset rounded up to a cluster's start. */
  clusterEnd(offset: number): number {
    const rest = offset % this.clusterSize;
    return rest === 0 ? offset : offset + this.clusterSize - rest;
  }

  /** Clusters that `bytes` need. */
  clustersFor(bytes: number): number {
    return Math.ceil(bytes / this.clusterSize);
  }

  /** Whether an offset in the file is that of a cluster. */
  isAligned(offset: number): boolean {
    return offset % this.clusterSize === 0;
  }
}
