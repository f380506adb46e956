/**
 * QEMU's locks, by which programs that use the same image keep out of each
 * other's way.
 *
 * Each kind of access has two bytes, far apart. A program that needs it holds a
 * shared lock on the first; one that does not share it, on the second. Each
 * then checks whether anybody holds the other byte. The locks belong to the
 * open file, so two open files of one process are independent, and they end
 * with it.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { ACCESS_NAMES, ALL_ACCESS } from "../../core/permissions.ts";
import type { Permissions } from "../../core/traits.ts";
import {
  EINTR,
  errnoError,
  openDescriptor,
} from "../../core/platform/system_calls.ts";
import type { Libc } from "../../core/platform/libc.ts";
import { localFiles, platform } from "../../core/platform/mod.ts";

/** Offset of the bytes for needed access, one per kind. */
const NEEDED = 100;
/** Offset of the bytes for access that is not shared. */
const UNSHARED = 200;
/** Length of the range of all lock bytes. */
const LENGTH = UNSHARED + 4 - NEEDED;

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

const EINVAL = 22;
const ENOLCK = 37;
const ENOSYS = 38;
const ENOTSUP = 95;

/** Errors of file systems without locks, or kernels without these. */
const WITHOUT_LOCKS = new Set([EINVAL, ENOLCK, ENOSYS, ENOTSUP]);

/** The `struct flock` of the current call; calls never overlap. */
const flock = new DataView(new ArrayBuffer(32));
const flockBytes = new Uint8Array(flock.buffer);

/** Whether to lock; `auto` does without if it is impossible. */
export type Locking = "auto" | "on" | "off";

/** What a lock needs of its file. */
export interface LockedFile {
  readonly filename: string;
  /** The descriptor; without one, the lock opens the file itself. */
  readonly descriptor?: number;
  readonly locking: Locking;
  /** Called, at most once, if the file cannot be locked. */
  unlocked(why: string): void;
}

/** The locks on one open file. */
export class FileLock {
  #file: LockedFile;
  readonly #load: () => Libc | null;
  /** `null` if locking is impossible. */
  #locker: Locker | null | undefined;
  #needed = 0;
  #unshared = 0;

  /** Create an unlocked lock; `load` loads the library when it is needed. */
  constructor(
    file: LockedFile,
    load: () => Libc | null = () => platform().libc(),
  ) {
    this.#file = file;
    this.#load = load;
  }

  /**
   * Hold exactly the locks for these permissions.
   *
   * @returns whether any were added.
   * @throws {BlockError} EAGAIN if they conflict with others' locks. The
   * previous locks are then still held.
   */
  set({ needs, shares }: Permissions): boolean {
    const unshared = ALL_ACCESS & ~shares;
    const moreNeeded = needs & ~this.#needed;
    const moreUnshared = unshared & ~this.#unshared;
    if ((moreNeeded | moreUnshared) === 0) {
      this.#loosen(needs, unshared);
      return false;
    }
    if (this.#locker === undefined) this.#locker = this.#open();
    const locker = this.#locker;
    if (!locker) return false;
    try {
      for (const byte of bytesOf(NEEDED, moreNeeded)) locker.lock(byte);
      for (const byte of bytesOf(UNSHARED, moreUnshared)) locker.lock(byte);
      this.#checkOthers(locker, moreNeeded, moreUnshared);
    } catch (error) {
      for (const byte of bytesOf(NEEDED, moreNeeded)) locker.unlock(byte);
      for (const byte of bytesOf(UNSHARED, moreUnshared)) locker.unlock(byte);
      if (!(error instanceof Impossible)) throw error;
      this.#doWithout(error);
      return false;
    }
    this.#needed |= needs;
    this.#unshared |= unshared;
    this.#loosen(needs, unshared);
    return true;
  }

  /** Release locks that are no longer claimed. */
  #loosen(needed: number, unshared: number): void {
    const locker = this.#locker;
    if (!locker) return;
    for (const byte of bytesOf(NEEDED, this.#needed & ~needed)) {
      locker.unlock(byte);
    }
    for (const byte of bytesOf(UNSHARED, this.#unshared & ~unshared)) {
      locker.unlock(byte);
    }
    this.#needed = needed;
    this.#unshared = unshared;
  }

  /**
   * Move to another descriptor of the same file without ever releasing a lock.
   * Conflicts are not checked again: that would find our own locks.
   */
  moveTo(descriptor: number | undefined): void {
    const file = { ...this.#file, descriptor };
    const before = this.#locker;
    const isByNode = this.#file.descriptor !== undefined;
    if (before && isByNode) {
      const next = new Locker(this.#load()!, file);
      try {
        for (const byte of bytesOf(NEEDED, this.#needed)) next.lock(byte);
        for (const byte of bytesOf(UNSHARED, this.#unshared)) next.lock(byte);
      } catch (error) {
        next.close();
        throw error;
      }
      before.unlock(NEEDED, LENGTH);
      before.close();
      this.#locker = next;
    }
    this.#file = file;
  }

  #checkOthers(locker: Locker, needed: number, unshared: number): void {
    for (const bit of bitsOf(needed)) {
      if (locker.isLocked(UNSHARED + indexOf(bit))) {
        throw this.#refused(`Failed to get "${ACCESS_NAMES[bit]}" lock`);
      }
    }
    for (const bit of bitsOf(unshared)) {
      if (locker.isLocked(NEEDED + indexOf(bit))) {
        throw this.#refused(`Failed to get shared "${ACCESS_NAMES[bit]}" lock`);
      }
    }
  }

  #refused(message: string): BlockError {
    return new BlockError("EAGAIN", message, {
      hint: `Is another process using the image [${this.#file.filename}]?`,
    });
  }

  #open(): Locker | null {
    const library = this.#load();
    if (library) return new Locker(library, this.#file);
    this.#file.unlocked(localFiles().whyNoLibc);
    return null;
  }

  /**
   * Do without locks: the file system has none, as some network file systems.
   */
  #doWithout({ byte, reason }: Impossible): void {
    if (this.#file.locking === "on") {
      throw failedToLock(byte, reason);
    }
    this.close();
    this.#locker = null;
    this.#file.unlocked(reason.message);
  }

  /**
   * Release all locks. Closing the file is not enough: a process being started
   * by another thread shares all open files until its `exec`.
   */
  close(): void {
    if (this.#needed | this.#unshared) this.#locker?.unlock(NEEDED, LENGTH);
    this.#locker?.close();
  }
}

function failedToLock(byte: number, { code, message }: BlockError): BlockError {
  return new BlockError(code, `Failed to lock byte ${byte}: ${message}`);
}

/** The system cannot lock a byte, though nobody else has locked it. */
class Impossible extends Error {
  constructor(readonly byte: number, readonly reason: BlockError) {
    super();
  }
}

/** Locks single bytes of a file. */
class Locker {
  readonly #libc: Libc;
  readonly #descriptor: number;
  readonly #isOwn: boolean;

  constructor(library: Libc, { descriptor, filename }: LockedFile) {
    this.#libc = library;
    this.#isOwn = descriptor === undefined;
    this.#descriptor = descriptor ?? openDescriptor(library, filename, 0);
  }

  /**
   * Take a shared lock on a byte.
   *
   * @throws {Impossible} if this file cannot be locked at all.
   * @throws {BlockError} for any other reason.
   */
  lock(byte: number): void {
    const result = this.#call(F_OFD_SETLK, F_RDLCK, byte);
    if (result === 0) return;
    const error = errnoError(-result);
    if (error.code === "EAGAIN" || error.code === "EACCES") {
      throw new BlockError(error.code, `Failed to lock byte ${byte}`);
    }
    // An error number alone is not enough to do without locks: where there are
    // locks, they can be queried. Querying must fail too, with an error that
    // means that there are none.
    const asked = this.#call(F_OFD_GETLK, F_WRLCK, byte);
    if (asked < 0 && WITHOUT_LOCKS.has(-asked) && WITHOUT_LOCKS.has(-result)) {
      throw new Impossible(byte, error);
    }
    throw failedToLock(byte, error);
  }

  /** Unlock bytes, locked or not. */
  unlock(byte: number, length = 1): void {
    this.#call(F_OFD_SETLK, F_UNLCK, byte, length);
  }

  /**
   * Whether others have locked a byte.
   *
   * @throws {BlockError} if that cannot be found out.
   */
  isLocked(byte: number): boolean {
    const result = this.#call(F_OFD_GETLK, F_WRLCK, byte);
    if (result < 0) throw failedToLock(byte, errnoError(-result));
    return flock.getInt16(0, true) !== F_UNLCK;
  }

  /** Returns 0, or a negated error number. */
  #call(command: number, type: number, byte: number, length = 1): number {
    flock.setInt16(0, type, true);
    flock.setInt16(2, 0, true); // SEEK_SET
    flock.setBigInt64(8, BigInt(byte), true);
    flock.setBigInt64(16, BigInt(length), true);
    flock.setInt32(24, 0, true); // The pid is 0 for open file description locks.
    let result: number;
    do result = this.#libc.fcntl(this.#descriptor, command, flockBytes); while (
      result === -EINTR
    );
    return result;
  }

  close(): void {
    if (this.#isOwn) this.#libc.close(this.#descriptor);
  }
}

/** The single bits of a combination. */
function* bitsOf(combination: number): Generator<number> {
  for (let bit = 1; bit <= ALL_ACCESS; bit *= 2) {
    if (combination & bit) yield bit;
  }
}

function* bytesOf(base: number, combination: number): Generator<number> {
  for (const bit of bitsOf(combination)) yield base + indexOf(bit);
}

/** The index of a bit, from 0. */
function indexOf(bit: number): number {
  return 31 - Math.clz32(bit);
}
