/**
 * Changing the width of refcounts: a new refcount structure is written beside
 * the old one, and a new header switches to it in one step.
 *
 * @module
 */
import { allocate, roundUp, viewOf } from "../../core/bytes.ts";
import { asBlockError, BlockError } from "../../core/errors.ts";
import { isZero } from "../../core/runtime.ts";
import type { StepProgress } from "./amend_progress.ts";
import {
  bytesOf,
  ENTRY_SIZE,
  hex,
  MAX_REFCOUNT_TABLE_BYTES,
  writeUint64,
} from "./format.ts";
import { Geometry } from "./geometry.ts";
import { readRefcount, writeRefcount } from "./refcount_layout.ts";
import type { Qcow2State } from "./state.ts";
import { refcountText } from "./stored_refcounts.ts";

/**
 * Rewrite all refcounts with `2 ** order` bits. Until the header refers to the
 * new structure, the old one counts its clusters; then the old one is freed. A
 * power cut leaks one of the two.
 *
 * @param adopt Switches to the changed header, with caches that fit it.
 */
export async function changeRefcountWidth(
  state: Qcow2State,
  order: number,
  adopt: () => void,
  progress: StepProgress,
): Promise<void> {
  using _ = await state.metadata.lock();
  const structure = new NewStructure(state, order, progress);
  try {
    await structure.allocate();
    const table = await structure.write();
    await naming("Failed to flush the refblock cache", state.flushCaches());
    const old = oldStructure(state);
    await state.changeHeader(structure.header);
    adopt();
    state.refcounts.replaceTable(table);
    for (const { offset, length } of old) {
      await state.refcounts.free(offset, length);
    }
  } catch (error) {
    if (!structure.isActive && !state.unusable) await structure.release();
    throw error;
  }
}

/** A range of the file. */
interface Place {
  offset: number;
  length: number;
}

/** Where the refcount table and its blocks are. */
function oldStructure({ refcounts, header, geometry }: Qcow2State): Place[] {
  const { clusterSize } = geometry;
  const places = [{
    offset: header.refcountTableOffset,
    length: header.refcountTableClusters * clusterSize,
  }];
  for (let index = 0; index < refcounts.tableSize; index++) {
    const offset = refcounts.blockOffset(index);
    if (offset !== 0) places.push({ offset, length: clusterSize });
  }
  return places;
}

/** Called once all that one of the new blocks counts has been processed. */
type BlockDone = (index: number, isEmpty: boolean) => Promise<void>;

/** The structure being built. */
class NewStructure {
  readonly #state: Qcow2State;
  readonly #geometry: Geometry;
  readonly #progress: StepProgress;
  /** Offsets of its blocks; 0 where none is needed. */
  readonly #blocks: number[] = [];
  #tableOffset = 0;
  /** Entries in its table, a whole number of clusters. */
  #tableSize = 0;
  /** How often the refcounts have been walked through. */
  #walks = 0;

  constructor(state: Qcow2State, order: number, progress: StepProgress) {
    this.#state = state;
    this.#geometry = Geometry.of({ ...state.header, refcountOrder: order });
    this.#progress = progress;
  }

  /** The header fields that refer to it. */
  get header() {
    const { clusterSize, refcountOrder } = this.#geometry;
    return {
      refcountOrder,
      refcountTableOffset: this.#tableOffset,
      refcountTableClusters: this.#tableBytes / clusterSize,
    };
  }

  /** Whether the header refers to it. */
  get isActive(): boolean {
    const { refcountTableOffset } = this.#state.header;
    return refcountTableOffset === this.#tableOffset;
  }

  get #tableBytes(): number {
    return this.#tableSize * ENTRY_SIZE;
  }

  /**
   * Allocate clusters for the blocks and the table. These need to be counted
   * too, perhaps by more blocks: repeat until none is missing.
   */
  async allocate(): Promise<void> {
    const { refcounts } = this.#state;
    for (let isMissing = true; isMissing;) {
      isMissing = false;
      // One more walk finds nothing missing, and the last one writes.
      const total = Math.max(this.#walks + 2, 3);
      await this.#walk(total, undefined, async (index, isEmpty) => {
        if (isEmpty || this.#blocks[index]) return;
        this.#growTo(index + 1);
        this.#blocks[index] = await refcounts.allocate(1);
        isMissing = true;
      });
      if (!isMissing) continue;
      if (this.#tableOffset !== 0) await this.#freeTable();
      const entries = roundUp(
        this.#blocks.length,
        this.#geometry.clusterSize / ENTRY_SIZE,
      );
      this.#tableOffset = await refcounts.allocate(
        this.#geometry.clustersFor(entries * ENTRY_SIZE),
      );
      this.#tableSize = entries;
    }
  }

  #growTo(blocks: number): void {
    if (blocks * ENTRY_SIZE > MAX_REFCOUNT_TABLE_BYTES) {
      throw new BlockError(
        "ENOTSUP",
        "This operation would make the refcount table grow beyond the maximum size supported by QEMU, aborting",
      );
    }
    while (this.#blocks.length < blocks) this.#blocks.push(0);
  }

  /** Write the blocks and the table; returns the table. */
  async write(): Promise<Uint8Array> {
    const { clusterSize } = this.#geometry;
    const block = allocate(clusterSize);
    const view = viewOf(block);
    await this.#walk(this.#walks + 1, view, async (index) => {
      const offset = this.#blocks[index];
      // All zero, and there may be a million of those.
      if (!offset) return;
      await this.#writeAt(offset, block);
      block.fill(0);
    });
    const table = allocate(this.#tableBytes);
    this.#blocks.forEach((offset, index) =>
      writeUint64(viewOf(table), index * ENTRY_SIZE, offset)
    );
    await this.#writeAt(this.#tableOffset, table);
    return table;
  }

  async #writeAt(offset: number, bytes: Uint8Array): Promise<void> {
    const { overlap, file } = this.#state;
    const check = overlap.check(offset, bytes.length);
    await naming("Overlap check failed", check);
    await naming("Failed to write refblock", file.writev!(offset, [bytes]));
  }

  /**
   * Walk through all refcounts, in ranges within one block of either structure.
   *
   * @param total How many walks there will be, as far as known.
   * @param target Receives the refcounts, block after block.
   */
  async #walk(
    total: number,
    target: DataView | undefined,
    done: BlockDone,
  ): Promise<void> {
    const { refcounts, geometry } = this.#state;
    const oldEntries = geometry.refcountBlockEntries;
    const newEntries = this.#geometry.refcountBlockEntries;
    const step = Math.min(oldEntries, newEntries);
    let isEmpty = true;
    let cluster = 0;
    const walk = this.#walks++;
    const report = (index: number) =>
      this.#progress(
        walk * refcounts.tableSize + index,
        total * refcounts.tableSize,
      );
    for (let index = 0; index < refcounts.tableSize; index++) {
      report(index);
      for (let at = 0; at < oldEntries; at += step) {
        const block = await this.#oldBlock(index);
        if (block && !this.#copy(block, at, step, cluster, target)) {
          isEmpty = false;
        }
        cluster += step;
        if (cluster % newEntries !== 0) continue;
        await done(cluster / newEntries - 1, isEmpty);
        isEmpty = true;
      }
    }
    if (cluster % newEntries !== 0) {
      await done(Math.floor(cluster / newEntries), isEmpty);
    }
    report(refcounts.tableSize);
  }

  /** A block of the old structure. */
  async #oldBlock(index: number): Promise<DataView | undefined> {
    const { refcounts, geometry } = this.#state;
    if (geometry.isAligned(refcounts.blockOffset(index))) {
      return await naming(
        "Failed to retrieve refblock",
        refcounts.block(index),
      );
    }
    await refcounts.block(index).catch((cause) => {
      const message = "Image is corrupt (unaligned refblock offset)";
      throw new BlockError(asBlockError(cause).code, message, { cause });
    });
  }

  /**
   * Copy refcounts from a block, beginning with its entry `at`, which counts
   * `cluster`; returns whether all are zero.
   */
  #copy(
    block: DataView,
    at: number,
    count: number,
    cluster: number,
    target: DataView | undefined,
  ): boolean {
    const { refcountOrder: oldOrder } = this.#state.geometry;
    const { refcountOrder, refcountMax, refcountBlockEntries } = this.#geometry;
    // Less than a byte only if a block has no more.
    const start = (at << oldOrder) >> 3;
    const length = Math.max(1, (count << oldOrder) >> 3);
    if (isZero(bytesOf(block).subarray(start, start + length))) return true;
    for (let i = 0; i < count; i++) {
      const value = readRefcount(block, oldOrder, at + i);
      if (value === 0) continue;
      if (value > refcountMax) throw this.#tooLarge(block, at + i, cluster + i);
      if (!target) continue;
      const entry = (cluster + i) % refcountBlockEntries;
      writeRefcount(target, refcountOrder, entry, value);
    }
    return false;
  }

  #tooLarge(block: DataView, at: number, cluster: number): BlockError {
    const { refcountOrder } = this.#state.geometry;
    const { refcountBits, clusterSize } = this.#geometry;
    return new BlockError(
      "EINVAL",
      `Cannot decrease refcount entry width to ${refcountBits} bits: ` +
        `Cluster at offset ${hex(cluster * clusterSize)} has a refcount of ` +
        refcountText(block, refcountOrder, at),
    );
  }

  async #freeTable(): Promise<void> {
    const { refcounts } = this.#state;
    await refcounts.free(this.#tableOffset, this.#tableBytes, "never");
    this.#tableOffset = 0;
  }

  /** Free everything that was allocated. */
  async release(): Promise<void> {
    const { refcounts, geometry } = this.#state;
    for (const offset of this.#blocks) {
      if (offset) await refcounts.free(offset, geometry.clusterSize);
    }
    if (this.#tableOffset !== 0) await this.#freeTable();
  }
}

/** Name a step in the message of its failure. */
async function naming<T>(step: string, done: T | Promise<T>): Promise<T> {
  try {
    return await done;
  } catch (error) {
    throw asBlockError(error).prefixed(`${step}: `);
  }
}
