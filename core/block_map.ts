/**
 * A format's map: where the bytes of its disk are. Moving them is up to
 * `access.ts`, for all formats alike.
 *
 * A block of a VHD or VHDX image may be mapped only in part: a run then ends
 * where its sector bitmap changes, and a write to an unmapped sector is an
 * `allocate` in the block's own space, whose `commit` sets the bits.
 *
 * @module
 */
import type { IoVector } from "./bytes.ts";
import type { BlockNode, ReadFlags } from "./node.ts";

/** A range of a disk that is mapped in one way. */
export interface Run {
  /** Bytes from the requested offset on, at least 1. */
  readonly length: number;
  /**
   * `data` is stored plainly in a child, `zero` reads as zeroes, `unallocated`
   * reads as the backing file (zeroes without one), and `special` can be read
   * only by the format itself.
   */
  readonly kind: "data" | "zero" | "unallocated" | "special";
  /**
   * The child that stores it; for zeroes, the one with space reserved for it.
   */
  readonly child?: BlockNode;
  /** Offset of its first byte in the child. */
  readonly childOffset?: number;
}

/** Where the first part of a write can go without an allocation. */
export interface Place {
  /** Bytes of the write, at least 1. */
  readonly length: number;
  readonly child: BlockNode;
  /** Offset of its first byte in the child. */
  readonly childOffset: number;
}

/** Space for a part of the disk that is not mapped to it yet. */
export interface Allocation {
  /** Offset on the disk of the first byte it is for. */
  readonly start: number;
  /**
   * Bytes; may reach past the end of the disk. Where nothing is written, the
   * old content is copied.
   */
  readonly length: number;
  readonly child: BlockNode;
  /** Its offset in the child. */
  readonly childOffset: number;
  /** Whether the space already reads as zeroes. */
  readonly isZero: boolean;
  /** Whether `commit` frees the space that the range had before. */
  readonly replaces: boolean;
  /**
   * The data has been written: map it, in an order that survives a power cut.
   * Whether this succeeds or fails, the space is no longer the caller's.
   */
  commit(): Promise<void>;
  /** Nothing will be written: free the space. Never fails. */
  abort(): Promise<void>;
}

/**
 * The tables of a format. `lookup`, `find` and `inPlace` may be called at any
 * time; their result stays valid while the caller holds the range. `allocate`
 * and `commit` require the range to be held exclusively.
 */
export interface BlockMap<R extends Run = Run> {
  /**
   * Granularity of locking, in bytes, as a rule a power of two: while the
   * mapping of any part of a unit changes, nobody may read or write the unit.
   */
  readonly unit: number;
  /**
   * The first run at `offset`, from cached tables; `undefined` if the table
   * must be loaded first, or is damaged.
   */
  lookup(offset: number, length: number): R | undefined;
  /**
   * As `lookup`, loading the table if need be.
   *
   * @param readThrough Whether this is a step of a walk through the whole disk.
   * @throws {BlockError} EIO if the table is damaged.
   */
  find(offset: number, length: number, readThrough?: boolean): Promise<R>;
  /**
   * Where the first part of a write may go at once: mapped space that nothing
   * else refers to. `undefined` if space must be allocated, or cached tables
   * are not enough to tell.
   */
  inPlace(offset: number, length: number): Place | undefined;
  /**
   * Allocate space for the first part of a write, at least 1 byte of it; or
   * return its present space, where `inPlace` could not tell.
   *
   * @throws {BlockError} ENOSPC or EFBIG if there is none.
   */
  allocate(offset: number, length: number): Allocation | Promise<Allocation>;
  /** Read part of one `special` run. */
  readSpecial?(
    run: R,
    offset: number,
    iov: IoVector,
    flags?: ReadFlags,
  ): Promise<void>;
  /** Whether parts of the run may be holes in the child. */
  mayHaveHoles?(run: R): boolean | Promise<boolean>;
  /**
   * Whether blocks are so large that many contain holes in the child, although
   * a map of the disk, which is to equal QEMU's, shows none.
   */
  readonly isSparse?: boolean;
}
