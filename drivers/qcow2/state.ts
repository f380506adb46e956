/**
 * An open qcow2 image: what its parts share.
 *
 * **Locks, in the order in which they are taken:** `operations` is shared by
 * every request and held alone by what changes the image as a whole
 * (snapshots, resize, check). `ranges` holds the guest clusters that a request
 * is about: shared to read them and to write in place, alone to change what
 * they are mapped to. `metadata` protects tables and refcounts, and is never
 * held while guest data is read or written, or while waiting for a range.
 *
 * @module
 */
import { allocate } from "../../core/bytes.ts";
import type { BlockNode } from "../../core/driver.ts";
import { BlockError } from "../../core/errors.ts";
import { Mutex, RangeLock, SharedLock } from "../../core/lock.ts";
import { ClusterMap } from "./cluster_map.ts";
import { CompressedReader } from "./compression.ts";
import { Geometry, Incompatible } from "./format.ts";
import { encodeHeader, type Header } from "./header.ts";
import { type RefcountHost, Refcounts } from "./refcounts.ts";
import type { SnapshotEntry } from "./snapshot_table.ts";
import { TableCache } from "./table_cache.ts";

/** Sizes of the caches, in bytes. */
export interface CacheSizes {
  l2: number;
  l2Entry: number;
  refcount: number;
}

/** An open image. */
export class Qcow2State implements RefcountHost {
  readonly file: BlockNode;
  readonly readOnly: boolean;
  header!: Header;
  geometry!: Geometry;
  l2Cache!: TableCache;
  refcountCache!: TableCache;
  readonly refcounts: Refcounts;
  readonly clusters: ClusterMap;
  readonly compressed: CompressedReader;
  readonly operations = new SharedLock();
  readonly ranges = new RangeLock();
  readonly metadata = new Mutex();
  /** What unallocated clusters are left to. */
  backing?: BlockNode;
  /** The snapshot table, and the bytes it takes in the file. */
  snapshots: SnapshotEntry[] = [];
  snapshotTableLength = 0;
  readonly #warn: (message: string) => void;
  #corruptionSeen = false;
  #unusable = false;

  constructor(
    file: BlockNode,
    header: Header,
    readOnly: boolean,
    caches: CacheSizes,
    warn: (message: string) => void,
  ) {
    this.file = file;
    this.readOnly = readOnly;
    this.adopt(header, caches);
    this.refcounts = new Refcounts(this);
    this.clusters = new ClusterMap(this);
    this.compressed = new CompressedReader(this);
    this.#warn = warn;
  }

  /** Go on with a header, and empty caches that fit it. */
  adopt(header: Header, caches: CacheSizes): void {
    this.header = header;
    this.geometry = new Geometry(header.clusterBits, header.refcountOrder);
    const { clusterSize } = this.geometry;
    this.l2Cache = new TableCache(this.file, caches.l2Entry, caches.l2);
    this.refcountCache = new TableCache(
      this.file,
      clusterSize,
      caches.refcount,
    );
  }

  /** Read the tables that are kept whole. */
  async load(): Promise<void> {
    await this.clusters.load();
    await this.refcounts.load();
  }

  /** Read everything anew, after a repair changed the file. */
  async reload(): Promise<void> {
    this.refcountCache.clear();
    this.forgetTables();
    await this.load();
  }

  /** Forget what was read of L2 tables: others are in force now. */
  forgetTables(): void {
    this.l2Cache.clear();
    this.compressed.forget();
  }

  /** Write the header as it is now and make it durable. */
  async writeHeader(): Promise<void> {
    await this.file.writev!(0, [encodeHeader(this.header)]);
    await this.file.flush?.();
  }

  /** Write all cached tables, in the safe order. For the metadata lock. */
  async writeCaches(): Promise<void> {
    await this.l2Cache.write();
    await this.refcountCache.write();
  }

  /** Make all metadata durable. For the metadata lock's holder. */
  async flushCaches(): Promise<void> {
    await this.writeCaches();
    await this.file.flush?.();
    this.refcounts.settled();
  }

  /** Whether damage was found while writing. */
  get unusable(): boolean {
    return this.#unusable;
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
      this.#warn(
        `qcow2: Marking image as corrupt: ${message}; further corruption events will be suppressed`,
      );
      if (this.header.version >= 3) {
        this.header.incompatible.low |= Incompatible.CORRUPT;
        await this.writeHeader();
      }
    } else if (!this.#corruptionSeen) {
      this.#warn(
        `qcow2: Image is corrupt: ${message}; further non-fatal corruption events will be suppressed`,
      );
    }
    this.#corruptionSeen = true;
    throw new BlockError("EIO", undefined, { cause: new Error(message) });
  }
}

/** A buffer of zeroes of a cluster's size at least; never written to. */
export function zeroes(length: number): Uint8Array {
  if (shared.length < length) shared = allocate(length);
  return shared.subarray(0, length);
}

let shared = allocate(64 * 1024);
