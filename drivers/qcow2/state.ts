/**
 * An open qcow2 image: what its parts share. Each part says what it needs of
 * the image, its host, in an interface of its own; only here are they known to
 * belong together.
 *
 * **Locks, in the order in which they are taken:** `operations` is shared by
 * every request and held alone by what changes the image as a whole
 * (snapshots, resize, check). `access.ranges` holds the guest clusters that a
 * request is about: shared to read them and to write in place, alone to change
 * what they are mapped to. `metadata` protects tables and refcounts, and is never
 * held while guest data is read or written, or while waiting for a range.
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

/** What undoes the steps of a change, in the order in which they were done. */
export type UndoSteps = (() => Promise<unknown>)[];

/** An open image. */
export class Qcow2State
  implements BitmapsHost, ClusterMapHost, GuestDataHost, OverlapHost {
  /** What metadata is written to. */
  file: BlockNode;
  /** What guest data is written to: the same, or an external data file. */
  dataFile: BlockNode;
  /** Whether guest data lies in a file of its own. */
  readonly hasDataFile: boolean;
  /** The file, for what leaves true all that the image claims. */
  plainFile: BlockNode;
  /** Where guest data is, for those who only look. */
  plainDataFile: BlockNode;
  readonly readOnly: boolean;
  header!: Header;
  geometry!: Geometry;
  behaviour: Behaviour;
  readonly operations = new SharedLock();
  readonly metadata = new Mutex();
  /** Whether data clusters may be holes in the file; found out when asked. */
  hasHoles?: boolean | Promise<boolean>;
  /** What unallocated clusters are left to. */
  backing?: BlockNode;
  /** What guest data is encrypted with in the file, if it is. */
  encryption?: Encryption;
  /** Bitmaps that are kept in the image; absent until they are needed. */
  bitmaps?: Bitmaps;
  /** Who is to be told of guest writes before they are made, if anybody. */
  recorder?: Pick<Bitmaps, "mark">;
  /** Its LUKS header, if it has one. */
  luks?: OpenVolume;
  /** The snapshot table, and the bytes it takes in the file. */
  snapshots: SnapshotEntry[] = [];
  snapshotTableLength = 0;
  /** Whether the image claims something that changes would make untrue. */
  readonly #watches: boolean;
  // What follows is there once the data is open. Each is a field of its own,
  // since loops over all clusters look at it.
  l2Cache!: TableCache;
  refcountCache!: TableCache;
  clusters!: ClusterMap;
  compressed!: CompressedClusters;
  // Of an image that can be written to.
  overlap!: OverlapGuard;
  refcounts!: Refcounts;
  /** The refcount table of one that cannot: hardly anybody asks for it. */
  #refcountTable?: Uint8Array;
  #caches!: CacheSizes;
  #data?: GuestData;
  #corruptionSeen = false;
  /** The last damage that stopped a request. */
  #damage?: { readonly message: string; readonly error: BlockError };
  #unusable = false;
  #clearing?: Promise<void>;
  #loadingBitmaps?: Promise<Bitmaps>;
  /** Something was begun, and neither done nor undone. */
  #needsRepair = false;
  /** The dirty bit is set for the sake of a change alone. */
  #isMarked = false;

  /** @param dataFile Where guest data lies, if the header says so. */
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

  /** Whether the data file alone is to hold what the disk does. */
  get dataFileIsRaw(): boolean {
    const { low } = this.header.autoclear;
    return this.hasDataFile && (low & Autoclear.RAW_EXTERNAL_DATA) !== 0;
  }

  /** Bytes of the disk. */
  get size(): number {
    return this.header.size;
  }

  /** A file, or what has it changed only after the claims were withdrawn. */
  #watched(file: BlockNode): BlockNode {
    return this.#watches
      ? watchChanges(file, () => this.prepareChange())
      : file;
  }

  /** Go on with a file that holds the same as the one before. */
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

  /** Go on with a header, and empty caches that fit it. */
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

  /** Make it possible to read and write guest data, once tables are loaded. */
  async openData(): Promise<void> {
    const { GuestData } = this.readOnly
      ? await import("./guest_data.ts")
      : await this.#loadWriting();
    this.#data = new GuestData(this, this.#caches);
    this.clusters = this.#data.clusters;
    this.compressed = this.#data.compressed;
    this.#useCaches(this.#data);
  }

  /** Loaded together, since each step of loading takes a while. */
  async #loadWriting() {
    const writing = await import("./written_data.ts");
    this.overlap = new writing.OverlapGuard(this);
    this.refcounts = new writing.Refcounts(this);
    return writing;
  }

  /**
   * The refcounts, of an image that is only read as well. For the metadata
   * lock's holder.
   */
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

  /** Release what was needed for that. */
  closeData(): void {
    this.#data?.cleaner.stop();
    this.#data?.compressed.close();
  }

  /** @throws {BlockError} EINVAL if the image was only to be described. */
  checkOpen(): GuestData {
    if (this.#data) return this.#data;
    throw new BlockError("EINVAL", "The image was opened only to be described");
  }

  /** Lets go of tables; absent if none are ever read. */
  get cleaner(): CacheCleaner | undefined {
    return this.#data?.cleaner;
  }

  /** Moves guest data. */
  get access(): Access {
    return this.checkOpen().access;
  }

  /** Read the tables that are kept whole. */
  async load(): Promise<void> {
    if (!this.#data) return;
    await this.clusters.load();
    const table = await this.#data.readRefcountTable();
    if (this.refcounts) this.refcounts.replaceTable(table);
    else this.#refcountTable = table;
  }

  /** Read everything anew, after a repair changed the file. */
  async reload(): Promise<void> {
    this.#needsRepair &&= this.isDirty;
    this.#data?.refcountCache.clear();
    this.forgetTables();
    await this.load();
  }

  /** Forget what was read of L2 tables: others are in force now. */
  forgetTables(): void {
    this.#data?.l2Cache.clear();
    this.#forgetFindings();
  }

  /** Forget what was found by way of tables. */
  #forgetFindings(): void {
    this.hasHoles = undefined;
    this.overlap?.forget();
    this.#data?.compressed.forget();
  }

  /**
   * Tell that a step is about to be done. The node below may use that to fail
   * or delay it.
   */
  event(name: string): Promise<void> | void {
    this.behaviour.event?.(name);
    return this.file.debug?.event(name);
  }

  /** Whether the image says that its refcounts may be wrong. */
  get isDirty(): boolean {
    return (this.header.incompatible.low & Incompatible.DIRTY) !== 0;
  }

  /** Whether the refcounts on the disk must never be too low. */
  get accurateRefcounts(): boolean {
    return !this.isDirty || !this.behaviour.lazyRefcounts;
  }

  /** From now on, the refcounts on the disk may lag behind. */
  async markDirty(): Promise<void> {
    if (this.behaviour.lazyRefcounts) await this.#setDirty();
  }

  async #setDirty(): Promise<void> {
    if (this.isDirty) return;
    const { low, high } = this.header.incompatible;
    const incompatible = { high, low: low | Incompatible.DIRTY };
    await this.changeHeader({ incompatible });
  }

  /** The refcounts on the disk are right again, and stay so. */
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
   * one step. What is left in the midst of it by a power cut, or by an error
   * that `undo` meets as well, is marked as dirty, so that whoever opens the
   * image to write to it repairs it first. (Version 2 has no such mark.)
   *
   * @param change Pushes what undoes each of its steps, once that is done; a
   * step that cannot be undone any more has one that fails.
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
      // If it is not known what is in the file: better leak than lose something.
      if (!this.unusable) await undoAll(undo).then(end).catch(() => {});
      throw error;
    }
    await end();
    return result;
  }

  /**
   * To be waited for before anything in the file changes: features that do not
   * stay true then must be gone from the header, durably.
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

  /** The bitmaps of the image, which are read at first. */
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

  /** What is known of bitmaps does not hold any more. */
  forgetBitmaps(): void {
    this.bitmaps = undefined;
    this.recorder = undefined;
  }

  /** Write the marks in the header as they are now and make them durable. */
  async writeHeader(): Promise<void> {
    const { encodeHeader } = await import("./header_encoding.ts");
    await this.plainFile.writev!(0, [encodeHeader(this.header)]);
    await this.plainFile.flush?.();
  }

  /**
   * Change the header, in memory and durably in the file. If that fails, it is
   * in both what it was.
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
      // Fields that were not set before are set to nothing again.
      Object.assign(header, Object.fromEntries(before));
      throw error;
    }
  }

  /**
   * Replace bytes that have a place of their own, durably. If that fails, they
   * are put back; where that fails as well, it is not known any more what the
   * file holds, and nothing more can be done with the image.
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
        // A request that failed has not changed anything, most likely.
        if (isWritten) this.#unusable = true;
      });
      throw error;
    }
  }

  /** Make guest data durable, unless flushing the file does it. */
  flushData(): Promise<void> | void {
    if (this.hasDataFile) return this.dataFile.flush?.();
  }

  /**
   * Make guest data and metadata durable: all of it, so that it may be read from
   * the file or be forgotten, or as much as it takes to lose nothing, lazy
   * refcounts left out. For the metadata lock's holder.
   */
  async flushCaches(what: "all" | "needed" = "all"): Promise<void> {
    this.checkOpen();
    await this.event("flush_to_os");
    // In the safe order.
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

  /** Do nothing more with the image: what is in memory does not fit it. */
  abandon(): void {
    this.#unusable = true;
  }

  /** Refuse to work on after damage was found while writing. */
  checkUsable(): void {
    if (this.#unusable) throw new BlockError("ENOMEDIUM");
  }

  /**
   * Report damage. If it is `fatal` and the image is writable, it is marked as
   * corrupt and nothing more can be done with it.
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
        // Who is to repair it counts all references anyway.
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

  /** Report damage that does not stop the request which found it. */
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

/** A buffer of zeroes of a cluster's size at least; never written to. */
export function zeroes(length: number): Uint8Array {
  if (shared.length < length) shared = allocate(length);
  return shared.subarray(0, length);
}

let shared = allocate(64 * 1024);
