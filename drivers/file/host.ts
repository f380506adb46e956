/**
 * What the file driver needs of the system: an open file, used synchronously
 * and by position. There are two: by way of libc, and `Deno.FsFile`.
 *
 * @module
 */
import type { IoVector } from "../../core/bytes.ts";
import { BlockError, type ErrorCode } from "../../core/errors.ts";

/**
 * An open file. Offsets and lengths are in bytes. Everything throws
 * {@linkcode BlockError}; what is absent cannot be done.
 */
export interface HostFile {
  /** Fill `iov` from `offset` on, with zeroes past the end of the file. */
  preadv(offset: number, iov: IoVector): void;
  /** Write all of `iov`. */
  pwritev(offset: number, iov: IoVector): void;
  /** Where the file or device ends now. */
  size(): number;
  /** Cut the file off at `size`, or extend it by a hole. */
  truncate(size: number): void;
  /** Have what was written reach the disk. */
  sync(): void;
  close(): void;

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

/** The errors that Linux numbers the same on x86-64 and ARM64. */
const ERRNO: { readonly [errno: number]: ErrorCode } = {
  1: "EPERM",
  2: "ENOENT",
  4: "EINTR",
  5: "EIO",
  9: "EBADF",
  11: "EAGAIN",
  12: "ENOMEM",
  13: "EACCES",
  16: "EBUSY",
  17: "EEXIST",
  20: "ENOTDIR",
  21: "EISDIR",
  22: "EINVAL",
  23: "EMFILE",
  24: "EMFILE",
  26: "EBUSY",
  27: "EFBIG",
  28: "ENOSPC",
  30: "EROFS",
  34: "ERANGE",
  36: "ENAMETOOLONG",
  38: "ENOTSUP",
  40: "ELOOP",
  75: "EFBIG",
  95: "ENOTSUP",
  110: "ETIMEDOUT",
  122: "ENOSPC",
  123: "ENOMEDIUM",
  125: "ECANCELED",
};

/** The error for a number that the C library left in `errno`. */
export function errnoError(errno: number): BlockError {
  return new BlockError(ERRNO[errno] ?? "EIO");
}

/** The error for what one of Deno's file functions threw. */
export function denoError(error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  if (error instanceof Deno.errors.NotCapable) {
    // Deno says which permission to grant.
    return new BlockError("EACCES", undefined, {
      cause: error,
      hint: error.message,
    });
  }
  const { code, message } = error as { code?: string; message?: string };
  const errno = Number(/\(os error (\d+)\)/.exec(message ?? "")?.[1]);
  const known = Object.values(ERRNO).find((name) => name === code);
  return new BlockError(known ?? ERRNO[errno] ?? "EIO", undefined, {
    cause: error,
  });
}
