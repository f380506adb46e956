/**
 * Looking at the entries of L2 tables, and counting what they refer to.
 * (Specification: "L2 table entry", "Compressed Clusters Descriptor",
 * "Extended L2 Entries".)
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import { BlockError, reasonOf } from "../../core/errors.ts";
import type { CheckRun } from "./check_run.ts";
import {
  COMPRESSED,
  COPIED,
  ENTRY_SIZE,
  entryOffset,
  entryToHex,
  l2ReservedBits,
  viewOf,
  writeUint64,
  ZERO,
} from "./format.ts";

const TWO_32 = 2 ** 32;

/** Looks at all entries of one L2 table after the other. */
export class L2Scan {
  readonly #run: CheckRun;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  readonly #entrySize: number;
  readonly #entries: number;
  readonly #subclusters: boolean;
  readonly #dataFile: boolean;
  #repair = false;
  /** Whether to count for the fragmentation statistics. */
  #statistics = false;
  #weight = 1;
  /** Where the next cluster would not be a fragment; 0 at first. */
  #nextOffset = 0;

  constructor(run: CheckRun) {
    this.#run = run;
    this.#bytes = allocate(run.geometry.clusterSize);
    this.#view = viewOf(this.#bytes);
    this.#subclusters = run.uses("EXTENDED_L2");
    this.#dataFile = run.uses("DATA_FILE");
    this.#entrySize = this.#subclusters ? 2 * ENTRY_SIZE : ENTRY_SIZE;
    this.#entries = run.geometry.clusterSize / this.#entrySize;
  }

  /** Count the references in the table at `offset`, each `weight` times. */
  async table(
    offset: number,
    active: boolean,
    repair: boolean,
    weight: number,
  ): Promise<void> {
    const run = this.#run;
    run.spend(this.#bytes.length, offset);
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
    while (index < this.#entries) {
      // A misaligned preallocated cluster: its data is zero, so it can go.
      const { high, offset: lost } = this.#entryAt(index);
      const repaired = await this.#makeZero(offset, index, active);
      if (!repaired) this.#countCluster(lost, high);
      index = this.#scan(index + 1);
    }
  }

  /** Look at entries; the answer is one to repair, or past the last. */
  #scan(from: number): number {
    const view = this.#view;
    const end = this.#entries;
    const step = this.#entrySize;
    const plain = !this.#subclusters && !this.#dataFile && this.#weight === 1;
    for (let index = from; index < end; index++) {
      const at = index * step;
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      if (plain) {
        if ((high | low) === 0) continue;
        const run = this.#countRun(at, high, low);
        if (run > 0) {
          index += run - 1;
          continue;
        }
      }
      if (this.#examine(index, high, low)) return index;
    }
    return end;
  }

  /**
   * Count a run of the usual entries from the one at byte `at` on: clusters in
   * a row, aligned, in the file, with no flag but COPIED. Runs are long as a
   * rule, and so an entry takes 4 ns instead of 25.
   *
   * @returns the entries of the run; 0 if this one is not usual.
   */
  #countRun(at: number, high: number, low: number): number {
    const run = this.#run;
    const view = this.#view;
    const { clusterSize } = run.geometry;
    if ((high & 0x7f000000) !== 0 || (low & (clusterSize - 1)) !== 0) return 0;
    const offset = (high & 0x00ffffff) * TWO_32 + low;
    const inFile = Math.ceil((run.file.size - offset) / clusterSize);
    if (offset === 0 || inFile <= 0) return 0;
    const end = Math.min(view.byteLength, at + inFile * ENTRY_SIZE);
    const expectedHigh = high | 0;
    let expectedLow = low | 0;
    const first = at;
    while ((at += ENTRY_SIZE) < end) {
      expectedLow = (expectedLow + clusterSize) | 0;
      if (
        view.getInt32(at + 4) !== expectedLow ||
        view.getInt32(at) !== expectedHigh || expectedLow === 0
      ) break;
    }
    const length = (at - first) / ENTRY_SIZE;
    if (this.#statistics) this.#noteClusters(offset, length, high);
    const cluster = offset / clusterSize;
    for (let done = 0; done < length;) {
      done += run.counts.incrementRun(cluster + done, length - done);
      if (done < length) run.overflow(cluster + done++);
    }
    return length;
  }

  /** Look at one entry closely; whether it is to be repaired. */
  #examine(index: number, high: number, low: number): boolean {
    const run = this.#run;
    if (high & COMPRESSED) {
      this.#compressed(index, high, low);
      return false;
    }
    if (l2ReservedBits(high, low)) {
      const text = entryToHex(high, low);
      run.corruption(`ERROR found l2 entry with reserved bits set: ${text}`);
    }
    const offset = entryOffset(high, low);
    const bitmap = this.#bitmap(index);
    const ownsOffset = offset !== 0 || (this.#dataFile && (high & COPIED));
    if (!ownsOffset) {
      if (bitmap.allocated !== 0) {
        run.corruption(
          "ERROR: Unallocated cluster has non-zero subcluster allocation map",
        );
      }
      return false;
    }
    if ((bitmap.allocated & bitmap.zero) !== 0) {
      run.corruption(
        `ERROR offset=${offset.toString(16)}: ` +
          "Allocated cluster has corrupted subcluster allocation bitmap",
      );
    }
    if (!run.geometry.isAligned(offset)) {
      const hasData = this.#subclusters
        ? bitmap.allocated !== 0
        : (low & ZERO) === 0;
      this.#misaligned(offset, hasData);
      if (!hasData && this.#repair) return true;
    }
    this.#countCluster(offset, high);
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

  #countCluster(offset: number, high: number): void {
    const { clusterSize } = this.#run.geometry;
    if (this.#statistics) this.#noteClusters(offset, 1, high);
    if (!this.#dataFile) this.#run.count(offset, clusterSize, this.#weight);
  }

  /** Account for clusters in a row; `high` has the flags of their entries. */
  #noteClusters(offset: number, count: number, high: number): void {
    const { result, geometry } = this.#run;
    if ((high & COPIED) === 0) this.#run.allCopied = false;
    result.allocatedClusters += count;
    if (this.#nextOffset !== 0 && offset !== this.#nextOffset) {
      result.fragmentedClusters++;
    }
    this.#nextOffset = offset + count * geometry.clusterSize;
  }

  #compressed(index: number, high: number, low: number): void {
    const run = this.#run;
    const bits = run.geometry.compressedOffsetBits - 32;
    const offsetHigh = high & (2 ** bits - 1);
    const place = entryToHex(offsetHigh, low);
    if (high & COPIED) {
      run.corruption(
        `ERROR: coffset=0x${place}: ` +
          "copied flag must never be set for compressed clusters",
      );
    }
    const entry = entryToHex(high & ~COPIED, low);
    if (this.#dataFile) {
      run.corruption(
        `ERROR compressed cluster ${index} with data file, entry=0x${entry}`,
      );
      return;
    }
    const { allocated, zero } = this.#bitmap(index);
    if (allocated !== 0 || zero !== 0) {
      run.corruption(
        `ERROR compressed cluster ${index} with non-zero subcluster ` +
          `allocation bitmap, entry=0x${entry}`,
      );
      return;
    }
    const offset = offsetHigh * TWO_32 + low;
    const { length } = run.geometry.compressedCluster(high, low);
    run.count(offset, length, this.#weight, place);
    if (this.#statistics) {
      run.result.allocatedClusters++;
      run.result.compressedClusters++;
      // Several share a sector, so that each is read by itself anyway.
      run.result.fragmentedClusters++;
    }
  }

  /** Which subclusters are allocated, and which read as zeroes. */
  #bitmap(index: number): { allocated: number; zero: number } {
    if (!this.#subclusters) return NO_SUBCLUSTERS;
    const at = index * this.#entrySize + ENTRY_SIZE;
    return {
      zero: this.#view.getUint32(at),
      allocated: this.#view.getUint32(at + 4),
    };
  }

  #entryAt(index: number): { high: number; offset: number } {
    const at = index * this.#entrySize;
    const high = this.#view.getUint32(at);
    return { high, offset: entryOffset(high, this.#view.getUint32(at + 4)) };
  }

  /** Turn an entry into that of a zero cluster; whether that was possible. */
  async #makeZero(
    tableOffset: number,
    index: number,
    active: boolean,
  ): Promise<boolean> {
    const run = this.#run;
    const at = index * this.#entrySize;
    const { zero, allocated } = this.#bitmap(index);
    writeUint64(this.#view, at, this.#subclusters ? 0 : ZERO);
    if (this.#subclusters) {
      this.#view.setUint32(at + ENTRY_SIZE, (zero | allocated) >>> 0);
      this.#view.setUint32(at + ENTRY_SIZE + 4, 0);
    }
    const entry = this.#bytes.subarray(at, at + this.#entrySize);
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
      return false;
    }
    run.result.corruptions--;
    run.result.corruptionsFixed++;
    return true;
  }
}

const NO_SUBCLUSTERS = { allocated: 0, zero: 0 } as const;
