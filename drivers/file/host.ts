/**
 * What the file driver needs of the system: an open file, used synchronously
 * and by position. There are two: by way of libc, and `Deno.FsFile`.
 *
 * @module
 */
import type { IoVector } from "../../core/bytes.ts";
import {
  asBlockError,
  BlockError,
  codeOfErrno,
  isErrorCode,
} from "../../core/errors.ts";

/**
 * An open file. Offsets and lengths are in bytes. Everything throws
 * {@linkcode BlockError}; what is absent cannot be done.
 */
export interface HostFile {
  /** The descriptor, if the C library opened it. */
  readonly descriptor?: number;
  /** Fill `iov` from `offset` on, with zeroes past the end of the file. */
  preadv(offset: number, iov: IoVector): void;
  /** Write all of `iov`. */
  pwritev(offset: number, iov: IoVector): void;
  /**
   * Have another thread write `part`, which must be left alone until then.
   *
   * @returns `undefined` if that cannot be done now.
   */
  beginWrite?(offset: number, part: Uint8Array): PendingWrite | undefined;
  /** Where the file or device ends now. */
  size(): number;
  /** Cut the file off at `size`, or extend it by a hole. */
  truncate(size: number): void;
  /** Have what was written reach the disk. */
  sync(): void;
  /** It is closed even if this throws. */
  close(): void;

  /**
   * Have the system copy a range of another file, of which both have a
   * `descriptor`.
   *
   * @throws {BlockError} ENOTSUP, EINVAL … if it cannot, or if the other file
   * ends too early.
   */
  copyFrom?(
    offset: number,
    source: HostFile,
    sourceOffset: number,
    length: number,
  ): void;
  /** Give a range's space back; it then reads as zeroes. */
  punchHole?(offset: number, length: number): void;
  /** Make a range read as zeroes, and keep its space. */
  zeroRange?(offset: number, length: number): void;
  /** Reserve space, extending the file; what has data keeps it. */
  allocate?(offset: number, length: number): void;
  /** The first data at or after `offset`, or `undefined` if none follows. */
  seekData?(offset: number): number | undefined;
  /** The first hole at or after `offset`, which must lie within the file. */
  seekHole?(offset: number): number;
}

/** A write that another thread is making. */
export interface PendingWrite {
  /** Whether it has come to an end. */
  readonly isDone: boolean;
  /** Wait for the end. */
  wait(): void;
  /**
   * Wait for the end, and learn of the outcome.
   *
   * @throws {BlockError} if not all could be written, each time it is asked.
   */
  finish(): void;
}

/** The error for a number that the C library left in `errno`. */
export function errnoError(errno: number): BlockError {
  return new BlockError(codeOfErrno(errno));
}

/** The error for what one of Deno's file functions threw. */
export function denoError(error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  if (error instanceof Deno.errors.NotCapable) return asBlockError(error);
  const { code, message } = error as { code?: string; message?: string };
  const errno = Number(/\(os error (\d+)\)/.exec(message ?? "")?.[1]);
  const known = isErrorCode(code) ? code : codeOfErrno(errno);
  return new BlockError(known, undefined, {
    cause: error,
  });
}
