/**
 * What the file driver needs of a runtime: an open file, used by position, and
 * a few questions about paths. Everything throws {@linkcode BlockError}.
 *
 * @module
 */
import { type IoVector, roundDown } from "../bytes.ts";
import {
  asBlockError,
  BlockError,
  codeOfErrno,
  isErrorCode,
} from "../errors.ts";

/** What is at a path, links followed. */
export interface FileInfo {
  readonly isFile: boolean;
  readonly isDirectory: boolean;
  readonly isBlockDevice: boolean;
  readonly isCharDevice: boolean;
  readonly isSocket: boolean;
  /** The number of a device. */
  readonly rdev: number;
  /** Bytes that it takes up on the disk, where that is known. */
  readonly actualSize?: number;
}

/** Local files. */
export interface Files {
  /** What is at a path. */
  stat(path: string): FileInfo;
  /** Open an existing file to be read, and written to if `write` is set. */
  open(path: string, write: boolean): HostFile;
  /** Make an empty file, unless there is one, that can be opened to write. */
  create(path: string): void;
  /** The absolute path with all links followed; what it names must exist. */
  realPath(path: string): string;
  /** Where a symbolic link leads. */
  readLink(path: string): string;
  /** The text of a small file. */
  readText(path: string): string;
  /** The folder that relative paths begin in. */
  workingFolder(): string;
  /** Why there is no C library, at the end of a sentence. */
  readonly whyNoLibc: string;
}

/** An open file. Offsets and lengths are in bytes; what is absent cannot be done. */
export interface HostFile {
  /** The descriptor, if the C library opened it. */
  readonly descriptor?: number;
  /** Fill `iov` from `offset` on, with zeroes past the end of the file. */
  preadv(offset: number, iov: IoVector): void;
  /** Write all of `iov`. */
  pwritev(offset: number, iov: IoVector): void;
  /** As {@linkcode preadv}, by another thread. */
  preadvLater(offset: number, iov: IoVector): Promise<void>;
  /** As {@linkcode pwritev}, by another thread; `iov` is left alone until then. */
  pwritevLater(offset: number, iov: IoVector): Promise<void>;
  /** As {@linkcode sync}, by another thread. */
  syncLater(): Promise<void>;
  /** What offsets and lengths of reads and writes must be multiples of. */
  readonly alignment?: number;
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

/** The error for a number that the C library of Linux left in `errno`. */
export function errnoError(errno: number): BlockError {
  return new BlockError(codeOfErrno(errno));
}

/** What runtimes call errors for which they name no code. */
const CODE_OF_NAME: { readonly [name: string]: string } = {
  NotFound: "ENOENT",
  PermissionDenied: "EACCES",
  AlreadyExists: "EEXIST",
  IsADirectory: "EISDIR",
  NotADirectory: "ENOTDIR",
  Busy: "EBUSY",
  FilesystemLoop: "ELOOP",
  ConnectionRefused: "ECONNREFUSED",
  ConnectionReset: "ECONNRESET",
  AddrInUse: "EADDRINUSE",
  AddrNotAvailable: "EADDRNOTAVAIL",
};

/** The error for what one of a runtime's file functions threw. */
export function hostError(error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  const { code, name, message = "", errno } = error as {
    code?: string;
    name?: string;
    message?: string;
    errno?: number;
  };
  // A permission of Deno's is missing: the message says which.
  if (name === "NotCapable") return asBlockError(error);
  const said = /\(os error (\d+)\)/.exec(message)?.[1] ?? Math.abs(errno ?? 0);
  const named = CODE_OF_NAME[name ?? ""];
  const known = isErrorCode(code)
    ? code
    : isErrorCode(named)
    ? named
    : codeOfErrno(Number(said));
  return new BlockError(known, undefined, { cause: error });
}

/** As {@linkcode attempt}, for a call that another thread makes. */
export async function attemptLater<T>(call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      const known = hostError(error);
      if (known.code !== "EINTR") throw known;
    }
  }
}

/** Make a call whose errors become those of the block layer. */
export function attempt<T>(call: () => T): T {
  for (;;) {
    try {
      return call();
    } catch (error) {
      const known = hostError(error);
      // A signal came first: nothing has been done yet.
      if (known.code !== "EINTR") throw known;
    }
  }
}

/** The two numbers of a device, which Linux packs into one, each in two parts. */
export function deviceNumbers(rdev: number): [major: number, minor: number] {
  const [high, low] = [Math.floor(rdev / 2 ** 32), rdev % 2 ** 32];
  const major = Math.floor(low / 2 ** 8) % 2 ** 12;
  const minor = low % 2 ** 8 + Math.floor(low / 2 ** 20) * 2 ** 8;
  return [major + roundDown(high, 2 ** 12), minor];
}
