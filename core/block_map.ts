/**
 * What a format answers: where the bytes of its disk lie. Moving them is the
 * business of `access.ts`, which is the same for all formats.
 *
 * `qcow2`, `vdi`, `vpc` and `vhdx` have a map today. Of a block of a VHD or VHDX
 * image that has only some of its sectors, a run ends where the bitmap of sectors
 * changes; a write to a sector that is not in it is an `allocate` in the block's
 * own place, whose `commit` sets the bits. **VMDK** was laid beside it, and needs
 * nothing more of it: a run is a grain that a grain directory and a grain table
 * lead to (two loads in one `find`), an entry of 1 is `zero`, a compressed grain
 * behind its marker is `special`, and `child` is the extent.
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
  /** The child in which it lies; of zeroes, the one that has room for them. */
  readonly child?: BlockNode;
  /** Where in the child its first byte lies. */
  readonly childOffset?: number;
}

/** Where the first part of a write can go at once. */
export interface Place {
  /** Bytes of the write, at least 1. */
  readonly length: number;
  readonly child: BlockNode;
  /** Where in the child its first byte goes. */
  readonly childOffset: number;
}

/** Room for a part of the disk that does not lie there yet. */
export interface Allocation {
  /** The first byte of the disk that it is for. */
  readonly start: number;
  /**
   * Bytes, which may reach past the end of the disk. Of what is not written,
   * the old content is copied.
   */
  readonly length: number;
  readonly child: BlockNode;
  /** Its first byte there. */
  readonly childOffset: number;
  /** Whether what is not written reads as zeroes there. */
  readonly isZero: boolean;
  /** Whether `commit` frees what the range had until then. */
  readonly replaces: boolean;
  /**
   * The data has been written: make it part of the disk, in the order that
   * survives a power cut. After this, or when it fails, the room is not the
   * caller's any more.
   */
  commit(): Promise<void>;
  /** Nothing will be written: give the room back. Never fails. */
  abort(): Promise<void>;
}

/** Room that a part of the disk, from `start` on, has already. */
export function roomInPlace(start: number, place: Place): Allocation {
  const { length, child, childOffset } = place;
  return {
    start,
    length,
    child,
    childOffset,
    isZero: false,
    replaces: false,
    commit: async () => {},
    abort: async () => {},
  };
}

/**
 * The tables of a format. `lookup`, `find` and `inPlace` may be called at any
 * time; what they answer stays true for the holder of the range. `allocate`,
 * and `commit` of what it answers, are for who holds the range exclusively.
 */
export interface BlockMap<R extends Run = Run> {
  /**
   * Bytes of the disk, a power of two, that nobody may read or write while
   * another changes where a part of them lies.
   */
  readonly unit: number;
  /**
   * What the range from `offset` on holds: the first run of it, at once;
   * `undefined` if the table that tells is to be loaded before, or is damaged.
   */
  lookup(offset: number, length: number): R | undefined;
  /**
   * As `lookup`, loading the table.
   *
   * @param readThrough Whether this is a step of a walk through the whole disk.
   * @throws {BlockError} EIO if the table is damaged.
   */
  find(offset: number, length: number, readThrough?: boolean): Promise<R>;
  /**
   * Where the first part of a write may go at once: nobody else refers to that
   * place, and what is written there shows. `undefined` if there must be an
   * allocation, or if that is to be found out first.
   */
  inPlace(offset: number, length: number): Place | undefined;
  /**
   * Find room for the first part of a write, at least 1 byte of it; also what
   * it has already, where `inPlace` could not tell.
   *
   * @throws {BlockError} ENOSPC or EFBIG if there is none.
   */
  allocate(offset: number, length: number): Allocation | Promise<Allocation>;
  /** Read what only the format can: a part of one `special` run. */
  readSpecial?(run: R, offset: number, iov: IoVector): Promise<void>;
  /** Whether the child may know better: part of a run may be holes there. */
  mayHaveHoles?(run: R): boolean | Promise<boolean>;
}
