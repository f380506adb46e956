/**
 * What a format answers: where the bytes of its disk lie. Moving them is the
 * business of `access.ts`, which is the same for all formats.
 *
 * What has a map today is `vdi`. Others that were laid beside it, and need
 * nothing more of the map: **VMDK**, where a run is a grain that a grain
 * directory and a grain table lead to (two lookups of `load`), an entry of 1 is
 * `zero`, a compressed grain behind its marker is `special`, and `child` is the
 * extent; **VHDX**, whose block table also says `unallocated` or `zero` block by
 * block, and whose `commit` writes the new entry to the log before the table;
 * **VHD**, whose blocks begin with a bitmap of sectors: of a differencing image,
 * a run ends where the bitmap changes, and a write to a sector that is not in it
 * is an `allocate` in place, whose `commit` sets the bits.
 *
 * @module
 */
import type { IoVector } from "./bytes.ts";
import type { BlockNode } from "./node.ts";

/** A range of a disk whose bytes are found in one way. */
export interface Run {
  /** Bytes from the offset that was asked for, at least 1. */
  readonly length: number;
  /**
   * `data` lies in a child as it is, `zero` reads as zeroes, `unallocated` is
   * left to the backing file (zeroes without one), and of `special` only the
   * format knows how to read it.
   */
  readonly kind: "data" | "zero" | "unallocated" | "special";
  /** The child that data lies in. */
  readonly child?: BlockNode;
  /** Where in the child its first byte lies. */
  readonly childOffset?: number;
  /** Whether a write may go to that place: nobody else refers to it. */
  readonly isOwned?: boolean;
  /** The child may know better: part of this data may be holes there. */
  readonly mayHaveHoles?: boolean;
}

/** Room for whole units of the disk, not yet part of it. */
export interface Allocation {
  /** The first byte of the disk that it is for: the start of a unit. */
  readonly start: number;
  /** Bytes, up to the end of a unit or of the disk. */
  readonly length: number;
  /** Where it lies. */
  readonly child: BlockNode;
  /** Its first byte there. */
  readonly childOffset: number;
  /** Whether what is not written reads as zeroes there. */
  readonly isZero: boolean;
  /**
   * The data has been written: make it part of the disk, in the order that
   * survives a power cut. After this, or when it fails, the room is not the
   * caller's any more.
   */
  commit(): Promise<void>;
  /** Nothing will be written: give the room back. Never fails. */
  abort(): Promise<void>;
}

/**
 * The tables of a format. `lookup` and `load` may be called at any time;
 * `allocate`, and `commit` of what it answers, only by the holder of the
 * range. The map may look at nothing but its own tables for an answer.
 */
export interface BlockMap {
  /** Bytes of the disk that are allocated at once, a power of two. */
  readonly unit: number;
  /**
   * What the range from `offset` on holds: the first run of it, at once;
   * `undefined` if the table that tells is to be loaded before.
   */
  lookup(offset: number, length: number): Run | undefined;
  /** Load the table that tells of an offset. */
  load(offset: number): Promise<void>;
  /**
   * Find room for the units that a range touches, or for the first ones of
   * them.
   *
   * @throws {BlockError} ENOSPC or EFBIG if there is none.
   */
  allocate(offset: number, length: number): Promise<Allocation>;
  /** Read what only the format can: a part of one `special` run. */
  readSpecial?(run: Run, offset: number, iov: IoVector): Promise<void>;
}
