/**
 * System calls: converting their errors, and repeating those that a signal
 * interrupted.
 *
 * @module
 */
import { roundDown } from "../bytes.ts";
import {
  asBlockError,
  BlockError,
  codeOfErrno,
  isErrorCode,
} from "../errors.ts";
import type { Libc } from "./libc.ts";

/** The error for a Linux `errno`. */
export function errnoError(errno: number): BlockError {
  return new BlockError(codeOfErrno(errno));
}

/** Codes of errors that runtimes identify only by name. */
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

/** The `BlockError` for an exception of a runtime's file function. */
export function hostError(error: unknown): BlockError {
  if (error instanceof BlockError) return error;
  const { code, name, message = "", errno } = error as {
    code?: string;
    name?: string;
    message?: string;
    errno?: number;
  };
  // The message names the missing permission.
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

/** As {@linkcode attempt}, for an asynchronous call. */
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

/** Make a call, turning its exceptions into `BlockError`s. */
export function attempt<T>(call: () => T): T {
  for (;;) {
    try {
      return call();
    } catch (error) {
      const known = hostError(error);
      // Interrupted by a signal before anything was done: try again.
      if (known.code !== "EINTR") throw known;
    }
  }
}

/**
 * The major and minor numbers of a device, which Linux packs into one number,
 * each in two parts.
 */
export function deviceNumbers(rdev: number): [major: number, minor: number] {
  const [high, low] = [Math.floor(rdev / 2 ** 32), rdev % 2 ** 32];
  const major = Math.floor(low / 2 ** 8) % 2 ** 12;
  const minor = low % 2 ** 8 + Math.floor(low / 2 ** 20) * 2 ** 8;
  return [major + roundDown(high, 2 ** 12), minor];
}

/** Whether a call does not throw. */
export function succeeds(call: () => unknown): boolean {
  try {
    call();
    return true;
  } catch {
    return false;
  }
}

/** Linux's error number for an interrupted call. */
export const EINTR = 4;

/**
 * Throw the error of a failed call, unless a signal interrupted it, so that it
 * should be repeated.
 *
 * @throws {BlockError} for all other numbers.
 */
export function throwUnlessInterrupted(result: number): void {
  if (result !== -EINTR) throw errnoError(-result);
}

/**
 * Repeat a call until no signal interrupts it; returns its result.
 *
 * @throws {BlockError} if it fails.
 */
export function uninterrupted(call: () => number): number {
  for (;;) {
    const result = call();
    if (result >= 0) return result;
    throwUnlessInterrupted(result);
  }
}

const O_CLOEXEC = 0o2000000;

/**
 * Open an existing file; returns its descriptor. The caller must check the
 * runtime's permissions, which libc bypasses.
 *
 * @throws {BlockError} as the system does.
 */
export function openDescriptor(
  library: Libc,
  path: string,
  flags: number,
): number {
  const name = new TextEncoder().encode(path + "\0");
  if (name.indexOf(0) !== name.length - 1) throw new BlockError("ENOENT");
  return uninterrupted(() => library.open(name, flags | O_CLOEXEC, 0));
}
