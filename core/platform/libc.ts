/**
 * The C library of Linux, as far as files need it. Functions return what the
 * kernel does: a result, or a negated error number.
 *
 * @module
 */
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
  /** As `pwritev`, in another thread; a failure is just -1, without a reason. */
  pwritevLater(
    ...parameters: Parameters<VectoredTransfer>
  ): Promise<number>;
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
