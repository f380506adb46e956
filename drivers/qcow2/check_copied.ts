/**
 * Checking the COPIED flags of the active L1 and L2 tables against the stored
 * refcounts: set where the refcount is exactly one, and nowhere else.
 *
 * @module
 */
import { allocate, viewOf } from "../../core/bytes.ts";
import { BlockError, reasonOf, strerror } from "../../core/errors.ts";
import type { CheckRun } from "./check_run.ts";
import {
  COPIED,
  ENTRY_SIZE,
  entryOffset,
  entryToHex,
  setCopied,
} from "./format.ts";
import type { L2Layout } from "./l2_entry.ts";
import { ReferenceCounts } from "./reference_counts.ts";
import { readRefcount } from "./refcount_layout.ts";
import { refcountText } from "./stored_refcounts.ts";

/** Check, and repair if that is safe, all COPIED flags. */
export async function checkCopiedFlags(run: CheckRun): Promise<void> {
  const { fix, result, header } = run;
  const sound = result.checkErrors === 0 && result.corruptions === 0 &&
    result.leaks === 0;
  // The usual case: all entries are flagged, and every refcount is as counted,
  // one. The tables, most of what a check reads, are not read again.
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

/** Whether an entry's flag contradicts the refcount. */
function isWrong(view: DataView, at: number, refcount: number): boolean {
  return (refcount === 1) !== ((view.getUint32(at) & COPIED) !== 0);
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
  setCopied(view, at, refcount.value === 1);
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

/**
 * Most entries compared at once. Where refcounts end a run early, the rest of
 * it is examined again.
 */
const MAX_RUN = 512;

/** The flags in L2 tables. */
class L2Flags {
  readonly #run: CheckRun;
  readonly #repair: boolean;
  readonly #bytes: Uint8Array<ArrayBuffer>;
  readonly #view: DataView;
  readonly #l2: L2Layout;
  readonly #dataFile: boolean;
  /** Tables without a finding: several entries may refer to one. */
  readonly #sound: ReferenceCounts;
  #changed = 0;
  /** The refcount block used last, and its index. */
  #block: DataView | null = null;
  #blockIndex = -1;

  constructor(run: CheckRun, repair: boolean) {
    this.#run = run;
    this.#repair = repair;
    this.#sound = new ReferenceCounts(run.counts.length, 1);
    this.#bytes = allocate(run.geometry.clusterSize);
    this.#view = viewOf(this.#bytes);
    this.#l2 = run.geometry.l2;
    this.#dataFile = run.uses("DATA_FILE");
  }

  /** Check the table at `offset`. */
  async check(offset: number): Promise<void> {
    const run = this.#run;
    const cluster = offset / run.geometry.clusterSize;
    const known = Number.isInteger(cluster) && cluster < this.#sound.length;
    if (known && this.#sound.get(cluster) > 0) return;
    const { findings } = run;
    run.chargeRead(this.#bytes.length, offset);
    try {
      await run.read(offset, this.#bytes);
    } catch (error) {
      const reason = reasonOf(error);
      throw run.failure(`ERROR: Could not read L2 table: ${reason}`, error);
    }
    this.#changed = 0;
    this.#blockIndex = -1;
    const { entriesPerTable } = this.#l2;
    for (let index = 0; (index = this.#scan(index)) < entriesPerTable;) {
      // Stopped because a refcount block must be loaded.
      this.#blockIndex = this.#blockIndexOf(index);
      this.#block = await run.stored.block(this.#blockIndex);
    }
    if (this.#changed > 0) await this.#write(offset);
    else if (known && run.findings === findings) this.#sound.set(cluster, 1);
  }

  /** Check entries until a refcount block must be loaded, or to the end. */
  #scan(from: number): number {
    const table = this.#view;
    const l2 = this.#l2;
    const { refcountOrder, refcountBlockEntries, clusterSize } =
      this.#run.geometry;
    const { entriesPerTable } = l2;
    const perByte = 1 / clusterSize;
    // What the current refcount block covers.
    const coverage = refcountBlockEntries * clusterSize;
    const start = this.#blockIndex * coverage;
    const end = start + coverage;
    const block = this.#block;
    for (let index = from; index < entriesPerTable; index++) {
      if (!l2.isPlaced(table, index)) continue;
      let refcount = 1;
      let inBlock = 0;
      if (!this.#dataFile) {
        const offset = l2.offset(table, index);
        if (offset < start || offset >= end) return index;
        if (block === null) continue;
        inBlock = ((offset - start) * perByte) | 0;
        refcount = refcountOrder === 4
          ? block.getUint16(inBlock * 2)
          : readRefcount(block, refcountOrder, inBlock);
      }
      const isCopied = l2.isCopied(table, index);
      if ((refcount === 1) !== isCopied) this.#wrong(index, refcount, inBlock);
      else if (isCopied && block !== null && refcountOrder === 4) {
        index += this.#soundRun(index, block, inBlock) - 1;
      }
    }
    return entriesPerTable;
  }

  /**
   * The length of a sound run of entries from an index on: flagged entries of
   * consecutive clusters whose refcounts, from `inBlock` of the block on, are
   * all one. Runs are usually long, and faster to compare as a whole.
   */
  #soundRun(index: number, block: DataView, inBlock: number): number {
    const inThisBlock = block.byteLength / 2 - inBlock;
    const most = Math.min(MAX_RUN, inThisBlock);
    const run = this.#l2.sequenceLength(this.#view, index, most);
    let sound = 1;
    while (sound < run && block.getUint16((inBlock + sound) * 2) === 1) sound++;
    return sound;
  }

  #wrong(index: number, refcount: number, inBlock: number): void {
    const text = this.#dataFile || !this.#block
      ? refcount
      : refcountText(this.#block, this.#run.geometry.refcountOrder, inBlock);
    const entry = this.#l2.text(this.#view, index);
    this.#run.corruption(
      `${this.#repair ? "Repairing" : "ERROR"} OFLAG_COPIED data cluster: ` +
        `l2_entry=${entry} refcount=${text}`,
    );
    if (!this.#repair) return;
    this.#l2.setCopied(this.#view, index, refcount === 1);
    this.#changed++;
  }

  #blockIndexOf(index: number): number {
    const { clusterSize, refcountBlockEntries } = this.#run.geometry;
    const offset = this.#l2.offset(this.#view, index);
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
