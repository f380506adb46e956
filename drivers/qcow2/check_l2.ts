/**
 * Checking the entries of L2 tables, and counting their references.
 * (Specification: "L2 table entry", "Compressed Clusters Descriptor", "Extended
 * L2 Entries".)
 *
 * @module
 */
import { allocate, viewOf } from "../../core/bytes.ts";
import { BlockError, reasonOf } from "../../core/errors.ts";
import type { CheckRun } from "./check_run.ts";
import type { L2Layout } from "./l2_entry.ts";

/** Scans the entries of L2 tables, one table at a time. */
export class L2Scan {
  readonly #run: CheckRun;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  readonly #l2: L2Layout;
  readonly #dataFile: boolean;
  #repair = false;
  /** Whether to count for the fragmentation statistics. */
  #statistics = false;
  #weight = 1;
  /**
   * Where the next cluster would have to be, not to count as a fragment; 0 at
   * first.
   */
  #nextOffset = 0;

  constructor(run: CheckRun) {
    this.#run = run;
    this.#bytes = allocate(run.geometry.clusterSize);
    this.#view = viewOf(this.#bytes);
    this.#dataFile = run.uses("DATA_FILE");
    this.#l2 = run.geometry.l2;
  }

  /** Count the references in the table at `offset`, each `weight` times. */
  async table(
    offset: number,
    active: boolean,
    repair: boolean,
    weight: number,
  ): Promise<void> {
    const run = this.#run;
    run.chargeRead(this.#bytes.length, offset);
    try {
      await run.read(offset, this.#bytes);
    } catch (error) {
      throw run.failure("ERROR: I/O error in check_refcounts_l2", error);
    }
    this.#repair = repair;
    this.#statistics = active;
    this.#weight = weight;
    this.#nextOffset = 0;
    let index = this.#scan(0);
    while (index < this.#l2.entriesPerTable) {
      // A misaligned preallocated cluster: it reads as zeroes, so it can go.
      await this.#dropPlace(offset, index, active);
      index = this.#scan(index + 1);
    }
  }

  /** Scan entries; returns the index of one to repair, or past the last. */
  #scan(from: number): number {
    const table = this.#view;
    const l2 = this.#l2;
    const end = l2.entriesPerTable;
    const simple = !l2.isExtended && !this.#dataFile && this.#weight === 1;
    for (let index = from; index < end; index++) {
      if (simple) {
        if (l2.isEmpty(table, index)) continue;
        const run = this.#countRun(index);
        if (run > 0) {
          index += run - 1;
          continue;
        }
      }
      if (this.#examine(index)) return index;
    }
    return end;
  }

  /**
   * Count a run of ordinary entries from an index on: consecutive clusters,
   * aligned, within the file, with no flag but COPIED. Runs are usually long,
   * and faster to count as a whole.
   *
   * @returns the length of the run; 0 if this entry is not ordinary.
   */
  #countRun(index: number): number {
    const run = this.#run;
    const table = this.#view;
    const { clusterSize } = run.geometry;
    if (!this.#l2.isPlain(table, index)) return 0;
    const offset = this.#l2.offset(table, index);
    const inFile = Math.ceil((run.file.size - offset) / clusterSize);
    if (inFile <= 0) return 0;
    const most = Math.min(inFile, this.#l2.entriesPerTable);
    const length = this.#l2.sequenceLength(table, index, most);
    if (this.#statistics) this.#noteClusters(index, offset, length);
    const cluster = offset / clusterSize;
    for (let done = 0; done < length;) {
      done += run.counts.incrementRun(cluster + done, length - done);
      if (done < length) run.overflow(cluster + done++);
    }
    return length;
  }

  /** Examine one entry; returns whether it is to be repaired. */
  #examine(index: number): boolean {
    const run = this.#run;
    const table = this.#view;
    const l2 = this.#l2;
    if (l2.isCompressed(table, index)) {
      this.#compressed(index);
      return false;
    }
    if (l2.hasReservedBits(table, index)) {
      const text = l2.text(table, index);
      run.corruption(`ERROR found l2 entry with reserved bits set: ${text}`);
    }
    const allocated = l2.allocatedSubclusters(table, index);
    if (!l2.isPlaced(table, index)) {
      if (allocated !== 0) {
        run.corruption(
          "ERROR: Unallocated cluster has non-zero subcluster allocation map",
        );
      }
      return false;
    }
    const offset = l2.offset(table, index);
    if ((allocated & l2.zeroSubclusters(table, index)) !== 0) {
      run.corruption(
        `ERROR offset=${offset.toString(16)}: ` +
          "Allocated cluster has corrupted subcluster allocation bitmap",
      );
    }
    if (!run.geometry.isAligned(offset)) {
      const hasData = l2.isExtended
        ? allocated !== 0
        : l2.kind(table, index) === "normal";
      this.#misaligned(offset, hasData);
      if (!hasData && this.#repair) return true;
    }
    this.#countCluster(index);
    return false;
  }

  #misaligned(offset: number, hasData: boolean): void {
    const text = offset.toString(16);
    if (hasData) {
      this.#run.corruption(
        `ERROR offset=${text}: Data cluster is not properly aligned; ` +
          "L2 entry corrupted.",
      );
    } else {
      this.#run.corruption(
        `${this.#repair ? "Repairing" : "ERROR"} offset=${text}: ` +
          "Preallocated cluster is not properly aligned; L2 entry corrupted.",
      );
    }
  }

  #countCluster(index: number): void {
    const { clusterSize } = this.#run.geometry;
    const offset = this.#l2.offset(this.#view, index);
    if (this.#statistics) this.#noteClusters(index, offset, 1);
    if (!this.#dataFile) this.#run.count(offset, clusterSize, this.#weight);
  }

  /** Count consecutive clusters whose entries have the same flags. */
  #noteClusters(index: number, offset: number, count: number): void {
    const { result, geometry } = this.#run;
    if (!this.#l2.isCopied(this.#view, index)) this.#run.allCopied = false;
    result.allocatedClusters += count;
    if (this.#nextOffset !== 0 && offset !== this.#nextOffset) {
      result.fragmentedClusters++;
    }
    this.#nextOffset = offset + count * geometry.clusterSize;
  }

  #compressed(index: number): void {
    const run = this.#run;
    const table = this.#view;
    const l2 = this.#l2;
    const place = l2.compressedOffsetText(table, index);
    if (l2.isCopied(table, index)) {
      run.corruption(
        `ERROR: coffset=0x${place}: ` +
          "copied flag must never be set for compressed clusters",
      );
    }
    const entry = l2.compressedText(table, index);
    if (this.#dataFile) {
      run.corruption(
        `ERROR compressed cluster ${index} with data file, entry=0x${entry}`,
      );
      return;
    }
    const subclusters = l2.allocatedSubclusters(table, index) |
      l2.zeroSubclusters(table, index);
    if (subclusters !== 0) {
      run.corruption(
        `ERROR compressed cluster ${index} with non-zero subcluster ` +
          `allocation bitmap, entry=0x${entry}`,
      );
      return;
    }
    const offset = l2.compressedOffset(table, index);
    const length = l2.compressedLength(table, index);
    run.count(offset, length, this.#weight, place);
    if (this.#statistics) {
      run.result.allocatedClusters++;
      run.result.compressedClusters++;
      // Several share a sector, so that each is read separately anyway.
      run.result.fragmentedClusters++;
    }
  }

  /** Turn an entry into a plain zero cluster; count it if that fails. */
  async #dropPlace(
    tableOffset: number,
    index: number,
    active: boolean,
  ): Promise<void> {
    const run = this.#run;
    const { entrySize } = this.#l2;
    const at = index * entrySize;
    const entry = this.#bytes.subarray(at, at + entrySize);
    const old = entry.slice();
    this.#l2.dropPlace(this.#view, index);
    const kind = active ? "active L2 table" : undefined;
    if (!await run.mayWrite(tableOffset + at, entry.length, kind)) {
      throw run.failure("ERROR: Overlap check failed", new BlockError("EIO"));
    }
    try {
      await run.file.writev!(tableOffset + at, [entry]);
    } catch (error) {
      const reason = reasonOf(error);
      run.failure(
        `ERROR: Failed to overwrite L2 table entry: ${reason}`,
        error,
      );
      entry.set(old);
      this.#countCluster(index);
      return;
    }
    run.result.corruptions--;
    run.result.corruptionsFixed++;
  }
}
