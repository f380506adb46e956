/**
 * Counting the references in L1 tables and in their L2 tables. (Specification:
 * "L1 table entry".)
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import type { CheckResult } from "../../core/node.ts";
import { L2Scan } from "./check_l2.ts";
import type { CheckRun } from "./check_run.ts";
import {
  COPIED,
  ENTRY_SIZE,
  entryOffset,
  entryToHex,
  l1ReservedBits,
} from "./format.ts";
import { ReferenceCounts } from "./reference_counts.ts";

/**
 * The smallest refcount maximum with which tables are shared often enough to
 * remember.
 */
const MIN_SHARING_MAX = 255;

/** An L1 table. */
interface L1Table {
  offset: number;
  /** Entries. */
  size: number;
  /** Whether it is the active one, not a snapshot's. */
  active: boolean;
  /** The offset in hexadecimal digits, if a number may be inexact. */
  offsetText?: string;
}

/** Statistics of guest clusters. */
type Figures = Pick<
  CheckResult,
  "allocatedClusters" | "fragmentedClusters" | "compressedClusters"
>;

function figuresOf(run: CheckRun): Figures {
  const { allocatedClusters, fragmentedClusters, compressedClusters } =
    run.result;
  return { allocatedClusters, fragmentedClusters, compressedClusters };
}

function difference(after: Figures, before: Figures): Figures {
  return {
    allocatedClusters: after.allocatedClusters - before.allocatedClusters,
    fragmentedClusters: after.fragmentedClusters - before.fragmentedClusters,
    compressedClusters: after.compressedClusters - before.compressedClusters,
  };
}

/** Walks the active tables of an image and those of snapshots. */
export class TableWalk {
  readonly #run: CheckRun;
  readonly #repair: boolean;
  readonly #scan: L2Scan;
  /**
   * For each sound L2 table, how often it was reached. Snapshots share their
   * tables: all references but the first are counted at the end, in one go.
   */
  readonly #sound: ReferenceCounts;
  /** The statistics of active L2 tables that were reached more than once. */
  readonly #figures = new Map<number, Figures>();

  /** @param repair Whether to repair entries where possible. */
  constructor(run: CheckRun, repair: boolean) {
    this.#run = run;
    this.#repair = repair;
    this.#scan = new L2Scan(run);
    this.#sound = new ReferenceCounts(run.counts.length, Infinity);
  }

  /** Count an L1 table and all that it refers to. */
  async walk(table: L1Table): Promise<void> {
    const { offset, size, active, offsetText } = table;
    if (size === 0) return;
    const run = this.#run;
    const { clusterSize } = run.geometry;
    run.count(offset, size * ENTRY_SIZE, 1, offsetText);
    await this.#readable(offset, "check_refcounts_l1");
    for await (const { view } of run.tableParts(offset, size)) {
      for (let at = 0; at < view.byteLength; at += ENTRY_SIZE) {
        const high = view.getUint32(at);
        const low = view.getUint32(at + 4);
        if (high === 0 && low === 0) continue;
        if (l1ReservedBits(high, low)) {
          const text = entryToHex(high, low);
          run.corruption(
            `ERROR found L1 entry with reserved bits set: ${text}`,
          );
        }
        if (active && (high & COPIED) === 0) run.allCopied = false;
        const l2Offset = entryOffset(high, low);
        run.count(l2Offset, clusterSize);
        if (!run.geometry.isAligned(l2Offset)) {
          run.corruption(
            `ERROR l2_offset=${l2Offset.toString(16)}: ` +
              "Table is not cluster aligned; L1 entry corrupted",
          );
        }
        await this.#walkL2(l2Offset, active);
      }
    }
  }

  /** Count the further references to shared L2 tables. */
  async finish(): Promise<void> {
    const { clusterSize } = this.#run.geometry;
    let cluster = this.#sound.nextUsed(0);
    for (; cluster < this.#sound.length;) {
      const again = this.#sound.get(cluster) - 1;
      const offset = cluster * clusterSize;
      if (again > 0) await this.#scan.table(offset, false, false, again);
      cluster = this.#sound.nextUsed(cluster + 1);
    }
  }

  async #walkL2(offset: number, active: boolean): Promise<void> {
    const run = this.#run;
    const { clusterSize, refcountMax } = run.geometry;
    const cluster = offset / clusterSize;
    const known = Number.isInteger(cluster) && cluster < this.#sound.length &&
      refcountMax >= MIN_SHARING_MAX;
    const metBefore = known && this.#sound.get(cluster) > 0;
    if (metBefore && (!active || this.#addFigures(cluster))) {
      this.#sound.add(cluster, 1);
      return;
    }
    const { findings } = run;
    const before = figuresOf(run);
    await this.#scan.table(offset, active, this.#repair, 1);
    if (!known || run.findings !== findings) return;
    if (!metBefore) this.#sound.set(cluster, 1);
    else this.#figures.set(cluster, difference(figuresOf(run), before));
  }

  /** Add the statistics of a table reached before, if they are known. */
  #addFigures(cluster: number): boolean {
    const figures = this.#figures.get(cluster);
    if (!figures) return false;
    const { result } = this.#run;
    result.allocatedClusters += figures.allocatedClusters;
    result.fragmentedClusters += figures.fragmentedClusters;
    result.compressedClusters += figures.compressedClusters;
    return true;
  }

  async #readable(offset: number, where: string): Promise<void> {
    try {
      await this.#run.read(offset, allocate(ENTRY_SIZE));
    } catch (error) {
      throw this.#run.failure(`ERROR: I/O error in ${where}`, error);
    }
  }
}
