/**
 * The locks by which programs that use one image keep off each other: QEMU's.
 *
 * Each kind of access has two bytes, far apart. Who needs it holds a shared
 * lock on the first, who does not share it with others holds one on the second;
 * both then look whether anybody holds the other. The locks belong to the open
 * file, so two in one process do not mix, and end with it.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { ACCESS_NAMES, ALL_ACCESS } from "../../core/permissions.ts";
import type { Permissions } from "../../core/traits.ts";
import { errnoError } from "../../core/platform/files.ts";
import type { Libc } from "../../core/platform/libc.ts";
import { localFiles, platform } from "../../core/platform/mod.ts";
import { openDescriptor } from "./libc_file.ts";

/** Where the bytes are of what is needed, one a kind of access. */
const NEEDED = 100;
/** Where those are of what is not shared. */
const UNSHARED = 200;
/** From the first of all of these bytes past the last. */
const LENGTH = UNSHARED + 4 - NEEDED;

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

const EINTR = 4;
const EINVAL = 22;
const ENOLCK = 37;
const ENOSYS = 38;
const ENOTSUP = 95;

/** What a file system without locks answers, or a kernel without these. */
const WITHOUT_LOCKS = new Set([EINVAL, ENOLCK, ENOSYS, ENOTSUP]);

/** The `struct flock` of the current call; there is only ever one. */
const flock = new DataView(new ArrayBuffer(32));
const flockBytes = new Uint8Array(flock.buffer);

/** Whether to lock: `auto` goes on without where it is impossible. */
export type Locking = "auto" | "on" | "off";

/** What a lock must know of its file. */
export interface LockedFile {
  readonly filename: string;
  /** Its descriptor; without one, the lock opens the file itself. */
  readonly descriptor?: number;
  readonly locking: Locking;
  /** Learns, at most once, why a file cannot be locked. */
  unlocked(why: string): void;
}

/** The locks on one open file. */
export class FileLock {
  #file: LockedFile;
  readonly #load: () => Libc | null;
  /** `null` if it cannot be locked. */
  #locker: Locker | null | undefined;
  #needed = 0;
  #unshared = 0;

  /** A file that is not locked yet; `load` has the library when it is needed. */
  constructor(
    file: LockedFile,
    load: () => Libc | null = () => platform().libc(),
  ) {
    this.#file = file;
    this.#load = load;
  }

  /**
   * Hold the locks for what is claimed of the file now, and no others.
   *
   * @returns whether any were added.
   * @throws {BlockError} EAGAIN if those of others stand in the way. What was
   * held before is then held still.
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
      this.#giveUp(error);
      return false;
    }
    this.#needed |= needs;
    this.#unshared |= unshared;
    this.#loosen(needs, unshared);
    return true;
  }

  /** Let go of locks for what is not claimed any more. */
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
   * Go on with another descriptor of the same file; at no time is anything not
   * locked that was. What others hold was looked at when the locks were taken:
   * to look once more would find our own.
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

  /** The file system has no locks, as some network file systems have not. */
  #giveUp({ byte, reason }: Impossible): void {
    if (this.#file.locking === "on") {
      throw failedToLock(byte, reason);
    }
    this.close();
    this.#locker = null;
    this.#file.unlocked(reason.message);
  }

  /**
   * Let go of everything. That the file is closed is not enough: a process that
   * another thread is just starting has all of our files until it is itself.
   */
  close(): void {
    if (this.#needed | this.#unshared) this.#locker?.unlock(NEEDED, LENGTH);
    this.#locker?.close();
  }
}

function failedToLock(byte: number, { code, message }: BlockError): BlockError {
  return new BlockError(code, `Failed to lock byte ${byte}: ${message}`);
}

/** The system does not lock a byte, though nobody else has done so. */
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
   * Lock a byte, in company.
   *
   * @throws {Impossible} if files like this one cannot be locked at all.
   * @throws {BlockError} for any other reason.
   */
  lock(byte: number): void {
    const result = this.#call(F_OFD_SETLK, F_RDLCK, byte);
    if (result === 0) return;
    const error = errnoError(-result);
    if (error.code === "EAGAIN" || error.code === "EACCES") {
      throw new BlockError(error.code, `Failed to lock byte ${byte}`);
    }
    // To go on without locks, an error's number is not enough: where there are
    // locks, they can be asked for. That must fail as well, and for a reason
    // that says that there are none.
    const asked = this.#call(F_OFD_GETLK, F_WRLCK, byte);
    if (asked < 0 && WITHOUT_LOCKS.has(-asked) && WITHOUT_LOCKS.has(-result)) {
      throw new Impossible(byte, error);
    }
    throw failedToLock(byte, error);
  }

  /** Unlock bytes; whether they were locked does not matter. */
  unlock(byte: number, length = 1): void {
    this.#call(F_OFD_SETLK, F_UNLCK, byte, length);
  }

  /**
   * Whether others have locked a byte.
   *
   * @throws {BlockError} if that cannot be told.
   */
  isLocked(byte: number): boolean {
    const result = this.#call(F_OFD_GETLK, F_WRLCK, byte);
    if (result < 0) throw failedToLock(byte, errnoError(-result));
    return flock.getInt16(0, true) !== F_UNLCK;
  }

  /** Answers 0, or the number of an error, negated. */
  #call(command: number, type: number, byte: number, length = 1): number {
    flock.setInt16(0, type, true);
    flock.setInt16(2, 0, true); // SEEK_SET
    flock.setBigInt64(8, BigInt(byte), true);
    flock.setBigInt64(16, BigInt(length), true);
    flock.setInt32(24, 0, true); // Locks of open files have no process.
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

/** Which bit it is, from 0. */
function indexOf(bit: number): number {
  return 31 - Math.clz32(bit);
}
