/**
 * Rebuilding the refcount structure from the counted references, in free
 * clusters, so that the old structure stays intact until the header refers to
 * the new one.
 *
 * @module
 */
import { allocate, roundUp, viewOf } from "../../core/bytes.ts";
import { asBlockError, BlockError, reasonOf } from "../../core/errors.ts";
import type { CheckRun } from "./check_run.ts";
import { ENTRY_SIZE, MAX_REFCOUNT_TABLE_BYTES, writeUint64 } from "./format.ts";
import { writeRefcount } from "./refcount_layout.ts";

/** Offset in the header of the refcount table's offset and clusters. */
const HEADER_POINTER = 48;

/**
 * Write a new refcount structure, and let the header refer to it. The clusters
 * of the old structure are then leaked, as may be those of tables that proved
 * too small; counting the references again shows them.
 */
export async function rebuildRefcounts(run: CheckRun): Promise<void> {
  const structure = new NewStructure(run);
  try {
    await structure.writeBlocks(0, run.counts.length);
    let offset;
    do {
      offset = structure.takeTable();
    } while (await structure.writeTableBlocks(offset));
    await structure.writeTable(offset);
  } catch (error) {
    run.result.checkErrors++;
    const { code } = asBlockError(error);
    throw new BlockError(code, reasonOf(error), { cause: error });
  }
  run.metadataMoved();
  await run.stored.load();
}

/** The structure being built. */
class NewStructure {
  readonly #run: CheckRun;
  /** Offsets of its blocks; 0 where there is none. */
  readonly #blocks: number[] = [];
  /** Entries in its table, a whole number of clusters. */
  #tableSize = 0;

  constructor(run: CheckRun) {
    this.#run = run;
  }

  /** Clusters of the table. */
  get #tableClusters(): number {
    const { geometry } = this.#run;
    return geometry.clustersFor(this.#tableSize * ENTRY_SIZE);
  }

  /** Allocate the table. */
  takeTable(): number {
    const { counts, geometry } = this.#run;
    return counts.take(this.#tableClusters, 0) * geometry.clusterSize;
  }

  /** Write the blocks that count the table; returns whether it has grown. */
  async writeTableBlocks(offset: number): Promise<boolean> {
    const first = offset / this.#run.geometry.clusterSize;
    return await this.writeBlocks(first, first + this.#tableClusters);
  }

  /**
   * Write the blocks that count the clusters `first` to `end`, and those that
   * count these blocks.
   *
   * @returns whether the table must grow for them.
   */
  async writeBlocks(first: number, end: number): Promise<boolean> {
    const { counts, geometry } = this.#run;
    const { clusterSize, refcountBlockEntries } = geometry;
    const oldSize = this.#tableSize;
    let cluster = counts.nextUsed(first);
    let free = 0;
    while (cluster < end) {
      const index = Math.floor(cluster / refcountBlockEntries);
      const blockStart = index * refcountBlockEntries;
      if (!this.#blocks[index]) {
        // Not among clusters whose block has been written already.
        free = counts.nextFree(Math.max(free, blockStart));
        const taken = counts.take(1, free);
        end = Math.max(end, taken + 1);
        this.#setBlock(index, taken * clusterSize);
      }
      await this.#writeBlock(index);
      cluster = counts.nextUsed(blockStart + refcountBlockEntries);
    }
    return this.#tableSize > oldSize;
  }

  #setBlock(index: number, offset: number): void {
    const perCluster = this.#run.geometry.clusterSize / ENTRY_SIZE;
    this.#tableSize = Math.max(this.#tableSize, roundUp(index + 1, perCluster));
    if (this.#tableSize * ENTRY_SIZE > MAX_REFCOUNT_TABLE_BYTES) {
      throw new BlockError("EFBIG");
    }
    while (this.#blocks.length <= index) this.#blocks.push(0);
    this.#blocks[index] = offset;
  }

  async #writeBlock(index: number): Promise<void> {
    const { counts, geometry } = this.#run;
    const { clusterSize, refcountOrder, refcountBlockEntries } = geometry;
    const bytes = allocate(clusterSize);
    const view = viewOf(bytes);
    const start = index * refcountBlockEntries;
    const end = Math.min(start + refcountBlockEntries, counts.length);
    for (let at = counts.nextUsed(start); at < end; at++) {
      writeRefcount(view, refcountOrder, at - start, counts.get(at));
    }
    await this.#write(this.#blocks[index], bytes, "refblock");
  }

  /** Write the table, and let the header refer to it. */
  async writeTable(offset: number): Promise<void> {
    const { header, file } = this.#run;
    const bytes = allocate(this.#tableSize * ENTRY_SIZE);
    const view = viewOf(bytes);
    this.#blocks.forEach((block, index) =>
      writeUint64(view, index * ENTRY_SIZE, block)
    );
    await this.#write(offset, bytes, "reftable");
    // All of it must be durable before the header refers to it.
    await file.flush?.();
    const pointer = allocate(12);
    writeUint64(viewOf(pointer), 0, offset);
    viewOf(pointer).setUint32(8, this.#tableClusters);
    await file.writev!(HEADER_POINTER, [pointer]);
    await file.flush?.();
    header.refcountTableOffset = offset;
    header.refcountTableClusters = this.#tableClusters;
  }

  async #write(
    offset: number,
    bytes: Uint8Array,
    what: string,
  ): Promise<void> {
    try {
      await this.#run.write(offset, bytes);
    } catch (error) {
      const reason = reasonOf(error);
      this.#run.report(`ERROR writing ${what}: ${reason}`, true);
      throw error;
    }
  }
}
