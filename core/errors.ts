/**
 * The one error type of the block layer.
 *
 * @module
 */

/** POSIX error names used as {@linkcode BlockError.code}. */
export type ErrorCode = keyof typeof STRERROR;

/** What the C library says for each code; QEMU's users know these texts. */
export const STRERROR = {
  EPERM: "Operation not permitted",
  ENOENT: "No such file or directory",
  EINTR: "Interrupted system call",
  EIO: "Input/output error",
  EBADF: "Bad file descriptor",
  EAGAIN: "Resource temporarily unavailable",
  ENOMEM: "Cannot allocate memory",
  EACCES: "Permission denied",
  EBUSY: "Device or resource busy",
  EEXIST: "File exists",
  ENOTDIR: "Not a directory",
  EISDIR: "Is a directory",
  EINVAL: "Invalid argument",
  EMFILE: "Too many open files",
  EFBIG: "File too large",
  ENOSPC: "No space left on device",
  EROFS: "Read-only file system",
  ERANGE: "Numerical result out of range",
  ENAMETOOLONG: "File name too long",
  ENOSYS: "Function not implemented",
  ENOTSUP: "Operation not supported",
  ENOMEDIUM: "No medium found",
  ELOOP: "Too many levels of symbolic links",
  ETIMEDOUT: "Connection timed out",
  ECANCELED: "Operation canceled",
} as const;

/**
 * The system's text for an error code.
 *
 * @example
 * ```ts
 * import { strerror } from "@bdrv/bdrv";
 * console.log(strerror("EIO")); // Input/output error
 * ```
 */
export function strerror(code: ErrorCode): string {
  return STRERROR[code];
}

/** Further facts about a {@linkcode BlockError}. */
export interface BlockErrorOptions extends ErrorOptions {
  /** A second line for a human reader: what to try next. */
  hint?: string;
}

/**
 * Everything that can go wrong with an image is reported as a `BlockError`.
 * `code` is stable; `message` is for people.
 *
 * @example
 * ```ts
 * import { BlockError, openImage } from "@bdrv/bdrv";
 * try {
 *   await openImage("no-such-file.qcow2");
 * } catch (error) {
 *   if (error instanceof BlockError) console.log(error.code); // ENOENT
 * }
 * ```
 */
export class BlockError extends Error {
  /** The class name, so that a printed error says what it is. */
  override name = "BlockError";
  /** A POSIX error name. */
  readonly code: ErrorCode;
  /** A second line for a human reader, if there is one. */
  readonly hint?: string;

  /** Make an error; without a message it has the system's text for `code`. */
  constructor(
    code: ErrorCode,
    message: string = STRERROR[code],
    options: BlockErrorOptions = {},
  ) {
    super(message, options);
    this.code = code;
    this.hint = options.hint;
  }

  /** The same error with `prefix` before its message. */
  prefixed(prefix: string): BlockError {
    return new BlockError(this.code, prefix + this.message, {
      cause: this,
      hint: this.hint,
    });
  }
}

/** Wrap whatever was thrown, keeping a {@linkcode BlockError} as it is. */
export function asBlockError(error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  return new BlockError("EIO", undefined, { cause: error });
}
