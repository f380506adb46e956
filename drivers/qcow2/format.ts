/**
 * The numbers of the qcow2 format: constants, entries of tables, and the
 * arithmetic that relates guest offsets to them. (Specification: "Header",
 * "L1 table entry", "L2 table entry", "Compressed Clusters Descriptor".)
 *
 * 64-bit entries are handled as two 32-bit halves; offsets are numbers below
 * 2^53.
 *
 * @module
 */

/** `QFI\xfb`, the first four bytes. */
export const MAGIC = 0x514649fb;

export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
export const DEFAULT_CLUSTER_SIZE = 65536;

/** Bytes of an active or inactive L1 table at most: 32 MiB. */
export const MAX_L1_BYTES = 32 * 1024 * 1024;
/** Bytes of the refcount table at most: 8 MiB. */
export const MAX_REFCOUNT_TABLE_BYTES = 8 * 1024 * 1024;
export const MAX_SNAPSHOTS = 65536;
/** Bytes of the snapshot table at most: 64 MiB. */
export const MAX_SNAPSHOT_TABLE_BYTES = 1024 * MAX_SNAPSHOTS;
/** Bytes of a snapshot's extra data at most. */
export const MAX_SNAPSHOT_EXTRA_BYTES = 1024;

/** Bytes of an L1, L2 or refcount table entry. */
export const ENTRY_SIZE = 8;

// Flags of L1 and L2 entries, in their upper halves.
/** The refcount is exactly one: the target may be written in place. */
export const COPIED = 0x80000000;
/** The L2 entry is a compressed cluster descriptor. */
export const COMPRESSED = 0x40000000;
/** In the lower half of an L2 entry: the cluster reads as zeroes. */
export const ZERO = 1;

/** Incompatible feature bits. */
export const Incompatible = {
  DIRTY: 1,
  CORRUPT: 2,
  DATA_FILE: 4,
  COMPRESSION: 8,
  EXTENDED_L2: 16,
} as const;

/** Compatible feature bits. */
export const Compatible = { LAZY_REFCOUNTS: 1 } as const;

/** Autoclear feature bits. */
export const Autoclear = { BITMAPS: 1, RAW_EXTERNAL_DATA: 2 } as const;

/** Encryption methods. */
export const Crypt = { NONE: 0, AES: 1, LUKS: 2 } as const;

/** What `icount` is where no instructions were counted. */
export const NO_ICOUNT = 2n ** 64n - 1n;

/** What an L2 entry says of its cluster. */
export type ClusterKind =
  | "unallocated"
  | "zero"
  | "zeroAllocated"
  | "normal"
  | "compressed";

const TWO_32 = 2 ** 32;

/** Read 64 bits; values of 2^53 or more lose precision, but stay as large. */
export function readUint64(view: DataView, at: number): number {
  return view.getUint32(at) * TWO_32 + view.getUint32(at + 4);
}

/** Write 64 bits of a value below 2^53. */
export function writeUint64(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / TWO_32));
  view.setUint32(at + 4, value % TWO_32);
}

/** A view of the same memory for access to numbers. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The bytes that a view shows, sharing its memory. */
export function bytesOf(
  { buffer, byteOffset, byteLength }: DataView,
): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** What the halves of an L2 entry say of the cluster. */
export function clusterKind(high: number, low: number): ClusterKind {
  if (high & COMPRESSED) return "compressed";
  if (low & ZERO) return hasOffset(high, low) ? "zeroAllocated" : "zero";
  return hasOffset(high, low) ? "normal" : "unallocated";
}

function hasOffset(high: number, low: number): boolean {
  return (high & 0x00ffffff) !== 0 || (low & 0xfffffe00) !== 0;
}

/** The host offset in an entry of an L1, L2 or refcount table (bits 9 to 55). */
export function entryOffset(high: number, low: number): number {
  return (high & 0x00ffffff) * TWO_32 + ((low & 0xfffffe00) >>> 0);
}

/** Reserved bits of an L1 entry, which must be zero. */
export function l1ReservedBits(high: number, low: number): boolean {
  return (high & 0x7f000000) !== 0 || (low & 0x1ff) !== 0;
}

/** Reserved bits of a plain L2 entry, which must be zero. */
export function l2ReservedBits(high: number, low: number): boolean {
  return (high & 0x3f000000) !== 0 || (low & 0x1fe) !== 0;
}

/** An entry as QEMU prints it: hexadecimal digits without leading zeroes. */
export function entryToHex(high: number, low: number): string {
  const highDigits = (high >>> 0).toString(16);
  const lowDigits = (low >>> 0).toString(16);
  return high ? highDigits + lowDigits.padStart(8, "0") : lowDigits;
}

/** C's `%#x`: zero has no prefix. */
export function hex(value: number): string {
  return value === 0 ? "0" : "0x" + value.toString(16);
}

/** Where the bytes of a compressed cluster lie. */
export interface CompressedCluster {
  /** The first byte, anywhere in the file. */
  hostOffset: number;
  /** Bytes to the end of the last 512-byte sector that it touches. */
  length: number;
}

/** The sizes that follow from the cluster size, refcount width and version. */
export class Geometry {
  readonly clusterBits: number;
  /** Bytes. */
  readonly clusterSize: number;
  /** Entries of an L2 table. */
  readonly l2Entries: number;
  /** Guest bytes that an L2 table covers. */
  readonly l2Coverage: number;
  readonly refcountOrder: number;
  readonly refcountBits: number;
  /** Entries of a refcount block. */
  readonly refcountBlockEntries: number;
  /** The largest refcount; inexact for 64 bits. */
  readonly refcountMax: number;

  constructor(clusterBits: number, refcountOrder: number) {
    this.clusterBits = clusterBits;
    this.clusterSize = 2 ** clusterBits;
    this.l2Entries = this.clusterSize / ENTRY_SIZE;
    this.l2Coverage = this.clusterSize * this.l2Entries;
    this.refcountOrder = refcountOrder;
    this.refcountBits = 2 ** refcountOrder;
    this.refcountBlockEntries = this.clusterSize * 8 / this.refcountBits;
    this.refcountMax = 2 ** this.refcountBits - 1;
  }

  /** Entries that an L1 table needs for a disk of `size` bytes. */
  l1EntriesFor(size: number): number {
    return Math.ceil(size / this.l2Coverage);
  }

  /** The index in the L1 table. */
  l1Index(guestOffset: number): number {
    return Math.floor(guestOffset / this.l2Coverage);
  }

  /** The index in the L2 table. */
  l2Index(guestOffset: number): number {
    return Math.floor((guestOffset % this.l2Coverage) / this.clusterSize);
  }

  /** The byte of its cluster. */
  offsetInCluster(offset: number): number {
    return offset % this.clusterSize;
  }

  /** The start of its cluster. */
  clusterStart(offset: number): number {
    return offset - offset % this.clusterSize;
  }

  /** The next start of a cluster, unless it is one. */
  clusterEnd(offset: number): number {
    const rest = offset % this.clusterSize;
    return rest === 0 ? offset : offset + this.clusterSize - rest;
  }

  /** Clusters that `bytes` take. */
  clustersFor(bytes: number): number {
    return Math.ceil(bytes / this.clusterSize);
  }

  /** Whether an offset in the file can be that of a cluster. */
  isAligned(offset: number): boolean {
    return offset % this.clusterSize === 0;
  }

  /** Bits of the offset in a compressed cluster descriptor. */
  get compressedOffsetBits(): number {
    return 62 - (this.clusterBits - 8);
  }

  /** Decode the descriptor in the halves of an L2 entry. */
  compressedCluster(high: number, low: number): CompressedCluster {
    const bits = this.compressedOffsetBits - 32;
    const mask = 2 ** bits - 1;
    const hostOffset = (high & mask) * TWO_32 + (low >>> 0);
    const sectors = ((high & 0x3fffffff) >>> bits) + 1;
    return { hostOffset, length: sectors * 512 - (low & 511) };
  }

  /** The upper half of an L2 entry for compressed bytes; the lower half is
   * the lower half of `hostOffset`. */
  compressedEntryHigh(hostOffset: number, length: number): number {
    const bits = this.compressedOffsetBits - 32;
    const first = Math.floor(hostOffset / 512);
    const last = Math.floor((hostOffset + length - 1) / 512);
    const high = Math.floor(hostOffset / TWO_32);
    return (COMPRESSED | ((last - first) << bits) | high) >>> 0;
  }
}
