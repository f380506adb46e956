/**
 * Checking a QED image: entries must refer to clusters of the file, each used
 * only once. (Specification: "Consistency checking".)
 *
 * @module
 */
import { allocate, divideUp } from "../../core/bytes.ts";
import { nothingFound } from "../../core/check_result.ts";
import { asBlockError } from "../../core/errors.ts";
import type { BlockNode, CheckResult } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import {
  clustersEnd,
  isTablePlace,
  type QedHeader,
  tableEntries,
} from "./header.ts";

/** Bytes of a table read at once. */
const CHUNK_BYTES = 256 * 1024;
/** Clusters per bitmap. */
const GROUP = 1 << 16;

const ZERO_CLUSTER = 1;

/** The set of clusters in use. */
class UsedClusters {
  readonly #groups = new Map<number, Uint8Array>();
  /** Number of clusters. */
  count = 0;

  /** Add a cluster; returns whether it was not in use before. */
  add(cluster: number): boolean {
    const index = Math.floor(cluster / GROUP);
    let group = this.#groups.get(index);
    if (!group) this.#groups.set(index, group = new Uint8Array(GROUP / 8));
    const [at, bit] = [cluster % GROUP >> 3, 1 << (cluster & 7)];
    if (group[at] & bit) return false;
    group[at] |= bit;
    this.count++;
    return true;
  }
}

/**
 * Check the tables in the file, to which all changes must have been written.
 *
 * @param repairs Whether to clear invalid entries. Clusters used twice stay so:
 * their owner is unknown.
 */
export async function checkTables(
  file: BlockNode,
  header: QedHeader,
  repairs: boolean,
): Promise<CheckResult> {
  const check = new QedCheck(file, header, repairs);
  await check.run();
  return check.result;
}

class QedCheck {
  readonly result: CheckResult;
  readonly #file: BlockNode;
  readonly #header: QedHeader;
  readonly #repairs: boolean;
  readonly #used = new UsedClusters();

  constructor(file: BlockNode, header: QedHeader, repairs: boolean) {
    this.#file = file;
    this.#header = header;
    this.#repairs = repairs;
    const { size, clusterSize } = header;
    this.result = {
      ...nothingFound(),
      totalClusters: divideUp(size, clusterSize),
    };
  }

  async run(): Promise<void> {
    const { l1Offset, clusterSize, headerClusters } = this.#header;
    this.#useTable(l1Offset);
    try {
      await this.#eachEntry(l1Offset, (entry) => this.#checkTable(entry));
    } catch (error) {
      asBlockError(error);
      this.result.checkErrors++;
    }
    if (this.result.checkErrors > 0) return;
    const clusters = clustersEnd(this.#file, this.#header) / clusterSize;
    this.result.leaks = clusters - headerClusters - this.#used.count;
  }

  /** Mark the clusters of a table as used; returns whether none was in use. */
  #useTable(offset: number): boolean {
    const { clusterSize, tableSize } = this.#header;
    let isSole = true;
    for (let i = 0; i < tableSize; i++) {
      if (this.#used.add(offset / clusterSize + i)) continue;
      isSole = false;
      this.result.corruptions++;
    }
    return isSole;
  }

  /** Check an entry of the L1 table, and its L2 table. */
  async #checkTable(offset: number): Promise<boolean> {
    if (!isTablePlace(offset, this.#header, this.#file)) return false;
    if (!this.#useTable(offset)) return true;
    let last = 0;
    try {
      await this.#eachEntry(offset, (entry) => {
        if (entry === ZERO_CLUSTER) return true;
        this.result.allocatedClusters++;
        const follows = last + this.#header.clusterSize === entry;
        if (last !== 0 && !follows) this.result.fragmentedClusters++;
        last = entry;
        return this.#useCluster(entry);
      });
    } catch (error) {
      asBlockError(error);
      this.result.checkErrors++;
    }
    return true;
  }

  /** Mark a data cluster as used; returns whether it is valid. */
  #useCluster(offset: number): boolean {
    const { clusterSize, headerClusters } = this.#header;
    const isPlace = offset % clusterSize === 0 &&
      offset >= headerClusters * clusterSize &&
      offset < clustersEnd(this.#file, this.#header);
    if (!isPlace) return false;
    if (!this.#used.add(offset / clusterSize)) this.result.corruptions++;
    return true;
  }

  /** Visit the nonzero entries; those found to be invalid are counted. */
  async #eachEntry(
    table: number,
    isSound: (entry: number) => boolean | Promise<boolean>,
  ): Promise<void> {
    const length = tableEntries(this.#header) * 8;
    for (let done = 0; done < length; done += CHUNK_BYTES) {
      const bytes = allocate(Math.min(CHUNK_BYTES, length - done));
      await readPadded(this.#file, table + done, [bytes]);
      const view = new DataView(bytes.buffer, bytes.byteOffset);
      let hasChanged = false;
      for (let at = 0; at < bytes.length; at += 8) {
        const low = view.getUint32(at, true);
        const high = view.getUint32(at + 4, true);
        if (low === 0 && high === 0) continue;
        const sound = isSound(high * 2 ** 32 + low);
        if (sound instanceof Promise ? await sound : sound) continue;
        if (this.#repairs) {
          view.setBigUint64(at, 0n, true);
          hasChanged = true;
          this.result.corruptionsFixed++;
        } else this.result.corruptions++;
      }
      if (hasChanged) await this.#file.writev!(table + done, [bytes]);
    }
  }
}
