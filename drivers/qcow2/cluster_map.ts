/**
 * From guest offsets to what their L2 entries say: the two levels of tables.
 * (Specification: "Cluster mapping".)
 *
 * @module
 */
import { allocate, padded, SECTOR_SIZE, viewOf } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { Mutex } from "../../core/lock.ts";
import type { BlockNode } from "../../core/node.ts";
import { readPadded } from "../../core/requests.ts";
import {
  bytesOf,
  COPIED,
  ENTRY_SIZE,
  entryOffset,
  hex,
  MAX_L1_BYTES,
  writeUint64,
} from "./format.ts";
import type { Geometry } from "./geometry.ts";
import type { SubclusterKind, WholeKind } from "./l2_entry.ts";
import type { Header } from "./header.ts";
import type { OverlapGuard } from "./overlap.ts";
import type { Refcounts } from "./refcounts.ts";
import type { CachedTable, TableCache } from "./table_cache.ts";

/**
 * A run of guest clusters of one kind, or of subclusters in extended entries,
 * consecutive in the file if they are stored there.
 */
export interface Mapping {
  kind: SubclusterKind;
  /** Bytes from the requested offset on. */
  length: number;
  /**
   * Host offset of the first byte, if it has one; for a `compressed` cluster,
   * where its data begins.
   */
  hostOffset: number;
  /** Bytes of a `compressed` cluster's data. */
  compressedLength: number;
  /** Whether the first cluster's refcount is exactly one. */
  isCopied: boolean;
}

/** An L2 entry in the cache; valid until the next `await`. */
export interface EntryPlace {
  slice: CachedTable;
  /** Index of the entry within the slice. */
  index: number;
}

/** What the tables need of their image. */
export interface ClusterMapHost {
  readonly file: BlockNode;
  readonly readOnly: boolean;
  /** Whether guest data is in an external data file. */
  readonly hasDataFile: boolean;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly l2Cache: TableCache;
  readonly refcountCache: TableCache;
  readonly refcounts: Refcounts;
  readonly overlap: OverlapGuard;
  /** Protects tables and refcounts. */
  readonly metadata: Mutex;
  /** Announce a step that is about to be done. */
  event(name: string): Promise<void> | void;
  /** Change the header in memory and durably in the file, or not at all. */
  changeHeader(changes: Partial<Header>): Promise<void>;
  /** Report damage; always rejects. */
  corrupt(message: string): Promise<never>;
}

/** The active L1 table and, through the cache, its L2 tables. */
export class ClusterMap {
  readonly #state: ClusterMapHost;
  /** The active L1 table as it is in the file. */
  #l1: DataView = viewOf(new Uint8Array());

  constructor(state: ClusterMapHost) {
    this.#state = state;
  }

  /** Read the active L1 table. */
  async load(): Promise<void> {
    const { file, header } = this.#state;
    const bytes = allocate(header.l1Size * ENTRY_SIZE);
    if (bytes.length > 0) await file.readv(header.l1TableOffset, [bytes]);
    this.#l1 = viewOf(bytes);
  }

  /** The bytes of the active L1 table, as in the file. */
  get l1Bytes(): Uint8Array {
    return bytesOf(this.#l1);
  }

  /** Switch to another L1 table, which the file holds already. */
  replaceL1(bytes: Uint8Array): void {
    this.#l1 = viewOf(bytes);
  }

  /** The halves of an L1 entry; zeroes past the end of the table. */
  l1Entry(index: number): { high: number; low: number } {
    const at = index * ENTRY_SIZE;
    if (at >= this.#l1.byteLength) return { high: 0, low: 0 };
    return { high: this.#l1.getUint32(at), low: this.#l1.getUint32(at + 4) };
  }

  /** Offset of the L2 table of an L1 entry; 0 if it has none. */
  l2TableOffset(l1Index: number): number {
    const { high, low } = this.l1Entry(l1Index);
    return entryOffset(high, low);
  }

  /**
   * The mapping of the bytes from `guestOffset`, as far as one slice of an L2
   * table reaches; `undefined` if that slice is not cached.
   */
  lookup(guestOffset: number, length: number): Mapping | undefined {
    const { geometry, l2Cache } = this.#state;
    const l1Index = geometry.l1Index(guestOffset);
    const l2Offset = this.l2TableOffset(l1Index);
    if (l2Offset === 0) {
      const end = this.#emptyUntil(l1Index, guestOffset + length);
      return unallocated(Math.min(length, end - guestOffset));
    }
    const l2Index = geometry.l2Index(guestOffset);
    const slice = l2Cache.peek(this.#sliceOffset(l2Offset, l2Index));
    if (!slice) return undefined;
    const index = this.#indexInSlice(l2Index);
    return this.#decodeRun(slice.view, index, guestOffset, length);
  }

  /**
   * As {@linkcode lookup}, reading the slice if need be; without waiting if it
   * is cached and the entry is sound. The mapping may change before it is used,
   * unless the caller holds its range.
   *
   * @param readThrough Whether this is a step of a walk through the whole disk.
   */
  map(
    guestOffset: number,
    length: number,
    readThrough = false,
  ): Mapping | Promise<Mapping> {
    const mapping = this.lookup(guestOffset, length);
    if (!mapping) return this.#fetchAndMap(guestOffset, length, readThrough);
    if (this.isSound(mapping, guestOffset)) return mapping;
    return this.#lockAndMap(guestOffset, length);
  }

  /**
   * Takes no lock, so that a slow file delays nobody who needs other tables.
   */
  async #fetchAndMap(
    guestOffset: number,
    length: number,
    readThrough: boolean,
  ): Promise<Mapping> {
    const { geometry, l2Cache } = this.#state;
    const l1Index = geometry.l1Index(guestOffset);
    const l2Offset = this.l2TableOffset(l1Index);
    if (!geometry.isAligned(l2Offset) || l2Offset >= 2 ** 53) {
      // Salvaging comes here for each sector; only marking it needs the lock.
      if (this.#state.readOnly) await this.#checkTableOffset(l1Index, l2Offset);
      return await this.#lockAndMap(guestOffset, length);
    }
    const l2Index = geometry.l2Index(guestOffset);
    const offset = this.#sliceOffset(l2Offset, l2Index);
    const decode = (slice?: CachedTable) => {
      const isCurrent = slice?.offset === offset &&
        this.l2TableOffset(l1Index) === l2Offset;
      if (!isCurrent) return undefined;
      const index = this.#indexInSlice(l2Index);
      return this.#decodeRun(slice.view, index, guestOffset, length);
    };
    const mapping = readThrough
      ? await l2Cache.readThrough(offset, decode)
      : decode(await l2Cache.fetch(offset));
    if (!mapping) return await this.map(guestOffset, length, readThrough);
    if (this.isSound(mapping, guestOffset)) return mapping;
    return await this.#lockAndMap(guestOffset, length);
  }

  async #lockAndMap(guestOffset: number, length: number): Promise<Mapping> {
    using _ = await this.#state.metadata.lock();
    const mapping = await this.findLocked(guestOffset, length);
    if (this.isSound(mapping, guestOffset)) return mapping;
    return await this.#refuse(mapping, guestOffset);
  }

  /**
   * As {@linkcode map}, but with damaged entries. Requires the metadata lock.
   */
  async findLocked(guestOffset: number, length: number): Promise<Mapping> {
    const mapping = this.lookup(guestOffset, length);
    if (mapping) return mapping;
    const { slice, index } = await this.#loadEntry(guestOffset);
    return this.#decodeRun(slice.view, index, guestOffset, length);
  }

  /**
   * An L2 entry in a table that may be changed: allocated if there is none,
   * copied if a snapshot shares it; without waiting if it is cached. Requires
   * the metadata lock.
   */
  entryForWrite(guestOffset: number): EntryPlace | Promise<EntryPlace> {
    return this.peekForWrite(guestOffset) ?? this.#prepareEntry(guestOffset);
  }

  /**
   * As {@linkcode entryForWrite}, if the entry is cached and its table may be
   * changed.
   */
  peekForWrite(guestOffset: number): EntryPlace | undefined {
    const { geometry, l2Cache } = this.#state;
    const { high, low } = this.l1Entry(geometry.l1Index(guestOffset));
    if (!(high & COPIED)) return undefined;
    const l2Index = geometry.l2Index(guestOffset);
    const l2Offset = entryOffset(high, low);
    const slice = l2Cache.peek(this.#sliceOffset(l2Offset, l2Index));
    const index = this.#indexInSlice(l2Index);
    return slice && { slice, index };
  }

  async #prepareEntry(guestOffset: number): Promise<EntryPlace> {
    const { geometry, l2Cache } = this.#state;
    const l1Index = geometry.l1Index(guestOffset);
    if (this.l1Entry(l1Index).high & COPIED) {
      return await this.#loadEntry(guestOffset);
    }
    const table = await this.#makeTable(l1Index);
    const l2Index = geometry.l2Index(guestOffset);
    const at = this.#sliceOffset(0, l2Index);
    const slice = await l2Cache.adopt(
      this.l2TableOffset(l1Index) + at,
      table.subarray(at, at + l2Cache.entrySize),
    );
    return { slice, index: this.#indexInSlice(l2Index) };
  }

  /**
   * The mapping in the entries from `place` on, the first being that of a guest
   * offset.
   */
  mappingAt(
    { slice, index }: EntryPlace,
    guestOffset: number,
    length: number,
  ): Mapping {
    return this.#decodeRun(slice.view, index, guestOffset, length);
  }

  /** Entries from `place` to the end of its slice. */
  entriesLeft(place: EntryPlace): number {
    const { l2Cache, geometry: { l2 } } = this.#state;
    return l2.entriesIn(l2Cache.entrySize) - place.index;
  }

  /**
   * The slice in which an entry is about to be changed, in the same turn; the
   * caller ensures the write order.
   */
  changing({ slice }: EntryPlace): DataView {
    this.#state.l2Cache.markDirty(slice);
    return slice.view;
  }

  /**
   * Enlarge the L1 table. The new table is complete before the header refers to
   * it.
   */
  async growL1(entries: number, exact: boolean): Promise<void> {
    const { header, geometry, file, refcounts, refcountCache } = this.#state;
    if (entries <= header.l1Size) return;
    let size = entries;
    if (!exact) {
      size = Math.max(header.l1Size, 1);
      while (size < entries) size = Math.ceil(size * 1.5);
    }
    if (size * ENTRY_SIZE > MAX_L1_BYTES) throw new BlockError("EFBIG");
    const bytes = allocate(size * ENTRY_SIZE);
    bytes.set(this.l1Bytes);
    await this.#state.event("l1_grow_alloc_table");
    const offset = await refcounts.allocate(
      geometry.clustersFor(bytes.length),
    );
    const old = { offset: header.l1TableOffset, size: header.l1Size };
    try {
      await refcountCache.flush();
      await this.#state.overlap.check(offset, bytes.length);
      await this.#state.event("l1_grow_write_table");
      // The table may end the file, which must consist of whole sectors.
      await file.writev!(offset, padded(bytes, SECTOR_SIZE));
      await file.flush?.();
      await this.#state.event("l1_grow_activate_table");
      await this.#state.changeHeader({ l1TableOffset: offset, l1Size: size });
    } catch (error) {
      await refcounts.add(offset, bytes.length, -1);
      throw error;
    }
    this.#l1 = viewOf(bytes);
    await refcounts.free(old.offset, old.size * ENTRY_SIZE);
  }

  /** Change an L1 entry; if that fails, the old one stays in memory. */
  async setL1Entry(index: number, offset: number): Promise<void> {
    const { file, header, overlap } = this.#state;
    const at = index * ENTRY_SIZE;
    const entry = allocate(ENTRY_SIZE);
    writeUint64(viewOf(entry), 0, offset);
    if (offset !== 0) entry[0] |= COPIED >>> 24;
    const place = header.l1TableOffset + at;
    const oldOffset = this.l2TableOffset(index);
    const old = this.l1Bytes.slice(at, at + ENTRY_SIZE);
    // The old table need not be protected any more.
    overlap.replaceL2(oldOffset, offset);
    this.l1Bytes.set(entry, at);
    try {
      await overlap.check(place, ENTRY_SIZE, "active-l1");
      await this.#state.event("l1_update");
      await file.writev!(place, [entry]);
    } catch (error) {
      overlap.replaceL2(offset, oldOffset);
      this.l1Bytes.set(old, at);
      throw error;
    }
  }

  // The sizes of slices and entries are powers of two.
  #indexInSlice(l2Index: number): number {
    const { l2Cache, geometry: { l2 } } = this.#state;
    return l2Index & (l2.entriesIn(l2Cache.entrySize) - 1);
  }

  #sliceOffset(l2Offset: number, l2Index: number): number {
    const { l2Cache, geometry: { l2 } } = this.#state;
    return l2Offset + (l2Index * l2.entrySize & -l2Cache.entrySize);
  }

  /** The guest offset up to which L1 entries from `l1Index` on are empty. */
  #emptyUntil(l1Index: number, end: number): number {
    const { l2Coverage } = this.#state.geometry;
    do l1Index++; while (
      l1Index * l2Coverage < end && this.l2TableOffset(l1Index) === 0
    );
    return l1Index * l2Coverage;
  }

  #decodeRun(
    table: DataView,
    index: number,
    guestOffset: number,
    length: number,
  ): Mapping {
    const { clusterSize, l2 } = this.#state.geometry;
    const kind = l2.kind(table, index);
    const offsetInCluster = guestOffset % clusterSize;
    if (kind === "compressed") {
      return {
        kind,
        length: Math.min(length, clusterSize - offsetInCluster),
        hostOffset: l2.compressedOffset(table, index),
        compressedLength: l2.compressedLength(table, index),
        isCopied: false,
      };
    }
    if (l2.isExtended) {
      return this.#decodeSubclusters(table, index, offsetInCluster, length);
    }
    let run = length;
    // Most requests are about one cluster, and need no other entry.
    if (offsetInCluster + length > clusterSize) {
      const most = Math.ceil((offsetInCluster + length) / clusterSize);
      run = l2.runLength(table, index, most) * clusterSize - offsetInCluster;
    }
    const hasPlace = kind === "normal" || kind === "zeroAllocated";
    return {
      kind,
      length: Math.min(run, length),
      hostOffset: hasPlace ? l2.offset(table, index) + offsetInCluster : 0,
      compressedLength: 0,
      isCopied: l2.isCopied(table, index),
    };
  }

  /** Decode an extended entry from byte `within` of its cluster on. */
  #decodeSubclusters(
    table: DataView,
    index: number,
    offsetInCluster: number,
    length: number,
  ): Mapping {
    const { l2 } = this.#state.geometry;
    const size = l2.subclusterSize;
    const first = Math.floor(offsetInCluster / size);
    const most = Math.ceil((offsetInCluster + length) / size) - first;
    const run = l2.subclusterRun(table, index, first, most);
    return {
      kind: l2.subclusterKind(table, index, first),
      length: Math.min((first + run) * size - offsetInCluster, length),
      hostOffset: l2.isPlaced(table, index)
        ? l2.offset(table, index) + offsetInCluster
        : 0,
      compressedLength: 0,
      isCopied: l2.isCopied(table, index),
    };
  }

  /**
   * The kind of whole clusters from that of `guestOffset` on, and how many in
   * one slice share it. Requires the metadata lock.
   */
  async findWhole(
    guestOffset: number,
    length: number,
  ): Promise<{ kind: WholeKind; length: number }> {
    const { geometry } = this.#state;
    const { clusterSize, l2 } = geometry;
    const mapping = await this.findLocked(guestOffset, length);
    const l1Index = geometry.l1Index(guestOffset);
    if (!l2.isExtended || this.l2TableOffset(l1Index) === 0) {
      return { kind: mapping.kind as WholeKind, length: mapping.length };
    }
    const { slice: { view }, index } = await this.#loadEntry(guestOffset);
    const kind = l2.wholeKind(view, index);
    const most = Math.min(
      l2.entriesIn(view.byteLength) - index,
      geometry.clustersFor(length),
    );
    let count = 1;
    while (count < most && l2.wholeKind(view, index + count) === kind) count++;
    return { kind, length: Math.min(length, count * clusterSize) };
  }

  /** Whether a correct program could have written the entry. */
  isSound({ kind, hostOffset }: Mapping, guestOffset: number): boolean {
    const { geometry, hasDataFile, header } = this.#state;
    if (kind === "unallocated") return true;
    if (kind === "compressed") return !hasDataFile;
    if (kind === "invalid") return false;
    if (kind !== "normal" && header.version < 3) return false;
    if (kind === "zero") return true;
    if (hasDataFile && hostOffset !== guestOffset) return false;
    const cluster = hostOffset - geometry.offsetInCluster(guestOffset);
    return geometry.isAligned(cluster);
  }

  /** The position of an L2 entry, for messages. */
  placeText(guestOffset: number): string {
    const { geometry } = this.#state;
    const l2Offset = hex(this.l2TableOffset(geometry.l1Index(guestOffset)));
    const l2Index = hex(geometry.l2Index(guestOffset));
    return `(L2 offset: ${l2Offset}, L2 index: ${l2Index})`;
  }

  /** Refuse an entry that no correct program could have written. */
  async #refuse(mapping: Mapping, guestOffset: number): Promise<never> {
    const { geometry, hasDataFile, header } = this.#state;
    const place = this.placeText(guestOffset);
    if (mapping.kind === "compressed") {
      await this.#state.corrupt(
        `Compressed cluster entry found in image with external data file ${place}`,
      );
    }
    if (mapping.kind !== "normal" && header.version < 3) {
      await this.#state.corrupt(
        `Zero cluster entry found in pre-v3 image ${place}`,
      );
    }
    if (mapping.kind === "invalid") {
      // Two spaces, as in QEMU.
      await this.#state.corrupt(`Invalid cluster entry found  ${place}`);
    }
    const cluster = mapping.hostOffset - geometry.offsetInCluster(guestOffset);
    if (hasDataFile && geometry.isAligned(cluster)) {
      const guest = hex(geometry.clusterStart(guestOffset));
      // With a stray bracket, as in QEMU.
      await this.#state.corrupt(
        `External data file host cluster offset ${hex(cluster)} does not ` +
          `match guest cluster offset: ${guest}, L2 index: ` +
          `${hex(geometry.l2Index(guestOffset))})`,
      );
    }
    return await this.#state.corrupt(
      `Cluster allocation offset ${hex(cluster)} unaligned ${place}`,
    );
  }

  async #loadEntry(guestOffset: number): Promise<EntryPlace> {
    const { geometry, l2Cache } = this.#state;
    const l1Index = geometry.l1Index(guestOffset);
    const l2Offset = this.l2TableOffset(l1Index);
    await this.#checkTableOffset(l1Index, l2Offset);
    const l2Index = geometry.l2Index(guestOffset);
    // Not looked up again: it may have been evicted by then.
    const slice = await l2Cache.load(this.#sliceOffset(l2Offset, l2Index));
    return { slice, index: this.#indexInSlice(l2Index) };
  }

  /** Refuse an L1 entry that does not point to the start of a cluster. */
  #checkTableOffset(
    l1Index: number,
    l2Offset: number,
  ): void | Promise<never> {
    if (this.#state.geometry.isAligned(l2Offset)) return;
    return this.#state.corrupt(
      `L2 table offset ${hex(l2Offset)} unaligned (L1 index: ${hex(l1Index)})`,
    );
  }

  /** Allocate an L2 table of its own for an L1 entry; returns its content. */
  async #makeTable(l1Index: number): Promise<Uint8Array> {
    const { geometry, file, l2Cache, refcountCache, refcounts } = this.#state;
    const { clusterSize } = geometry;
    const oldOffset = this.l2TableOffset(l1Index);
    await this.#checkTableOffset(l1Index, oldOffset);
    const bytes = allocate(clusterSize);
    const offset = await refcounts.allocate(1);
    if (offset === 0) {
      await this.#state.corrupt(
        "Preventing invalid allocation of L2 table at offset 0",
      );
    }
    try {
      if (oldOffset !== 0) {
        await l2Cache.write();
        await this.#state.event("l2_alloc_cow_read");
        await readPadded(file, oldOffset, [bytes]);
      }
      await this.#state.event("l2_alloc_write");
      await this.#state.overlap.check(offset, clusterSize, "active-l2");
      await file.writev!(offset, [bytes]);
      // Both the table and its refcount must be durable before they are used.
      await refcountCache.flush();
      await this.setL1Entry(l1Index, offset);
    } catch (error) {
      await refcounts.add(offset, clusterSize, -1);
      throw error;
    }
    if (oldOffset !== 0) await refcounts.free(oldOffset, clusterSize);
    return bytes;
  }
}

function unallocated(length: number): Mapping {
  return {
    kind: "unallocated",
    length,
    hostOffset: 0,
    compressedLength: 0,
    isCopied: false,
  };
}
