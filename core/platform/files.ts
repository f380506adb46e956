/**
 * What the file driver needs of a runtime: files with positional I/O, and a few
 * queries on paths. Everything throws `BlockError`.
 *
 * @module
 */
import type { IoVector } from "../bytes.ts";

/**
 * The status of a path, links followed.
 *
 * @category Drivers
 */
export interface FileInfo {
  /** Whether it is a plain file. */
  readonly isFile: boolean;
  /** Whether it is a folder. */
  readonly isDirectory: boolean;
  /** Whether it is a block device. */
  readonly isBlockDevice: boolean;
  /** Whether it is a character device. */
  readonly isCharDevice: boolean;
  /** Whether it is a Unix socket. */
  readonly isSocket: boolean;
  /** The device number. */
  readonly rdev: number;
  /** Bytes it takes up on disk, where known. */
  readonly actualSize?: number;
}

/** Local files. */
export interface Files {
  /** The status of a path. */
  stat(path: string): FileInfo;
  /** Open an existing file for reading, and for writing if `write` is set. */
  open(path: string, write: boolean): HostFile;
  /**
   * Create an empty file, unless there is one; it must be possible to open it
   * for writing.
   */
  create(path: string): void;
  /**
   * A file that the caller has opened, by the runtime's own object for it; it
   * stays the caller's to close. `undefined` for anything else.
   */
  adopt(handle: object): Promise<AdoptedFile | undefined>;
  /** The absolute path of an existing file, all links followed. */
  realPath(path: string): string;
  /** The target of a symbolic link. */
  readLink(path: string): string;
  /** The text of a small file. */
  readText(path: string): string;
  /** The current folder. */
  workingFolder(): string;
  /** Why there is no C library; ends a sentence. */
  readonly whyNoLibc: string;
}

/** A file that somebody else has opened. */
export interface AdoptedFile {
  readonly file: HostFile;
  /** Whether it was opened for writing. */
  readonly isWritable: boolean;
}

/**
 * An open file. Offsets and lengths are in bytes; absent methods are
 * unsupported.
 */
export interface HostFile {
  /** The descriptor, if the C library opened it. */
  readonly descriptor?: number;
  /** Fill `iov` from `offset` on, with zeroes past the end of the file. */
  preadv(offset: number, iov: IoVector): void;
  /** Write all of `iov` at `offset`. */
  pwritev(offset: number, iov: IoVector): void;
  /** As {@linkcode preadv}, in another thread. */
  preadvLater(offset: number, iov: IoVector): Promise<void>;
  /**
   * As {@linkcode pwritev}, in another thread; `iov` must not change meanwhile.
   */
  pwritevLater(offset: number, iov: IoVector): Promise<void>;
  /** As {@linkcode sync}, in another thread. */
  syncLater(): Promise<void>;
  /** Required alignment of the offsets and lengths of reads and writes. */
  readonly alignment?: number;
  /** The current size of the file or device. */
  size(): number;
  /** Truncate the file to `size`, or extend it with a hole. */
  truncate(size: number): void;
  /** Make written data durable. */
  sync(): void;
  /** Close the file, even if this throws. */
  close(): void;

  /**
   * Let the system copy a range of another file; both must have a `descriptor`.
   *
   * @throws {BlockError} ENOTSUP, EINVAL and others if it cannot, or if the
   * other file ends too early.
   */
  copyFrom?(
    offset: number,
    source: HostFile,
    sourceOffset: number,
    length: number,
  ): void;
  /** Free a range's space; it then reads as zeroes. */
  punchHole?(offset: number, length: number): void;
  /** Make a range read as zeroes, keeping its space. */
  zeroRange?(offset: number, length: number): void;
  /** Allocate space, extending the file; existing data is kept. */
  allocate?(offset: number, length: number): void;
  /** The first data at or after `offset`, or `undefined` if none follows. */
  seekData?(offset: number): number | undefined;
  /** The first hole at or after `offset`, which must lie within the file. */
  seekHole?(offset: number): number;
}
