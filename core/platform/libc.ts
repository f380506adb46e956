/**
 * The C library of Linux, as far as files need it. Functions return what the
 * kernel does: a result, or a negated error number.
 *
 * @module
 */
import { BlockError } from "../errors.ts";
import { errnoError } from "./files.ts";

/** Its functions. Buffers must not be moved or freed during a call. */
export interface Libc {
  /** The `open` flag, whose value depends on the architecture. */
  readonly O_DIRECT: number;
  open(path: Uint8Array, flags: number, mode: number): number;
  close(descriptor: number): number;
  pread: Transfer;
  pwrite: Transfer;
  preadv: VectoredTransfer;
  pwritev: VectoredTransfer;
  copy_file_range(
    from: number,
    fromOffset: Uint8Array,
    to: number,
    toOffset: Uint8Array,
    length: bigint,
    flags: number,
  ): number;
  lseek(descriptor: number, offset: bigint, whence: number): number;
  ftruncate(descriptor: number, size: bigint): number;
  fdatasync(descriptor: number): number;
  fallocate(
    descriptor: number,
    mode: number,
    offset: bigint,
    length: bigint,
  ): number;
  fcntl(descriptor: number, command: number, argument: Uint8Array): number;
  ioctl(descriptor: number, request: number, argument: Uint8Array): number;
  getrlimit(resource: number, limits: Uint8Array): number;
  /**
   * As `fdatasync`, in another thread; a failure is just -1, without a reason.
   */
  fdatasyncLater(descriptor: number): Promise<number>;
  /** As `pread`, in another thread; a failure is just -1, without a reason. */
  preadLater: LateTransfer;
  /** As `pwrite`, in another thread; a failure is just -1, without a reason. */
  pwriteLater: LateTransfer;
  /** The address of a buffer, valid as long as the buffer is referenced. */
  addressOf(bytes: Uint8Array): bigint;
}

type Transfer = (
  descriptor: number,
  bytes: Uint8Array,
  length: bigint,
  offset: bigint,
) => number;

type LateTransfer = (
  ...parameters: Parameters<Transfer>
) => Promise<number>;

type VectoredTransfer = (
  descriptor: number,
  /** An array of `struct iovec`. */
  iov: Uint8Array,
  count: number,
  offset: bigint,
) => number;

const O_CLOEXEC = 0o2000000;

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
