/**
 * What the parts of a check share: the image, counts and findings, and access
 * to the file that trusts no offset.
 *
 * @module
 */
import { checkSignal } from "../../core/abort.ts";
import { roundDown, SECTOR_SIZE } from "../../core/bytes.ts";
import { nothingFound } from "../../core/check_result.ts";
import { asBlockError, BlockError, reasonOf } from "../../core/errors.ts";
import type { BlockNode, CheckOptions, CheckResult } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import { ENTRY_SIZE, Incompatible } from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { Header } from "./header.ts";
import { type Metadata, MetadataMap } from "./metadata_map.ts";
import { ReferenceCounts } from "./reference_counts.ts";
import type { SnapshotTable } from "./snapshot_table.ts";
import { StoredRefcounts } from "./stored_refcounts.ts";

/** The image to check. None of it may be cached elsewhere meanwhile. */
export interface CheckTarget {
  readonly file: BlockNode;
  readonly header: Header;
  readonly geometry: Geometry;
  /** Write the current header durably. */
  writeHeader(): Promise<void>;
  /** Awaited before the header is written. */
  prepareChange(): void | Promise<void>;
  /** Report damage, and mark the image as corrupt if it is writable. */
  corrupt?(message: string): Promise<never>;
}

/** Most clusters of the file, as in QEMU. */
const MAX_CLUSTERS = 2 ** 31 - 1;
/** Offsets past this cannot be read, as in QEMU. */
const MAX_OFFSET = 2 ** 63 - 2 ** 30;
/**
 * How often each byte of the file may be read as a table. In a sound image each
 * is read once; damaged tables may refer to each other so often that the check
 * would never end.
 */
const MAX_TABLE_READS = 16;
const MIN_TABLE_BYTES = 2 ** 31;
/** Likewise, the most findings in tables per cluster. */
const MAX_FINDINGS = 4;
const MIN_FINDINGS = 2 ** 22;

/** The check would hardly end: the findings so far are all there is. */
export class CheckAbandoned extends BlockError {}

/** A check in progress. */
export class CheckRun {
  readonly file: BlockNode;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly target: CheckTarget;
  /** What to repair. */
  readonly fix: { readonly leaks: boolean; readonly corruptions: boolean };
  readonly result: CheckResult;
  /** References found in tables. */
  readonly counts: ReferenceCounts;
  /** Refcounts stored in the image. */
  readonly stored: StoredRefcounts;
  snapshots: SnapshotTable = { entries: [], byteLength: 0 };
  /** Findings so far; used to see whether a table was sound. */
  findings = 0;
  /** Whether all active entries with a cluster have the COPIED flag. */
  allCopied = true;
  readonly #report?: CheckOptions["report"];
  /** Cancels the check; a repair that has begun is finished. */
  readonly #signal?: AbortSignal;
  #metadata?: MetadataMap;
  /** Ranges of clusters to be discarded. */
  readonly #freed: { start: number; end: number }[] = [];
  #tableBytes = 0;
  #signaled = false;

  constructor(target: CheckTarget, options: CheckOptions) {
    this.target = target;
    this.file = target.file;
    this.header = target.header;
    this.geometry = target.geometry;
    this.fix = options.repair ?? { leaks: false, corruptions: false };
    this.#report = options.report;
    if (!options.repair) this.#signal = options.signal;
    this.result = nothingFound();
    const clusters = this.geometry.clustersFor(this.file.size);
    if (clusters > MAX_CLUSTERS) throw new BlockError("EFBIG");
    this.counts = new ReferenceCounts(clusters, this.geometry.refcountMax);
    this.stored = new StoredRefcounts(this);
  }

  /** Whether anything is to be repaired. */
  get repairs(): boolean {
    return this.fix.leaks || this.fix.corruptions;
  }

  /** Whether an incompatible feature is in use. */
  uses(feature: keyof typeof Incompatible): boolean {
    return (this.header.incompatible.low & Incompatible[feature]) !== 0;
  }

  /** Bytes of the virtual disk, whole sectors. */
  get diskSize(): number {
    return roundDown(this.header.size, SECTOR_SIZE);
  }

  /**
   * Tell the user.
   *
   * @param named Whether it is an error message, which a program prefixes with
   * its name.
   */
  report(line: string, named = false): void {
    this.#report?.(line, named);
  }

  /** Report damage, and count it. */
  corruption(line: string): void {
    this.report(line);
    this.result.corruptions++;
    this.findings++;
  }

  /** Report why the check cannot go on. */
  failure(line: string, error: unknown): BlockError {
    this.report(line);
    this.result.checkErrors++;
    const { code } = asBlockError(error);
    return new BlockError(code, reasonOf(error), { cause: error });
  }

  /** Fill `target` from the file; zeroes past its end. */
  async read(offset: number, target: Uint8Array): Promise<void> {
    checkSignal(this.#signal);
    if (offset > MAX_OFFSET) throw new BlockError("EIO");
    if (offset >= this.file.size) target.fill(0);
    else await readPadded(this.file, offset, [target]);
  }

  /**
   * Whether metadata of the given kind can be written there: not over other
   * metadata.
   */
  async mayWrite(
    offset: number,
    length: number,
    kind?: Metadata,
  ): Promise<boolean> {
    this.#metadata ??= await MetadataMap.of(this);
    const other = this.#metadata.find(offset, length, kind);
    if (other === undefined) return true;
    await this.signalCorruption(
      `Preventing invalid write on metadata (overlaps with ${other})`,
    );
    return false;
  }

  /**
   * Write metadata of the given kind.
   *
   * @throws {BlockError} EIO if other metadata is there.
   */
  async write(
    offset: number,
    bytes: Uint8Array,
    kind?: Metadata,
  ): Promise<void> {
    if (!await this.mayWrite(offset, bytes.length, kind)) {
      throw new BlockError("EIO");
    }
    await this.file.writev!(offset, [bytes]);
  }

  /** Tables have moved. */
  metadataMoved(): void {
    this.#metadata = undefined;
  }

  /**
   * Damage after which the driver must not write any more. The check itself
   * goes on.
   */
  async signalCorruption(message: string): Promise<void> {
    if (this.#signaled) return;
    this.#signaled = true;
    if (!this.target.corrupt) {
      const fate = this.repairs
        ? `Marking image as corrupt: ${message}; further`
        : `Image is corrupt: ${message}; further non-fatal`;
      this.report(`qcow2: ${fate} corruption events will be suppressed`);
      return;
    }
    try {
      await this.target.corrupt(message);
    } catch (error) {
      if (asBlockError(error).code !== "EIO") throw error;
    }
  }

  /** A cluster has no reference left, and its refcount is zero. */
  freed(cluster: number): void {
    const last = this.#freed.at(-1);
    if (last?.end === cluster) last.end++;
    else this.#freed.push({ start: cluster, end: cluster + 1 });
  }

  /**
   * Discard freed clusters; the refcounts must have been written. Nothing in
   * the file refers to them: either nothing did when the references were
   * counted, or the header that refers to their replacement is durable.
   */
  async discardFreed(): Promise<void> {
    const { clusterSize } = this.geometry;
    for (const { start, end } of this.#freed.splice(0)) {
      const offset = start * clusterSize;
      const length = Math.min(end * clusterSize, this.file.size) - offset;
      if (length <= 0 || !this.file.discard) continue;
      try {
        await this.file.discard(offset, length);
      } catch {
        return; // A discard is only a hint.
      }
    }
  }

  /**
   * Charge a table that is about to be read. A table past the end of the file
   * costs one finding for each entry that refers to it.
   *
   * @throws {CheckAbandoned} if there were too many.
   */
  chargeRead(length: number, offset: number): void {
    if (offset >= this.file.size) return;
    this.#tableBytes += length;
    const bytes = Math.max(MIN_TABLE_BYTES, MAX_TABLE_READS * this.file.size);
    const findings = Math.max(MIN_FINDINGS, MAX_FINDINGS * this.counts.length);
    if (this.#tableBytes > bytes || this.findings > findings) {
      this.report(
        "ERROR: too many references to the same tables; check aborted",
      );
      throw new CheckAbandoned("EFBIG");
    }
  }

  /** Reset all counts. */
  startCounting(): void {
    this.counts.clear();
    this.#tableBytes = 0;
    this.findings = 0;
    this.allCopied = true;
  }

  /**
   * Count a reference to each cluster that a range touches.
   *
   * @param weight How many references.
   * @param text The offset in hexadecimal digits, if a number may be inexact.
   */
  count(offset: number, length: number, weight = 1, text?: string): void {
    if (length <= 0) return;
    const { clusterSize } = this.geometry;
    if (offset + length - this.file.size >= clusterSize) {
      this.corruption(
        "ERROR: counting reference for region exceeding the end of the file " +
          `by one cluster or more: offset 0x${text ?? offset.toString(16)} ` +
          `size 0x${length.toString(16)}`,
      );
      return;
    }
    const first = Math.floor(offset / clusterSize);
    const last = Math.floor((offset + length - 1) / clusterSize);
    this.counts.grow(last + 1);
    for (let cluster = first; cluster <= last; cluster++) {
      const rest = this.counts.add(cluster, weight);
      if (rest > 0) this.overflow(cluster, rest);
    }
  }

  /** A cluster has more references than a refcount can hold. */
  overflow(cluster: number, count = 1): void {
    const offset = cluster * this.geometry.clusterSize;
    this.corruption(`ERROR: overflow cluster offset=0x${offset.toString(16)}`);
    this.result.corruptions += count - 1;
    this.report(
      "Use qemu-img amend to increase the refcount entry width or qemu-img " +
        "convert to create a clean copy if the image cannot be opened for " +
        "writing",
    );
  }

  /**
   * Read the table of `entries` 64-bit entries at `offset` in parts; what is
   * past the end of the file is zero and left out.
   */
  async *tableParts(
    offset: number,
    entries: number,
  ): AsyncGenerator<{ first: number; view: DataView }> {
    const inside = Math.max(0, this.file.size - offset);
    const end = Math.min(entries, Math.ceil(inside / ENTRY_SIZE));
    const part = new Uint8Array(Math.min(end, PART_ENTRIES) * ENTRY_SIZE);
    for (let first = 0; first < end; first += PART_ENTRIES) {
      const length = Math.min(PART_ENTRIES, end - first) * ENTRY_SIZE;
      this.chargeRead(length, offset);
      await this.read(offset + first * ENTRY_SIZE, part.subarray(0, length));
      yield { first, view: new DataView(part.buffer, 0, length) };
    }
  }
}

const PART_ENTRIES = 8192;
