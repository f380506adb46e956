/**
 * Overlap checks: no write may hit metadata that it is not meant for. In an
 * image whose refcounts are wrong, a "free" cluster may be a table.
 *
 * @module
 */
import type { BlockNode } from "../../core/node.ts";
import { Autoclear, ENTRY_SIZE, visitOffsets } from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { Header } from "./header.ts";
import {
  METADATA_NAMES,
  type MetadataKind,
  USUAL_KINDS,
} from "./overlap_options.ts";
import type { SnapshotEntry } from "./snapshot_table.ts";

/** What the checks need of the image: where its metadata is. */
export interface OverlapHost {
  readonly file: BlockNode;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly snapshots: readonly SnapshotEntry[];
  /** Bytes of the snapshot table in the file. */
  readonly snapshotTableLength: number;
  readonly behaviour: { readonly protectedKinds?: ReadonlySet<MetadataKind> };
  readonly clusters: { readonly l1Bytes: Uint8Array };
  readonly refcounts: { isBlock(clusterIndex: number): boolean };
  /** Report damage; always rejects. */
  corrupt(message: string): Promise<never>;
}

/** Knows where metadata is, and refuses to overwrite it. */
export class OverlapGuard {
  readonly #state: OverlapHost;
  /** Indices of clusters that are L2 tables; determined on first use. */
  #l2Tables?: Set<number>;
  /** Clusters that are L2 tables of snapshots. */
  #inactiveL2?: Set<number>;

  constructor(state: OverlapHost) {
    this.#state = state;
  }

  get #kinds(): ReadonlySet<MetadataKind> {
    return this.#state.behaviour.protectedKinds ?? USUAL_KINDS;
  }

  /** Tables have changed: determine their clusters again. */
  forget(): void {
    this.#l2Tables = undefined;
    this.#inactiveL2 = undefined;
  }

  /**
   * Refuse a write that would overlap metadata.
   *
   * @param kinds The metadata that the write is meant for, which it may
   * overlap.
   * @throws {BlockError} EIO; the image is marked as corrupt.
   */
  check(
    offset: number,
    length: number,
    ...kinds: MetadataKind[]
  ): void | Promise<void> {
    if (length === 0) return;
    if (this.#kinds.has("inactive-l2") && !this.#inactiveL2) {
      return this.#checkLater(offset, length, kinds);
    }
    const hit = this.#find(offset, length, kinds);
    if (hit) return this.#refuse(hit);
  }

  /** Whether a write is known to overlap no metadata. */
  isClear(offset: number, length: number): boolean {
    if (this.#kinds.has("inactive-l2") && !this.#inactiveL2) return false;
    return !this.#find(offset, length, []);
  }

  async #checkLater(
    offset: number,
    length: number,
    kinds: readonly MetadataKind[],
  ): Promise<void> {
    this.#inactiveL2 = await this.#findInactiveL2();
    const hit = this.#find(offset, length, kinds);
    if (hit) await this.#refuse(hit);
  }

  async #refuse(hit: MetadataKind): Promise<never> {
    return await this.#state.corrupt(
      "Preventing invalid write on metadata (overlaps with " +
        `${METADATA_NAMES[hit]})`,
    );
  }

  #find(
    offset: number,
    length: number,
    ignored: readonly MetadataKind[],
  ): MetadataKind | undefined {
    const { header, geometry, snapshots, refcounts } = this.#state;
    const looksAt = (kind: MetadataKind) =>
      !ignored.includes(kind) && this.#kinds.has(kind);
    if (looksAt("main-header") && offset < geometry.clusterSize) {
      return "main-header";
    }
    const start = geometry.clusterStart(offset);
    const end = geometry.clusterEnd(offset + length);
    const overlaps = (at: number, bytes: number) =>
      bytes > 0 && at < end && start < at + bytes;
    if (
      looksAt("active-l1") &&
      overlaps(header.l1TableOffset, header.l1Size * ENTRY_SIZE)
    ) return "active-l1";
    const tableBytes = header.refcountTableClusters * geometry.clusterSize;
    if (
      looksAt("refcount-table") &&
      overlaps(header.refcountTableOffset, tableBytes)
    ) return "refcount-table";
    if (
      looksAt("snapshot-table") &&
      overlaps(header.snapshotsOffset, this.#state.snapshotTableLength)
    ) return "snapshot-table";
    if (looksAt("inactive-l1")) {
      for (const { l1TableOffset, l1Size } of snapshots) {
        if (overlaps(l1TableOffset, l1Size * ENTRY_SIZE)) return "inactive-l1";
      }
    }
    const { bitmaps, autoclear } = header;
    if (
      looksAt("bitmap-directory") && bitmaps &&
      (autoclear.low & Autoclear.BITMAPS) !== 0 &&
      overlaps(bitmaps.directoryOffset, bitmaps.directorySize)
    ) return "bitmap-directory";
    const checkL2 = looksAt("active-l2");
    const checkBlocks = looksAt("refcount-block");
    const checkInactive = looksAt("inactive-l2");
    const l2Tables = this.#l2Tables ??= this.#findL2();
    const last = end / geometry.clusterSize;
    for (let index = start / geometry.clusterSize; index < last; index++) {
      if (checkL2 && l2Tables.has(index)) return "active-l2";
      if (checkBlocks && refcounts.isBlock(index)) return "refcount-block";
      if (checkInactive && this.#inactiveL2!.has(index)) return "inactive-l2";
    }
    return undefined;
  }

  #findL2(): Set<number> {
    const tables = new Set<number>();
    this.#addTables(tables, this.#state.clusters.l1Bytes);
    return tables;
  }

  async #findInactiveL2(): Promise<Set<number>> {
    const tables = new Set<number>();
    const { file, geometry, snapshots } = this.#state;
    if (snapshots.length === 0) return tables;
    const { readSnapshotL1 } = await import("./snapshot_table.ts");
    for (const entry of snapshots) {
      this.#addTables(tables, await readSnapshotL1(file, geometry, entry));
    }
    return tables;
  }

  #addTables(tables: Set<number>, l1: Uint8Array): void {
    const { clusterSize } = this.#state.geometry;
    visitOffsets(l1, (offset) => tables.add(Math.floor(offset / clusterSize)));
  }

  /** An L1 entry now refers to another L2 table; 0 is none. */
  replaceL2(oldOffset: number, offset: number): void {
    const { clusterSize } = this.#state.geometry;
    this.#l2Tables?.delete(oldOffset / clusterSize);
    if (offset !== 0) this.#l2Tables?.add(offset / clusterSize);
  }
}
