/**
 * The C library of Linux, as far as files need it. Its functions answer here
 * what the kernel does: a result, or the number of an error, negated.
 *
 * @module
 */
import { errnoError } from "./files.ts";

/** Its functions, on memory that others do not replace meanwhile. */
export interface Libc {
  /** The flag of `open` for that, which not all processors have alike. */
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
  getrlimit(resource: number, limits: Uint8Array): number;
  /** As `fdatasync`, in another thread; why it failed is not told, only -1. */
  fdatasyncLater(descriptor: number): Promise<number>;
  /** As `pread`, in another thread; why it failed is not told, only -1. */
  preadLater: LateTransfer;
  /** As `pwrite`, in another thread; why it failed is not told, only -1. */
  pwriteLater: LateTransfer;
  /** Where bytes lie, which stay there as long as they are referred to. */
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

/** Linux's number for a call that a signal interrupted. */
export const EINTR = 4;

/**
 * The error of a call that failed; nothing if a signal interrupted it, so that
 * it is to be made again.
 *
 * @throws {BlockError} for all other numbers.
 */
export function throwUnlessInterrupted(result: number): void {
  if (result !== -EINTR) throw errnoError(-result);
}

/**
 * Make a call until no signal interrupts it; answers its result.
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
