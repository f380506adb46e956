/**
 * The shared state of an open qcow2 image. Each part declares what it needs of
 * the image, its host, in an interface of its own; they meet only here.
 *
 * **Locks, in the order in which they are taken:** `operations` is shared by
 * every request and held exclusively by whatever changes the image as a whole
 * (snapshots, resize, check). `access.ranges` holds the guest clusters of a
 * request: shared to read them and to write in place, exclusively to change
 * their mapping. `metadata` protects tables and refcounts, and is never held
 * while guest data is read or written, or while waiting for a range.
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { Access } from "../../core/access.ts";
import type { OpenVolume } from "../../core/crypto/luks_options.ts";
import type { Encryption } from "../../core/encryption.ts";
import { Mutex, SharedLock } from "../../core/lock.ts";
import type { BlockNode } from "../../core/node.ts";
import type { Behaviour } from "./behaviour.ts";
import type { Bitmaps, BitmapsHost } from "./bitmaps/bitmaps.ts";
import type { CacheCleaner } from "./cache_cleaner.ts";
import type { ClusterMap, ClusterMapHost } from "./cluster_map.ts";
import type { CompressedClusters } from "./compression.ts";
import { keptFeatures, losesFeatures, watchChanges } from "./first_change.ts";
import { Autoclear, Incompatible } from "./format.ts";
import { Geometry } from "./geometry.ts";
import type { CacheSizes, GuestData, GuestDataHost } from "./guest_data.ts";
import type { Header } from "./header.ts";
import type { OverlapGuard, OverlapHost } from "./overlap.ts";
import type { Refcounts } from "./refcounts.ts";
import type { SnapshotEntry } from "./snapshot_table.ts";
import type { TableCache } from "./table_cache.ts";

/**
 * Undoes the steps of a change, listed in the order in which they were done.
 */
export type UndoSteps = (() => Promise<unknown>)[];

/** An open image. */
export class Qcow2State
  implements BitmapsHost, ClusterMapHost, GuestDataHost, OverlapHost {
  /** What metadata is written to. */
  file: BlockNode;
  /** What guest data is written to: the same, or an external data file. */
  dataFile: BlockNode;
  /** Whether guest data is in an external data file. */
  readonly hasDataFile: boolean;
  /** The file, for changes that invalidate nothing the image claims. */
  plainFile: BlockNode;
  /** Where guest data is, for reading. */
  plainDataFile: BlockNode;
  readonly readOnly: boolean;
  header!: Header;
  geometry!: Geometry;
  behaviour: Behaviour;
  readonly operations = new SharedLock();
  readonly metadata = new Mutex();
  /**
   * Whether data clusters may be holes in the file; `undefined` until asked.
   */
  hasHoles?: boolean | Promise<boolean>;
  /** What unallocated clusters read as. */
  backing?: BlockNode;
  /** Encrypts guest data in the file, if it is encrypted. */
  encryption?: Encryption;
  /** Bitmaps of the image; loaded on demand. */
  bitmaps?: Bitmaps;
  /** Receives guest writes before they are made, if bitmaps record them. */
  recorder?: Pick<Bitmaps, "mark">;
  /** Its LUKS header, if it has one. */
  luks?: OpenVolume;
  /** The snapshot table, and the bytes it takes in the file. */
  snapshots: SnapshotEntry[] = [];
  snapshotTableLength = 0;
  /** Whether the image claims something that changes would invalidate. */
  readonly #watches: boolean;
  // These exist once the data is open. Each is a field of its own, since loops
  // over all clusters use it.
  l2Cache!: TableCache;
  refcountCache!: TableCache;
  clusters!: ClusterMap;
  compressed!: CompressedClusters;
  // Of a writable image.
  overlap!: OverlapGuard;
  refcounts!: Refcounts;
  /** The refcount table of a read-only one, which is hardly ever needed. */
  #refcountTable?: Uint8Array;
  #caches!: CacheSizes;
  #data?: GuestData;
  #corruptionSeen = false;
  /** The last damage that stopped a request. */
  #damage?: { readonly message: string; readonly error: BlockError };
  #unusable = false;
  #clearing?: Promise<void>;
  #loadingBitmaps?: Promise<Bitmaps>;
  /** Something was begun, and neither finished nor undone. */
  #needsRepair = false;
  /** The dirty bit is set only for a change in progress. */
  #isMarked = false;

  /** @param dataFile The external data file, if the header has one. */
  constructor(
    file: BlockNode,
    header: Header,
    readOnly: boolean,
    caches: CacheSizes,
    behaviour: Behaviour,
    dataFile?: BlockNode,
  ) {
    this.#watches = !readOnly && losesFeatures(header);
    this.plainFile = file;
    this.file = this.#watched(file);
    this.hasDataFile = dataFile !== undefined;
    this.plainDataFile = dataFile ?? file;
    this.dataFile = dataFile ? this.#watched(dataFile) : this.file;
    this.readOnly = readOnly;
    this.behaviour = behaviour;
    this.adopt(header, caches);
  }

  /** Whether the data file alone must read as the disk does. */
  get dataFileIsRaw(): boolean {
    const { low } = this.header.autoclear;
    return this.hasDataFile && (low & Autoclear.RAW_EXTERNAL_DATA) !== 0;
  }

  /** Bytes of the disk. */
  get size(): number {
    return this.header.size;
  }

  /**
   * A file that clears outdated claims of the image before its first change.
   */
  #watched(file: BlockNode): BlockNode {
    return this.#watches
      ? watchChanges(file, () => this.prepareChange())
      : file;
  }

  /** Switch to a file with the same content. */
  useFile(file: BlockNode): void {
    this.plainFile = file;
    this.file = this.#watched(file);
    if (!this.hasDataFile) {
      this.plainDataFile = file;
      this.dataFile = this.file;
    }
    this.#data?.l2Cache.useFile(this.file);
    this.#data?.refcountCache.useFile(this.file);
    this.hasHoles = undefined;
  }

  /** Switch to a header, with empty caches that fit it. */
  adopt(header: Header, caches: CacheSizes): void {
    this.header = header;
    this.geometry = Geometry.of(header);
    this.#caches = caches;
    this.#forgetFindings();
    this.#data?.makeCaches(caches);
    if (this.#data) this.#useCaches(this.#data);
  }

  #useCaches({ l2Cache, refcountCache }: GuestData): void {
    this.l2Cache = l2Cache;
    this.refcountCache = refcountCache;
  }

  /** Make guest data accessible, once tables are loaded. */
  async openData(): Promise<void> {
    if (!this.readOnly) await this.#loadWriting();
    const { GuestData } = await import("./guest_data.ts");
    this.#data = new GuestData(this, this.#caches);
    this.clusters = this.#data.clusters;
    this.compressed = this.#data.compressed;
    this.#useCaches(this.#data);
  }

  async #loadWriting(): Promise<void> {
    const { OverlapGuard } = await import("./overlap.ts");
    const { Refcounts } = await import("./refcounts.ts");
    this.overlap = new OverlapGuard(this);
    this.refcounts = new Refcounts(this);
  }

  /** The refcounts, also of a read-only image. Requires the metadata lock. */
  async loadRefcounts(): Promise<Refcounts> {
    if (!this.refcounts) {
      const { Refcounts } = await import("./refcounts.ts");
      const refcounts = new Refcounts(this);
      refcounts.replaceTable(this.#refcountTable!);
      this.refcounts = refcounts;
      this.#refcountTable = undefined;
    }
    return this.refcounts;
  }

  /** Release what {@linkcode openData} created. */
  closeData(): void {
    this.#data?.cleaner.stop();
    this.#data?.compressed.close();
  }

  /**
   * @throws {BlockError} EINVAL if the image was opened only to be described.
   */
  checkOpen(): GuestData {
    if (this.#data) return this.#data;
    throw new BlockError("EINVAL", "The image was opened only to be described");
  }

  /** Drops unused tables; absent if none are ever read. */
  get cleaner(): CacheCleaner | undefined {
    return this.#data?.cleaner;
  }

  /** Moves guest data. */
  get access(): Access {
    return this.checkOpen().access;
  }

  /** Read the tables that are kept in memory as a whole. */
  async load(): Promise<void> {
    if (!this.#data) return;
    await this.clusters.load();
    const table = await this.#data.readRefcountTable();
    if (this.refcounts) this.refcounts.replaceTable(table);
    else this.#refcountTable = table;
  }

  /** Reread everything, after a repair changed the file. */
  async reload(): Promise<void> {
    this.#needsRepair &&= this.isDirty;
    this.#data?.refcountCache.clear();
    this.forgetTables();
    await this.load();
  }

  /** Drop cached L2 tables: others are active now. */
  forgetTables(): void {
    this.#data?.l2Cache.clear();
    this.#forgetFindings();
  }

  /** Drop what was derived from tables. */
  #forgetFindings(): void {
    this.hasHoles = undefined;
    this.overlap?.forget();
    this.#data?.compressed.forget();
  }

  /**
   * Announce a step that is about to be done. The node below may make it fail
   * or wait.
   */
  event(name: string): Promise<void> | void {
    this.behaviour.event?.(name);
    return this.file.debug?.event(name);
  }

  /** Whether the image says that its refcounts may be wrong. */
  get isDirty(): boolean {
    return (this.header.incompatible.low & Incompatible.DIRTY) !== 0;
  }

  /** Whether refcounts on the disk must never be too low. */
  get accurateRefcounts(): boolean {
    return !this.isDirty || !this.behaviour.lazyRefcounts;
  }

  /** From now on, refcounts on the disk may be outdated. */
  async markDirty(): Promise<void> {
    if (this.behaviour.lazyRefcounts) await this.#setDirty();
  }

  async #setDirty(): Promise<void> {
    if (this.isDirty) return;
    const { low, high } = this.header.incompatible;
    const incompatible = { high, low: low | Incompatible.DIRTY };
    await this.changeHeader({ incompatible });
  }

  /** Refcounts on the disk are accurate again, and stay so. */
  async markClean(): Promise<void> {
    if (!this.isDirty || this.#needsRepair) return;
    await this.l2Cache.write();
    await this.refcountCache.write();
    await this.file.flush?.();
    const { low, high } = this.header.incompatible;
    const incompatible = { high, low: low & ~Incompatible.DIRTY };
    await this.changeHeader({ incompatible });
  }

  /**
   * Change refcounts and COPIED flags of many clusters, which cannot be done in
   * one step. If a power cut interrupts it, or an error that `undo` runs into
   * as well, the image is left dirty, and is repaired when it is next opened
   * for writing. (Version 2 has no dirty bit.)
   *
   * @param change Adds to `undo` what reverts each of its steps, once that is
   * done; for a step that cannot be reverted, a function that fails.
   */
  async changeAsOne<T>(change: (undo: UndoSteps) => Promise<T>): Promise<T> {
    const undo: UndoSteps = [];
    const neededRepair = this.#needsRepair;
    this.#isMarked = this.header.version >= 3 && !this.isDirty;
    if (this.#isMarked) await this.#setDirty();
    this.#needsRepair = true;
    const end = async () => {
      this.#needsRepair = neededRepair;
      this.#isMarked = false;
      if (!this.behaviour.lazyRefcounts) await this.markClean();
    };
    let result: T;
    try {
      result = await change(undo);
    } catch (error) {
      // If the content of the file is not known, better leak than lose
      // something.
      if (!this.unusable) await undoAll(undo).then(end).catch(() => {});
      throw error;
    }
    await end();
    return result;
  }

  /**
   * Awaited before anything in the file changes: features that the change
   * invalidates must be durably gone from the header by then.
   */
  prepareChange(): void | Promise<void> {
    if (this.#clearing || losesFeatures(this.header)) {
      return this.#clearFeatures();
    }
  }

  async #clearFeatures(): Promise<void> {
    const autoclear = keptFeatures(this.header);
    try {
      await (this.#clearing ??= this.#changeHeader(
        { autoclear },
        this.plainFile,
      ));
    } finally {
      this.#clearing = undefined;
    }
  }

  /** The bitmaps of the image, loaded on first use. */
  async loadBitmaps(): Promise<Bitmaps> {
    const load = async () => {
      const { Bitmaps } = await import("./bitmaps/bitmaps.ts");
      return this.bitmaps = await Bitmaps.load(this);
    };
    try {
      return this.bitmaps ?? await (this.#loadingBitmaps ??= load());
    } finally {
      this.#loadingBitmaps = undefined;
    }
  }

  /** Bitmaps in memory are outdated. */
  forgetBitmaps(): void {
    this.bitmaps = undefined;
    this.recorder = undefined;
  }

  /** Write the feature bits in the header durably. */
  async writeHeader(): Promise<void> {
    const { encodeHeader } = await import("./header_encoding.ts");
    await this.plainFile.writev!(0, [encodeHeader(this.header)]);
    await this.plainFile.flush?.();
  }

  /**
   * Change the header in memory and durably in the file. If that fails, both
   * keep the old one.
   */
  async changeHeader(changes: Partial<Header>): Promise<void> {
    await this.prepareChange();
    await this.#changeHeader(changes, this.file);
  }

  async #changeHeader(
    changes: Partial<Header>,
    file: BlockNode,
  ): Promise<void> {
    const { encodeHeader } = await import("./header_encoding.ts");
    const { header } = this;
    const old = encodeHeader(header);
    const fields = Object.keys(changes) as (keyof Header)[];
    const before = fields.map((field) => [field, header[field]]);
    try {
      Object.assign(header, changes);
      await this.#overwrite(file, 0, encodeHeader(header), old);
    } catch (error) {
      // Fields that were not set before are removed again.
      Object.assign(header, Object.fromEntries(before));
      throw error;
    }
  }

  /**
   * Overwrite bytes in place, durably. If that fails, the old ones are
   * restored; if that fails as well, the content of the file is not known, and
   * the image becomes unusable.
   */
  async overwrite(
    offset: number,
    bytes: Uint8Array,
    old: Uint8Array,
  ): Promise<void> {
    await this.prepareChange();
    await this.#overwrite(this.file, offset, bytes, old);
  }

  async #overwrite(
    file: BlockNode,
    offset: number,
    bytes: Uint8Array,
    old: Uint8Array,
  ): Promise<void> {
    let isWritten = false;
    try {
      await file.writev!(offset, [bytes]);
      isWritten = true;
      await file.flush?.();
    } catch (error) {
      await file.writev!(offset, [old]).catch(() => {
        // A failed request has most likely not changed anything.
        if (isWritten) this.#unusable = true;
      });
      throw error;
    }
  }

  /** Make guest data durable, unless flushing the file does so. */
  flushData(): Promise<void> | void {
    if (this.hasDataFile) return this.dataFile.flush?.();
  }

  /**
   * Make guest data and metadata durable: `all` of it, so that it may be read
   * from the file or dropped, or as much as is needed to lose nothing, without
   * lazy refcounts. Requires the metadata lock.
   */
  async flushCaches(what: "all" | "needed" = "all"): Promise<void> {
    this.checkOpen();
    await this.event("flush_to_os");
    // In the order that survives a power cut.
    await this.l2Cache.write();
    if (what === "all" || this.accurateRefcounts) {
      await this.refcountCache.write();
    }
    await this.event("flush_to_disk");
    if (this.hasDataFile) await this.flushData();
    await this.file.flush?.();
    await this.refcounts.settle();
  }

  /** Whether damage was found while writing. */
  get unusable(): boolean {
    return this.#unusable;
  }

  /** Make the image unusable: what is in memory does not match it. */
  abandon(): void {
    this.#unusable = true;
  }

  /** Refuse to continue once damage was found while writing. */
  checkUsable(): void {
    if (this.#unusable) throw new BlockError("ENOMEDIUM");
  }

  /**
   * Report damage. If it is `fatal` and the image is writable, the image is
   * marked as corrupt and becomes unusable.
   *
   * @throws {BlockError} EIO, always.
   */
  async corrupt(message: string, fatal = true): Promise<never> {
    const mark = fatal && !this.readOnly;
    if (mark && !this.#unusable) {
      this.#unusable = true;
      this.behaviour.report(
        `qcow2: Marking image as corrupt: ${message}; further corruption events will be suppressed`,
      );
      if (this.header.version >= 3) {
        // Repairing it counts all references anyway.
        if (this.#isMarked) this.header.incompatible.low &= ~Incompatible.DIRTY;
        this.header.incompatible.low |= Incompatible.CORRUPT;
        await this.writeHeader();
      }
    } else {
      this.reportDamage(message);
    }
    this.#corruptionSeen = true;
    // Salvaging meets the same damage again for each sector.
    if (this.#damage?.message !== message) {
      const cause = new Error(message);
      const error = new BlockError("EIO", undefined, { cause });
      this.#damage = { message, error };
    }
    throw this.#damage.error;
  }

  /** Report damage without failing the request that found it. */
  reportDamage(message: string): void {
    if (!this.#corruptionSeen) {
      this.behaviour.report(
        `qcow2: Image is corrupt: ${message}; further non-fatal corruption events will be suppressed`,
      );
    }
    this.#corruptionSeen = true;
  }
}

async function undoAll(steps: UndoSteps): Promise<void> {
  for (const step of steps.reverse()) await step();
}

/** A buffer of zeroes, at least as large as a cluster; never written to. */
export function zeroes(length: number): Uint8Array {
  if (shared.length < length) shared = allocate(length);
  return shared.subarray(0, length);
}

let shared = allocate(64 * 1024);
