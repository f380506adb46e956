/**
 * The COPIED flags of the active L1 and L2 tables against the stored
 * refcounts: set where the refcount is exactly one, and nowhere else.
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import { BlockError, reasonOf, strerror } from "../../core/errors.ts";
import type { CheckRun } from "./check_run.ts";
import {
  COMPRESSED,
  COPIED,
  ENTRY_SIZE,
  entryOffset,
  entryToHex,
  viewOf,
} from "./format.ts";
import { ReferenceCounts } from "./reference_counts.ts";
import { readRefcount } from "./refcount_layout.ts";
import { refcountText } from "./stored_refcounts.ts";

/** Check, and repair if that is safe, all COPIED flags. */
export async function checkCopiedFlags(run: CheckRun): Promise<void> {
  const { fix, result, header } = run;
  const sound = result.checkErrors === 0 && result.corruptions === 0 &&
    result.leaks === 0;
  // As usual, all are flagged, and each refcount is what was counted: one. The
  // tables, which make up most of what a check reads, are not read again.
  const usual = run.allCopied && !run.counts.hasShared;
  if (sound && usual && !run.repairs && !run.uses("DATA_FILE")) return;
  const repair = fix.corruptions || (fix.leaks && sound);
  const tables = new L2Flags(run, repair);
  const parts = run.tableParts(header.l1TableOffset, header.l1Size);
  for await (const { first, view } of parts) {
    for (let at = 0; at < view.byteLength; at += ENTRY_SIZE) {
      const offset = entryOffset(view.getUint32(at), view.getUint32(at + 4));
      if (offset === 0) continue;
      const cluster = Math.floor(offset / run.geometry.clusterSize);
      const refcount = await run.stored.get(cluster);
      if (refcount === undefined) continue;
      const index = first + at / ENTRY_SIZE;
      if (isWrong(view, at, refcount.value)) {
        await wrongL1Entry(run, view, at, index, refcount, repair);
      }
      await tables.check(offset);
    }
  }
}

/** Whether the flag of an entry does not fit the refcount. */
function isWrong(view: DataView, at: number, refcount: number): boolean {
  return (refcount === 1) !== ((view.getUint32(at) & COPIED) !== 0);
}

function setFlag(view: DataView, at: number, refcount: number): void {
  const rest = view.getUint32(at) & ~COPIED;
  view.setUint32(at, refcount === 1 ? rest | COPIED : rest);
}

async function wrongL1Entry(
  run: CheckRun,
  view: DataView,
  at: number,
  index: number,
  refcount: { value: number; text: string },
  repair: boolean,
): Promise<void> {
  const entry = entryToHex(view.getUint32(at), view.getUint32(at + 4));
  run.corruption(
    `${repair ? "Repairing" : "ERROR"} OFLAG_COPIED L2 cluster: ` +
      `l1_index=${index} l1_entry=${entry} refcount=${refcount.text}`,
  );
  if (!repair) return;
  setFlag(view, at, refcount.value);
  const bytes = new Uint8Array(view.buffer, view.byteOffset + at, ENTRY_SIZE);
  try {
    const offset = run.header.l1TableOffset + index * ENTRY_SIZE;
    await run.write(offset, bytes, "active L1 table");
  } catch (error) {
    run.result.checkErrors++;
    throw error;
  }
  run.result.corruptions--;
  run.result.corruptionsFixed++;
}

/** The flags in L2 tables. */
class L2Flags {
  readonly #run: CheckRun;
  readonly #repair: boolean;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  readonly #entrySize: number;
  readonly #dataFile: boolean;
  /** Tables without a finding: entries may name them again and again. */
  readonly #sound: ReferenceCounts;
  #changed = 0;
  /** The refcount block that was looked at last, and its number. */
  #block: DataView | null = null;
  #blockIndex = -1;

  constructor(run: CheckRun, repair: boolean) {
    this.#run = run;
    this.#repair = repair;
    this.#sound = new ReferenceCounts(run.counts.length, 1);
    this.#bytes = allocate(run.geometry.clusterSize);
    this.#view = viewOf(this.#bytes);
    this.#entrySize = run.uses("EXTENDED_L2") ? 2 * ENTRY_SIZE : ENTRY_SIZE;
    this.#dataFile = run.uses("DATA_FILE");
  }

  /** Check the table at `offset`. */
  async check(offset: number): Promise<void> {
    const run = this.#run;
    const cluster = offset / run.geometry.clusterSize;
    const known = Number.isInteger(cluster) && cluster < this.#sound.length;
    if (known && this.#sound.get(cluster) > 0) return;
    const { findings } = run;
    run.spend(this.#bytes.length, offset);
    try {
      await run.read(offset, this.#bytes);
    } catch (error) {
      const reason = reasonOf(error);
      throw run.failure(`ERROR: Could not read L2 table: ${reason}`, error);
    }
    this.#changed = 0;
    this.#blockIndex = -1;
    for (let at = 0; (at = this.#scan(at)) < this.#bytes.length;) {
      // Stopped for want of a refcount block.
      this.#blockIndex = this.#blockIndexOf(at);
      this.#block = await run.stored.block(this.#blockIndex);
    }
    if (this.#changed > 0) await this.#write(offset);
    else if (known && run.findings === findings) this.#sound.set(cluster, 1);
  }

  /** Check entries until a refcount block must be loaded, or to the end. */
  #scan(from: number): number {
    const view = this.#view;
    const { refcountOrder, refcountBlockEntries, clusterSize } =
      this.#run.geometry;
    const { length } = this.#bytes;
    const perByte = 1 / clusterSize;
    // What the refcount block at hand covers.
    const coverage = refcountBlockEntries * clusterSize;
    const start = this.#blockIndex * coverage;
    const end = start + coverage;
    const block = this.#block;
    for (let at = from; at < length; at += this.#entrySize) {
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      if ((high | low) === 0 || (high & COMPRESSED) !== 0) continue;
      const offset = entryOffset(high, low);
      if (offset === 0 && !(this.#dataFile && (high & COPIED))) continue;
      let refcount = 1;
      let index = 0;
      if (!this.#dataFile) {
        if (offset < start || offset >= end) return at;
        if (block === null) continue;
        index = ((offset - start) * perByte) | 0;
        refcount = refcountOrder === 4
          ? block.getUint16(index * 2)
          : readRefcount(block, refcountOrder, index);
      }
      const isCopied = (high & COPIED) !== 0;
      if ((refcount === 1) !== isCopied) this.#wrong(at, refcount, index);
      else if (isCopied && block !== null && refcountOrder === 4) {
        at = this.#lastOfRun(at, high, low, block, index);
      }
    }
    return length;
  }

  /**
   * The last entry of a run that begins with the one at byte `at`, a flagged
   * one: clusters in a row whose refcounts, from `index` of the block on, are
   * all one. Runs are long as a rule, and so an entry takes 4 ns instead of 20.
   */
  #lastOfRun(
    at: number,
    high: number,
    low: number,
    block: DataView,
    index: number,
  ): number {
    const view = this.#view;
    const step = this.#entrySize;
    const { clusterSize } = this.#run.geometry;
    const { length } = this.#bytes;
    const expectedHigh = high | 0;
    let expectedLow = low | 0;
    for (let next = at + step; next < length; at = next, next += step) {
      expectedLow = (expectedLow + clusterSize) | 0;
      index++;
      if (
        view.getInt32(next + 4) !== expectedLow ||
        view.getInt32(next) !== expectedHigh ||
        // The lower half begins anew, or the block ends.
        (expectedLow >>> 0) < clusterSize || 2 * index >= block.byteLength ||
        block.getUint16(2 * index) !== 1
      ) break;
    }
    return at;
  }

  #wrong(at: number, refcount: number, index: number): void {
    const view = this.#view;
    const text = this.#dataFile || !this.#block
      ? refcount
      : refcountText(this.#block, this.#run.geometry.refcountOrder, index);
    const entry = entryToHex(view.getUint32(at), view.getUint32(at + 4));
    this.#run.corruption(
      `${this.#repair ? "Repairing" : "ERROR"} OFLAG_COPIED data cluster: ` +
        `l2_entry=${entry} refcount=${text}`,
    );
    if (!this.#repair) return;
    setFlag(view, at, refcount);
    this.#changed++;
  }

  #blockIndexOf(at: number): number {
    const view = this.#view;
    const { clusterSize, refcountBlockEntries } = this.#run.geometry;
    const offset = entryOffset(view.getUint32(at), view.getUint32(at + 4));
    const cluster = Math.floor(offset / clusterSize);
    return Math.floor(cluster / refcountBlockEntries);
  }

  async #write(offset: number): Promise<void> {
    const run = this.#run;
    const { length } = this.#bytes;
    if (!await run.mayWrite(offset, length, "active L2 table")) {
      throw run.failure(
        "ERROR: Could not write L2 table; metadata overlap check failed: " +
          strerror("EIO"),
        new BlockError("EIO"),
      );
    }
    try {
      await run.file.writev!(offset, [this.#bytes]);
    } catch (error) {
      const reason = reasonOf(error);
      throw run.failure(`ERROR: Could not write L2 table: ${reason}`, error);
    }
    run.result.corruptions -= this.#changed;
    run.result.corruptionsFixed += this.#changed;
  }
}
