/**
 * The options of conversions.
 *
 * @module
 */
import type { WriteFlags } from "../node.ts";

/**
 * How to convert.
 *
 * @category Jobs
 */
export interface ConvertOptions {
  /** Most requests in flight, 1 to 16. Default: 8. */
  parallel?: number;
  /**
   * Shortest run of zeroes to leave out, in bytes, a multiple of 512. 0 writes
   * everything, holes too. Default: 4096.
   */
  sparseSize?: number;
  /** Whether the target is known to read as zeroes. Default: false. */
  targetIsZero?: boolean;
  /** Whether the target is new, so that its backing file is fully visible. */
  targetIsNew?: boolean;
  /**
   * Copy only what differs from the source's backing file; the target's backing
   * file must have the same content. One source only. Default: false.
   */
  onlyDifferences?: boolean;
  /** Store clusters compressed. Default: false. */
  compressed?: boolean;
  /** Compression level: 0 to 9 for zlib, 1 to 22 for zstd. */
  compressionLevel?: number;
  /** Whether writes may overtake each other. Default: false. */
  outOfOrder?: boolean;
  /** Most bytes of data written per second; 0 for no limit. Default: 0. */
  rateLimit?: number;
  /**
   * Continue past unreadable sectors: they become zeroes, each with a warning.
   * Default: false.
   */
  salvage?: boolean;
  /** Receives warnings. Default: they are dropped. */
  warn?(message: string): void;
  /**
   * Copy offload: let the system copy data from file to file where it can,
   * without searching it for zeroes. Default: false.
   */
  copyOffload?: boolean;
  /** Flags of each write. */
  flags?: WriteFlags;
  /** Ends the job with ECANCELED. */
  signal?: AbortSignal;
  /**
   * Whether progress counts only `data`, which needs an extra pass to be
   * counted, or the whole `disk`. Default: `data`.
   */
  progressBy?: "data" | "disk";
  /** Receives how many bytes are done or under way, and the total. */
  progress?(done: number, total: number): void;
}
