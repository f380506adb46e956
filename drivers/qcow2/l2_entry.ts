/**
 * L2 table entries: the only code that knows their size and bits.
 * (Specification: "L2 table entry", "Standard Cluster Descriptor", "Compressed
 * Clusters Descriptor", "Extended L2 Entries".)
 *
 * | bits | of every entry |
 * |---|---|
 * | 63 | COPIED: the refcount is exactly one |
 * | 62 | compressed: bits 0 to 61 are a compressed cluster descriptor |
 * | 9-55 | host offset; with an external data file, 0 is one if COPIED is set, but not ZERO |
 * | 0 | the cluster reads as zeroes; without a meaning in extended entries |
 *
 * An extended entry continues with 64 bits for its 32 subclusters: which of
 * them read as zeroes (upper half), and which are allocated (lower half).
 *
 * All functions take a table, or a slice of one, as stored in the file, and the
 * index of an entry. Entries are read as two 32-bit halves, without an object
 * for each: a large disk has millions.
 *
 * @module
 */
import {
  COPIED,
  ENTRY_SIZE,
  entryOffset,
  entryToHex,
  Incompatible,
  setCopied,
  writeUint64,
} from "./format.ts";

/** What an L2 entry makes of its cluster. */
export type ClusterKind =
  | "unallocated"
  | "zero"
  | "zeroAllocated"
  | "normal"
  | "compressed";

/**
 * What an L2 entry makes of a subcluster: an unallocated one may still have
 * space in the file, and the bits may contradict each other.
 */
export type SubclusterKind = ClusterKind | "unallocatedPlaced" | "invalid";

/** What an L2 entry makes of its cluster as a whole. */
export type WholeKind = ClusterKind | "partlyZero";

// In the upper half.
const COMPRESSED = 0x40000000;
const RESERVED_HIGH = 0x3f000000;
const OFFSET_HIGH = 0x00ffffff;
// In the lower half.
const ZERO = 1;
const RESERVED_LOW = 0x1fe;
const OFFSET_LOW = 0xfffffe00;

const TWO_32 = 2 ** 32;
const SUBCLUSTERS = 32;
const ALL_SUBCLUSTERS = 0xffffffff;

/** The layout of an image's L2 tables. */
export class L2Layout {
  /** Bytes of an entry: 8, or 16 if extended. */
  readonly entrySize: number;
  readonly entriesPerTable: number;
  /** Whether entries have subclusters. */
  readonly isExtended: boolean;
  /** Bytes of a subcluster; of a cluster in standard entries. */
  readonly subclusterSize: number;
  readonly #clusterSize: number;
  /** Shifts an index to the offset of its entry. */
  readonly #shift: number;
  /** COPIED, if an entry with no other bit set has a cluster. */
  readonly #place: number;
  /** Bits of a compressed cluster's offset in the upper half. */
  readonly #compressedBits: number;

  /** @param features The lower half of the incompatible features. */
  constructor(clusterBits: number, features = 0) {
    this.isExtended = (features & Incompatible.EXTENDED_L2) !== 0;
    this.entrySize = this.isExtended ? 2 * ENTRY_SIZE : ENTRY_SIZE;
    this.#clusterSize = 2 ** clusterBits;
    this.subclusterSize = this.#clusterSize /
      (this.isExtended ? SUBCLUSTERS : 1);
    this.entriesPerTable = this.#clusterSize / this.entrySize;
    this.#shift = Math.log2(this.entrySize);
    this.#place = features & Incompatible.DATA_FILE ? COPIED : 0;
    this.#compressedBits = 62 - (clusterBits - 8) - 32;
  }

  /** Entries in a slice of this many bytes. */
  entriesIn(bytes: number): number {
    return bytes >> this.#shift;
  }

  /** The kind of the cluster; extended entries have kinds of subclusters. */
  kind(table: DataView, index: number): ClusterKind {
    const at = index << this.#shift;
    const high = table.getUint32(at);
    const low = table.getUint32(at + 4);
    if (high & COMPRESSED) return "compressed";
    const placed = this.#hasPlace(high, low);
    if ((low & ZERO) !== 0 && !this.isExtended) {
      return placed ? "zeroAllocated" : "zero";
    }
    return placed ? "normal" : "unallocated";
  }

  /** The kind of one of the entry's subclusters. */
  subclusterKind(
    table: DataView,
    index: number,
    subcluster: number,
  ): SubclusterKind {
    const kind = this.kind(table, index);
    if (!this.isExtended || kind === "compressed") return kind;
    if (this.isInvalid(table, index)) return "invalid";
    const allocated = this.allocatedSubclusters(table, index);
    const zero = this.zeroSubclusters(table, index);
    const isPlaced = kind === "normal";
    const bit = 1 << subcluster;
    if (zero & bit) return isPlaced ? "zeroAllocated" : "zero";
    if (allocated & bit) return "normal";
    return isPlaced ? "unallocatedPlaced" : "unallocated";
  }

  /**
   * Whether bits of an extended entry contradict each other. One contradiction
   * makes the whole entry invalid.
   */
  isInvalid(table: DataView, index: number): boolean {
    const allocated = this.allocatedSubclusters(table, index);
    // Standard entries have none.
    if (allocated === 0 || this.isCompressed(table, index)) return false;
    const others = this.isPlaced(table, index)
      ? this.zeroSubclusters(table, index)
      : ALL_SUBCLUSTERS;
    return (allocated & others) !== 0;
  }

  /**
   * The kind of the cluster as a whole. Mixed subclusters count as `normal` if
   * the entry has a cluster, else as `partlyZero`.
   */
  wholeKind(table: DataView, index: number): WholeKind {
    const kind = this.kind(table, index);
    if (!this.isExtended || kind === "compressed") return kind;
    const allocated = this.allocatedSubclusters(table, index);
    const zero = this.zeroSubclusters(table, index);
    const isZero = allocated === 0 && zero === ALL_SUBCLUSTERS;
    if (kind === "normal") return isZero ? "zeroAllocated" : kind;
    if (isZero) return "zero";
    return allocated === 0 && zero === 0 ? kind : "partlyZero";
  }

  /** A bit for each allocated subcluster; standard entries have none. */
  allocatedSubclusters(table: DataView, index: number): number {
    if (!this.isExtended) return 0;
    return table.getUint32((index << this.#shift) + ENTRY_SIZE + 4);
  }

  /** A bit for each subcluster that reads as zeroes. */
  zeroSubclusters(table: DataView, index: number): number {
    if (!this.isExtended) return 0;
    return table.getUint32((index << this.#shift) + ENTRY_SIZE);
  }

  /** Whether the standard part of the entry has no bit set. */
  isEmpty(table: DataView, index: number): boolean {
    const at = index << this.#shift;
    return (table.getInt32(at) | table.getInt32(at + 4)) === 0;
  }

  /** Whether the refcount of the entry's cluster is exactly one. */
  isCopied(table: DataView, index: number): boolean {
    return (table.getUint32(index << this.#shift) & COPIED) !== 0;
  }

  /** Whether the entry is a compressed cluster descriptor. */
  isCompressed(table: DataView, index: number): boolean {
    return (table.getUint32(index << this.#shift) & COMPRESSED) !== 0;
  }

  /** Whether the entry has a whole cluster in the file. */
  isPlaced(table: DataView, index: number): boolean {
    const at = index << this.#shift;
    const high = table.getUint32(at);
    return (high & COMPRESSED) === 0 &&
      this.#hasPlace(high, table.getUint32(at + 4));
  }

  /** Whether the entry has an aligned cluster, and no flag but COPIED. */
  isPlain(table: DataView, index: number): boolean {
    const at = index << this.#shift;
    const high = table.getUint32(at);
    const low = table.getUint32(at + 4);
    return ((high & ~(COPIED | OFFSET_HIGH)) |
          (low & (this.#clusterSize - 1))) === 0 && this.#hasPlace(high, low);
  }

  /** Whether reserved bits are set in an entry that is not compressed. */
  hasReservedBits(table: DataView, index: number): boolean {
    const at = index << this.#shift;
    return ((table.getUint32(at) & RESERVED_HIGH) |
      (table.getUint32(at + 4) & RESERVED_LOW)) !== 0;
  }

  /** Host offset of a cluster that {@linkcode isPlaced}; 0 without one. */
  offset(table: DataView, index: number): number {
    const at = index << this.#shift;
    return entryOffset(table.getUint32(at), table.getUint32(at + 4));
  }

  /** Host offset of compressed data: any byte. */
  compressedOffset(table: DataView, index: number): number {
    const at = index << this.#shift;
    return this.#compressedHigh(table.getUint32(at)) * TWO_32 +
      table.getUint32(at + 4);
  }

  /** Bytes of compressed data, to the end of the last sector it touches. */
  compressedLength(table: DataView, index: number): number {
    const at = index << this.#shift;
    const further = (table.getUint32(at) & ~(COPIED | COMPRESSED)) >>>
      this.#compressedBits;
    return (further + 1) * 512 - (table.getUint32(at + 4) & 511);
  }

  /**
   * How many entries from `index` on, at most `most`, are of one kind, with
   * consecutive clusters if they have any. COPIED may differ. Compressed
   * entries form no runs. Subclusters are not examined.
   */
  runLength(table: DataView, index: number, most: number): number {
    const first = index << this.#shift;
    const high = table.getUint32(first);
    const low = table.getUint32(first + 4);
    if (high & COMPRESSED) return 1;
    const placed = this.#hasPlace(high, low);
    const step = placed ? this.#clusterSize : 0;
    const start = entryOffset(high, low);
    const { entrySize } = this;
    const end = Math.min(table.byteLength, first + most * entrySize);
    const flags = ~(COPIED ^ this.#place);
    let at = first + entrySize;
    for (
      ;
      (at = sequenceEnd(table, at, end, entrySize, step, flags)) < end;
      at += entrySize
    ) {
      // Other flags do not matter here, unless the lower half overflowed.
      const nextHigh = table.getUint32(at);
      const nextLow = table.getUint32(at + 4);
      const expected = start + (at - first) / entrySize * step;
      if (
        ((nextLow ^ low) & ZERO) !== 0 || (nextHigh & COMPRESSED) !== 0 ||
        entryOffset(nextHigh, nextLow) !== expected ||
        this.#hasPlace(nextHigh, nextLow) !== placed
      ) break;
    }
    return (Math.min(at, end) - first) / entrySize;
  }

  /**
   * How many subclusters from one of an entry on, at most `most`, are of one
   * kind, consecutive in the file if they have space there. COPIED may differ.
   */
  subclusterRun(
    table: DataView,
    index: number,
    subcluster: number,
    most: number,
  ): number {
    const kind = this.subclusterKind(table, index, subcluster);
    let run = this.#alike(table, index, subcluster, kind);
    if (kind === "invalid" || kind === "compressed") return Math.min(run, most);
    const isPlaced = this.isPlaced(table, index);
    const end = this.entriesIn(table.byteLength);
    let expected = this.offset(table, index);
    while (run < most && (subcluster + run) % SUBCLUSTERS === 0) {
      index++;
      expected += this.#clusterSize;
      if (index === end || this.subclusterKind(table, index, 0) !== kind) break;
      if (isPlaced && this.offset(table, index) !== expected) break;
      run += this.#alike(table, index, 0, kind);
    }
    return Math.min(run, most);
  }

  /** How many subclusters of an entry, from one on, are of one kind. */
  #alike(
    table: DataView,
    index: number,
    subcluster: number,
    kind: SubclusterKind,
  ): number {
    const rest = SUBCLUSTERS - subcluster;
    const allocated = this.allocatedSubclusters(table, index);
    const zero = this.zeroSubclusters(table, index);
    let others: number;
    switch (kind) {
      case "normal":
        others = ~allocated;
        break;
      case "zero":
      case "zeroAllocated":
        others = ~zero;
        break;
      case "unallocated":
      case "unallocatedPlaced":
        others = allocated | zero;
        break;
      default:
        return rest;
    }
    return Math.min(rest, trailingZeroes(others >>> subcluster));
  }

  /** The first allocated subcluster; their number if none is. */
  firstAllocated(table: DataView, index: number): number {
    return trailingZeroes(this.allocatedSubclusters(table, index));
  }

  /** One past the last allocated subcluster; 0 if none is. */
  lastAllocated(table: DataView, index: number): number {
    return SUBCLUSTERS - Math.clz32(this.allocatedSubclusters(table, index));
  }

  /** Whether all bytes of a part of a cluster are allocated. */
  isAllocated(
    table: DataView,
    index: number,
    start: number,
    end: number,
  ): boolean {
    const mask = this.#maskOf(start, end);
    return (mask & ~this.allocatedSubclusters(table, index)) === 0;
  }

  /** Bits of the subclusters that bytes `start` to `end` of a cluster touch. */
  #maskOf(start: number, end: number): number {
    const first = Math.floor(start / this.subclusterSize);
    const count = Math.ceil(end / this.subclusterSize) - first;
    if (count <= 0) return 0;
    return (ALL_SUBCLUSTERS >>> (SUBCLUSTERS - count)) << first;
  }

  /**
   * How many entries from `index` on, at most `most`, have exactly the flags of
   * the first one, and consecutive clusters within the same 4 GiB of the file.
   */
  sequenceLength(table: DataView, index: number, most: number): number {
    const { entrySize } = this;
    const first = index << this.#shift;
    const end = Math.min(table.byteLength, first + most * entrySize);
    const next = first + entrySize;
    const step = this.#clusterSize;
    const at = sequenceEnd(table, next, end, entrySize, step, ~0);
    return (Math.min(at, end) - first) / entrySize;
  }

  /**
   * Give an entry a cluster of its own.
   *
   * @param readsAsZeroes Whether the cluster reads as zeroes, whatever it
   * holds.
   */
  setPlace(
    table: DataView,
    index: number,
    hostOffset: number,
    readsAsZeroes = false,
  ): void {
    const at = index << this.#shift;
    const low = hostOffset % TWO_32;
    table.setUint32(at, (Math.floor(hostOffset / TWO_32) | COPIED) >>> 0);
    if (!this.isExtended) {
      table.setUint32(at + 4, readsAsZeroes ? low + ZERO : low);
      return;
    }
    table.setUint32(at + 4, low);
    this.#setAllSubclusters(at, table, readsAsZeroes);
  }

  /**
   * Give an entry a cluster of its own, with data in bytes `start` to `end`,
   * which are whole subclusters. Other subclusters stay as they are; standard
   * entries have none.
   */
  setData(
    table: DataView,
    index: number,
    hostOffset: number,
    start: number,
    end: number,
  ): void {
    if (!this.isExtended) return this.setPlace(table, index, hostOffset);
    const mask = this.#maskOf(start, end);
    const zero = this.zeroSubclusters(table, index) & ~mask;
    const allocated = this.allocatedSubclusters(table, index) | mask;
    this.setPlace(table, index, hostOffset);
    this.#setSubclusters(index << this.#shift, table, zero, allocated);
  }

  /**
   * Give an entry a cluster without changing what it reads as. Standard entries
   * need `readsAsZeroes` for that.
   *
   * @param readsAsZeroes Whether a standard entry reads as zeroes.
   */
  reserve(
    table: DataView,
    index: number,
    hostOffset: number,
    readsAsZeroes: boolean,
  ): void {
    if (this.isExtended) this.setData(table, index, hostOffset, 0, 0);
    else this.setPlace(table, index, hostOffset, readsAsZeroes);
  }

  /**
   * Make bytes `start` to `end` of a cluster, whole subclusters, read as
   * zeroes.
   */
  setZeroPart(
    table: DataView,
    index: number,
    start: number,
    end: number,
  ): void {
    const mask = this.#maskOf(start, end);
    const zero = this.zeroSubclusters(table, index) | mask;
    const allocated = this.allocatedSubclusters(table, index) & ~mask;
    this.#setSubclusters(index << this.#shift, table, zero, allocated);
  }

  /** Make a cluster read as zeroes that keeps its space in the file. */
  setZero(table: DataView, index: number): void {
    const at = index << this.#shift;
    if (this.isExtended) this.#setAllSubclusters(at, table, true);
    else table.setUint32(at + 4, table.getUint32(at + 4) | ZERO);
  }

  /** Unmap an entry: it reads as zeroes or as the backing file. */
  clear(table: DataView, index: number, readsAsZeroes: boolean): void {
    const at = index << this.#shift;
    if (!this.isExtended) {
      writeUint64(table, at, readsAsZeroes ? ZERO : 0);
      return;
    }
    writeUint64(table, at, 0);
    table.setUint32(at + ENTRY_SIZE, readsAsZeroes ? ALL_SUBCLUSTERS : 0);
    table.setUint32(at + ENTRY_SIZE + 4, 0);
  }

  /** Drop the cluster of an entry without data; it reads as before. */
  dropPlace(table: DataView, index: number): void {
    const isZero = this.kind(table, index) === "zeroAllocated";
    writeUint64(table, index << this.#shift, isZero ? ZERO : 0);
  }

  /** Refer to `length` bytes of compressed data. */
  setCompressed(
    table: DataView,
    index: number,
    hostOffset: number,
    length: number,
  ): void {
    const at = index << this.#shift;
    const first = Math.floor(hostOffset / 512);
    const further = Math.floor((hostOffset + length - 1) / 512) - first;
    const high = Math.floor(hostOffset / TWO_32);
    const descriptor = (further << this.#compressedBits) | high;
    table.setUint32(at, (COMPRESSED | descriptor) >>> 0);
    table.setUint32(at + 4, hostOffset % TWO_32);
    if (this.isExtended) writeUint64(table, at + ENTRY_SIZE, 0);
  }

  /** Set or clear COPIED; returns whether that changed the entry. */
  setCopied(table: DataView, index: number, copied: boolean): boolean {
    return setCopied(table, index << this.#shift, copied);
  }

  /** The standard part of the entry, as QEMU prints it. */
  text(table: DataView, index: number): string {
    const at = index << this.#shift;
    return entryToHex(table.getUint32(at), table.getUint32(at + 4));
  }

  /** A compressed cluster descriptor, as QEMU prints it. */
  compressedText(table: DataView, index: number): string {
    const at = index << this.#shift;
    const high = table.getUint32(at) & ~COPIED;
    return entryToHex(high, table.getUint32(at + 4));
  }

  /** {@linkcode compressedOffset} with all its digits. */
  compressedOffsetText(table: DataView, index: number): string {
    const at = index << this.#shift;
    const high = this.#compressedHigh(table.getUint32(at));
    return entryToHex(high, table.getUint32(at + 4));
  }

  #hasPlace(high: number, low: number): boolean {
    if (((high & OFFSET_HIGH) | (low & OFFSET_LOW)) !== 0) return true;
    // As in QEMU, a standard entry that reads as zeroes has none at offset 0.
    return (high & this.#place) !== 0 &&
      (this.isExtended || (low & ZERO) === 0);
  }

  #compressedHigh(high: number): number {
    return high & (2 ** this.#compressedBits - 1);
  }

  #setAllSubclusters(at: number, table: DataView, areZero: boolean): void {
    if (areZero) this.#setSubclusters(at, table, ALL_SUBCLUSTERS, 0);
    else this.#setSubclusters(at, table, 0, ALL_SUBCLUSTERS);
  }

  #setSubclusters(
    at: number,
    table: DataView,
    zero: number,
    allocated: number,
  ): void {
    table.setUint32(at + ENTRY_SIZE, zero);
    table.setUint32(at + ENTRY_SIZE + 4, allocated);
  }
}

/** Number of zero bits below the lowest set bit; 32 if none is set. */
function trailingZeroes(bits: number): number {
  return bits === 0 ? 32 : 31 - Math.clz32(bits & -bits);
}

/**
 * The first entry from `at` on that does not continue the one before: `step`
 * bytes further in the file, within the same 4 GiB, with the same `flags` in
 * the upper half; `end` or more if all do. There must be an entry before `at`.
 */
function sequenceEnd(
  table: DataView,
  at: number,
  end: number,
  entrySize: number,
  step: number,
  flags: number,
): number {
  // They are integers, which V8 does not see without this: much faster.
  at |= 0;
  end |= 0;
  entrySize |= 0;
  step |= 0;
  const high = table.getInt32(at - entrySize) & flags;
  let low = table.getInt32(at - entrySize + 4);
  for (; at < end; at += entrySize) {
    low = (low + step) | 0;
    const isNext = table.getInt32(at + 4) === low &&
      (table.getInt32(at) & flags) === high && (low >>> 0) >= step;
    if (!isNext) break;
  }
  return at;
}
