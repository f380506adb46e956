/**
 * Files through the C library of Linux: positional and vectored requests,
 * holes, hole punching, and `fdatasync`.
 *
 * @module
 */
import { type IoVector, sliceVector, vectorLength } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import type { HostFile } from "../../core/platform/files.ts";
import {
  EINTR,
  errnoError,
  openDescriptor,
  throwUnlessInterrupted,
  uninterrupted,
} from "../../core/platform/system_calls.ts";
import type { Libc } from "../../core/platform/libc.ts";
import { localFiles, platform } from "../../core/platform/mod.ts";

const O_RDONLY = 0;
const O_RDWR = 0o2;
const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const FALLOC_KEEP_SIZE = 0x01;
const FALLOC_PUNCH_HOLE = 0x02;
const FALLOC_ZERO_RANGE = 0x10;
const [EIO, ENXIO, EBADF] = [5, 6, 9];
const [EFBIG, ENOSPC, EDQUOT] = [27, 28, 122];

/** Errors that do not depend on the method tried. */
const FAILURES = new Set([EIO, EBADF, EFBIG, ENOSPC, EDQUOT]);

/** Bytes copied by one call, so that others can run in between. */
const MAX_COPY = 16 * 1024 * 1024;

/** Most parts of one vectored call. */
const IOV_MAX = 1024;

/** The `struct iovec` array of the current call; calls never overlap. */
const iovecs = new BigUint64Array(2 * IOV_MAX);
const iovecBytes = new Uint8Array(iovecs.buffer);

/**
 * Open an existing file.
 *
 * @throws {BlockError} as the system does, and EACCES if the runtime's
 * permissions, which libc bypasses, do not cover the path.
 */
export function openLibcFile(path: string, readOnly: boolean): LibcFile {
  const library = platform().libc();
  if (!library) {
    throw new BlockError(
      "ENOTSUP",
      `The C library is not available: ${localFiles().whyNoLibc}`,
    );
  }
  return new LibcFile(library, openLibcDescriptor(library, path, readOnly));
}

/** As {@linkcode openLibcFile}, with further flags; returns the descriptor. */
export function openLibcDescriptor(
  library: Libc,
  path: string,
  readOnly: boolean,
  flags = 0,
): number {
  // Opening applies the runtime's rules for all files, special ones included,
  // which a query of the path does not.
  localFiles().open(path, !readOnly).close();
  return openDescriptor(library, path, flags | (readOnly ? O_RDONLY : O_RDWR));
}

/** An open file, used through its descriptor. */
export class LibcFile implements HostFile {
  readonly #libc: Libc;
  readonly descriptor: number;

  constructor(library: Libc, descriptor: number) {
    this.#libc = library;
    this.descriptor = descriptor;
  }

  preadv(offset: number, iov: IoVector): void {
    if (iov.length === 1) return this.#pread(offset, iov[0]);
    this.#vectored("preadv", offset, iov);
  }

  pwritev(offset: number, iov: IoVector): void {
    if (iov.length === 1) return this.#pwrite(offset, iov[0]);
    this.#vectored("pwritev", offset, iov);
  }

  #pread(offset: number, part: Uint8Array): void {
    const { length } = part;
    for (let done = 0; done < length;) {
      const count = this.#libc.pread(
        this.descriptor,
        done === 0 ? part : part.subarray(done),
        BigInt(length - done),
        BigInt(offset + done),
      );
      if (count < 0) throwUnlessInterrupted(count);
      else if (count === 0) {
        part.fill(0, done);
        return;
      } else done += count;
    }
  }

  #pwrite(offset: number, part: Uint8Array): void {
    const { length } = part;
    for (let done = 0; done < length;) {
      const count = this.#libc.pwrite(
        this.descriptor,
        done === 0 ? part : part.subarray(done),
        BigInt(length - done),
        BigInt(offset + done),
      );
      if (count < 0) throwUnlessInterrupted(count);
      else if (count === 0) throw new BlockError("ENOSPC");
      else done += count;
    }
  }

  async syncLater(): Promise<void> {
    if (await this.#libc.fdatasyncLater(this.descriptor) >= 0) return;
    // The system reports each error only once, so this must fail even if the
    // next sync succeeds.
    this.sync();
    throw new BlockError("EIO");
  }

  preadvLater(offset: number, iov: IoVector): Promise<void> {
    return this.#later("preadLater", offset, iov);
  }

  pwritevLater(offset: number, iov: IoVector): Promise<void> {
    return iov.length > 1 && iov.length <= IOV_MAX
      ? this.#pwritevLater(offset, iov)
      : this.#later("pwriteLater", offset, iov);
  }

  /** One call for all parts; whatever it leaves undone is done here. */
  async #pwritevLater(offset: number, iov: IoVector): Promise<void> {
    const iovecs = new BigUint64Array(2 * iov.length);
    for (const [i, part] of iov.entries()) {
      iovecs[2 * i] = this.#libc.addressOf(part);
      iovecs[2 * i + 1] = BigInt(part.length);
    }
    const count = await this.#libc.pwritevLater(
      this.descriptor,
      new Uint8Array(iovecs.buffer),
      iov.length,
      BigInt(offset),
    );
    const done = Math.max(0, count);
    const length = vectorLength(iov);
    if (done < length) {
      this.pwritev(offset + done, sliceVector(iov, done, length - done));
    }
  }

  /**
   * Make a request in another thread; whatever that leaves undone is done here,
   * which gives the reason.
   */
  async #later(
    call: "preadLater" | "pwriteLater",
    offset: number,
    iov: IoVector,
  ): Promise<void> {
    const { length } = iov;
    const starts = new Array<number>(length);
    const counts = new Array<Promise<number>>(length);
    for (let i = 0; i < length; i++) {
      const part = iov[i];
      starts[i] = offset;
      counts[i] = this.#libc[call](
        this.descriptor,
        part,
        BigInt(part.length),
        BigInt(offset),
      );
      offset += part.length;
    }
    let failure: unknown;
    for (let i = 0; i < length; i++) {
      const done = Math.max(0, await counts[i]);
      if (done === iov[i].length) continue;
      try {
        const rest = iov[i].subarray(done);
        if (call === "preadLater") this.#pread(starts[i] + done, rest);
        else this.#pwrite(starts[i] + done, rest);
      } catch (error) {
        failure ??= error;
      }
    }
    if (failure) throw failure;
  }

  /**
   * One call per group of parts; whatever it leaves undone is done part by
   * part.
   */
  #vectored(call: "preadv" | "pwritev", offset: number, iov: IoVector): void {
    for (let first = 0; first < iov.length; first += IOV_MAX) {
      const end = Math.min(iov.length, first + IOV_MAX);
      let filled = 0;
      for (let i = first; i < end; i++) {
        const part = iov[i];
        if (part.length === 0) continue;
        iovecs[filled++] = this.#libc.addressOf(part);
        iovecs[filled++] = BigInt(part.length);
      }
      let count = 0;
      if (filled > 0) {
        count = this.#libc[call](
          this.descriptor,
          iovecBytes,
          filled / 2,
          BigInt(offset),
        );
        if (count < 0) {
          throwUnlessInterrupted(count);
          count = 0;
        }
      }
      for (let i = first; i < end; i++) {
        const part = iov[i];
        if (count < part.length) {
          const rest = count === 0 ? part : part.subarray(count);
          if (call === "preadv") this.#pread(offset + count, rest);
          else this.#pwrite(offset + count, rest);
        }
        count = Math.max(0, count - part.length);
        offset += part.length;
      }
    }
  }

  copyFrom(
    offset: number,
    source: HostFile,
    sourceOffset: number,
    length: number,
  ): void {
    if (source.descriptor === undefined) throw new BlockError("ENOTSUP");
    const [from, to] = [new BigInt64Array(1), new BigInt64Array(1)];
    for (let done = 0; done < length;) {
      from[0] = BigInt(sourceOffset + done);
      to[0] = BigInt(offset + done);
      const count = this.#libc.copy_file_range(
        source.descriptor,
        new Uint8Array(from.buffer),
        this.descriptor,
        new Uint8Array(to.buffer),
        BigInt(Math.min(length - done, MAX_COPY)),
        0,
      );
      if (count < 0) throwUnlessInterrupted(count);
      // The source ends here; a read would return zeroes.
      else if (count === 0) throw new BlockError("ENOTSUP");
      else done += count;
    }
  }

  size(): number {
    return uninterrupted(() => this.#seek(0, SEEK_END));
  }

  truncate(size: number): void {
    uninterrupted(() => this.#libc.ftruncate(this.descriptor, BigInt(size)));
  }

  sync(): void {
    uninterrupted(() => this.#libc.fdatasync(this.descriptor));
  }

  punchHole(offset: number, length: number): void {
    this.#fallocate(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length);
  }

  zeroRange(offset: number, length: number): void {
    this.#fallocate(FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, offset, length);
  }

  allocate(offset: number, length: number): void {
    this.#fallocate(0, offset, length);
  }

  #fallocate(mode: number, offset: number, length: number): void {
    const [from, bytes] = [BigInt(offset), BigInt(length)];
    for (;;) {
      const result = this.#libc.fallocate(this.descriptor, mode, from, bytes);
      if (result >= 0) return;
      if (result === -EINTR) continue;
      // File systems need not support this, and they differ in their errors if
      // they do not.
      const cause = errnoError(-result);
      throw FAILURES.has(-result)
        ? cause
        : new BlockError("ENOTSUP", undefined, { cause });
    }
  }

  seekData(offset: number): number | undefined {
    // Only an error number says that no data follows, and a wrong one would
    // lose that data. So require it twice, and confirm it with `isInHole`.
    for (let attempt = 1;; attempt++) {
      const found = this.#seek(offset, SEEK_DATA);
      if (found >= 0) return found;
      const isAgain = this.#seek(offset, SEEK_DATA) === found;
      if (isAgain && found === -ENXIO && this.#isInHole(offset)) {
        return undefined;
      }
      if (isAgain || attempt === 3) throw errnoError(-found);
    }
  }

  /** Whether `offset` is in a hole or past the end of the file. */
  #isInHole(offset: number): boolean {
    const hole = this.#seek(offset, SEEK_HOLE);
    return hole === offset || hole === -ENXIO;
  }

  seekHole(offset: number): number {
    return uninterrupted(() => this.#seek(offset, SEEK_HOLE));
  }

  #seek(offset: number, whence: number): number {
    return this.#libc.lseek(this.descriptor, BigInt(offset), whence);
  }

  close(): void {
    // Do not repeat this after a signal: the descriptor is closed and may
    // belong to another file. Some file systems report only now that there was
    // no space.
    const result = this.#libc.close(this.descriptor);
    if (result < 0) throwUnlessInterrupted(result);
  }
}
