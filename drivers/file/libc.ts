/**
 * Files by way of the C library of Linux: positional and vectored requests,
 * holes, punching, and syncing of data alone.
 *
 * @module
 */
import type { IoVector } from "../../core/bytes.ts";
import { BlockError } from "../../core/errors.ts";
import { denoError, errnoError, type HostFile } from "./host.ts";

/** Where distributions keep it; `--allow-ffi=PATH` needs an absolute path. */
const PLACES = {
  x86_64: ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6"],
  aarch64: ["/lib/aarch64-linux-gnu/libc.so.6", "/lib64/libc.so.6"],
};

/**
 * `ssize_t` results are declared `i32`: the kernel moves less than 2^31 bytes
 * at once, and a 64-bit result would cost a bigint a request.
 */
const SYMBOLS = {
  open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
  pread: { parameters: ["i32", "buffer", "usize", "i64"], result: "i32" },
  pwrite: { parameters: ["i32", "buffer", "usize", "i64"], result: "i32" },
  preadv: { parameters: ["i32", "buffer", "i32", "i64"], result: "i32" },
  pwritev: { parameters: ["i32", "buffer", "i32", "i64"], result: "i32" },
  lseek: { parameters: ["i32", "i64", "i32"], result: "i64" },
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  fdatasync: { parameters: ["i32"], result: "i32" },
  fallocate: { parameters: ["i32", "i32", "i64", "i64"], result: "i32" },
  __errno_location: { parameters: [], result: "pointer" },
} as const;

type Libc = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

const O_RDWR = 0o2;
const O_CLOEXEC = 0o2000000;
const SEEK_END = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const FALLOC_KEEP_SIZE = 0x01;
const FALLOC_PUNCH_HOLE = 0x02;
const FALLOC_ZERO_RANGE = 0x10;
const EINTR = 4;
const ENXIO = 6;

/** Most parts that one vectored call takes. */
const IOV_MAX = 1024;

/** The `struct iovec` array of the current call; there is only ever one. */
const iovecs = new BigUint64Array(2 * IOV_MAX);
const iovecBytes = new Uint8Array(iovecs.buffer);

let loaded: Libc | null | undefined;
let errnoView: Deno.UnsafePointerView;

/** The C library, or `null` where it is not there or not permitted. */
function libc(): Libc | null {
  if (loaded !== undefined) return loaded;
  loaded = null;
  if (Deno.build.os !== "linux") return loaded;
  for (const path of PLACES[Deno.build.arch]) {
    if (Deno.permissions.querySync({ name: "ffi", path }).state !== "granted") {
      continue;
    }
    try {
      loaded = Deno.dlopen(path, SYMBOLS).symbols;
      errnoView = new Deno.UnsafePointerView(loaded.__errno_location()!);
      return loaded;
    } catch {
      // Another place, or no such library: there is the other way to do I/O.
    }
  }
  return loaded;
}

/** Whether files can be opened this way. */
export function isLibcAvailable(): boolean {
  return libc() !== null;
}

/**
 * Open an existing file.
 *
 * @throws {BlockError} as the system does, and EACCES where Deno's own
 * permissions, which libc knows nothing of, do not cover the path.
 */
export function openLibcFile(path: string, readOnly: boolean): HostFile {
  const library = libc();
  if (!library) {
    throw new BlockError(
      "ENOTSUP",
      "The C library is not available: 'io=libc' needs Linux and --allow-ffi",
    );
  }
  requirePermissions(path, readOnly);
  const name = new TextEncoder().encode(path + "\0");
  if (name.indexOf(0) !== name.length - 1) throw new BlockError("ENOENT");
  const flags = (readOnly ? 0 : O_RDWR) | O_CLOEXEC;
  for (;;) {
    const fd = library.open(name, flags, 0);
    if (fd >= 0) return new LibcFile(library, fd);
    throwUnlessInterrupted();
  }
}

/**
 * Have Deno open the file as well: that checks its permissions as they are
 * applied to files, special ones included, which a query of the path does not.
 */
function requirePermissions(path: string, readOnly: boolean): void {
  try {
    Deno.openSync(path, { read: true, write: !readOnly }).close();
  } catch (error) {
    throw denoError(error);
  }
}

function throwUnlessInterrupted(): void {
  const errno = errnoView.getInt32();
  if (errno !== EINTR) throw errnoError(errno);
}

class LibcFile implements HostFile {
  readonly #libc: Libc;
  readonly #fd: number;

  constructor(library: Libc, fd: number) {
    this.#libc = library;
    this.#fd = fd;
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
        this.#fd,
        // Views of shared memory work as well, whatever the type says.
        (done === 0 ? part : part.subarray(done)) as Uint8Array<ArrayBuffer>,
        BigInt(length - done),
        BigInt(offset + done),
      );
      if (count < 0) throwUnlessInterrupted();
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
        this.#fd,
        (done === 0 ? part : part.subarray(done)) as Uint8Array<ArrayBuffer>,
        BigInt(length - done),
        BigInt(offset + done),
      );
      if (count < 0) throwUnlessInterrupted();
      else if (count === 0) throw new BlockError("ENOSPC");
      else done += count;
    }
  }

  /** One call a group of parts; what it leaves undone is done part by part. */
  #vectored(call: "preadv" | "pwritev", offset: number, iov: IoVector): void {
    for (let first = 0; first < iov.length; first += IOV_MAX) {
      const end = Math.min(iov.length, first + IOV_MAX);
      let filled = 0;
      for (let i = first; i < end; i++) {
        const part = iov[i] as Uint8Array<ArrayBuffer>;
        if (part.length === 0) continue;
        iovecs[filled++] = Deno.UnsafePointer.value(
          Deno.UnsafePointer.of(part),
        );
        iovecs[filled++] = BigInt(part.length);
      }
      let count = 0;
      if (filled > 0) {
        count = this.#libc[call](
          this.#fd,
          iovecBytes,
          filled / 2,
          BigInt(offset),
        );
        if (count < 0) {
          throwUnlessInterrupted();
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

  size(): number {
    const end = this.#libc.lseek(this.#fd, 0n, SEEK_END);
    if (end < 0n) throw errnoError(errnoView.getInt32());
    return Number(end);
  }

  truncate(size: number): void {
    this.#retry(() => this.#libc.ftruncate(this.#fd, BigInt(size)));
  }

  sync(): void {
    this.#retry(() => this.#libc.fdatasync(this.#fd));
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
    this.#retry(() => this.#libc.fallocate(this.#fd, mode, from, bytes));
  }

  #retry(call: () => number): void {
    while (call() < 0) throwUnlessInterrupted();
  }

  seekData(offset: number): number | undefined {
    // That no data follows is told by errno, which the runtime itself may
    // overwrite before we look (seen: ENOENT, once in many runs). Asking again
    // settles it.
    for (let attempt = 1;; attempt++) {
      const found = this.#libc.lseek(this.#fd, BigInt(offset), SEEK_DATA);
      if (found >= 0n) return Number(found);
      const errno = errnoView.getInt32();
      if (errno === ENXIO) return undefined;
      if (attempt === 3) throw errnoError(errno);
    }
  }

  seekHole(offset: number): number {
    const found = this.#libc.lseek(this.#fd, BigInt(offset), SEEK_HOLE);
    if (found < 0n) throw errnoError(errnoView.getInt32());
    return Number(found);
  }

  close(): void {
    this.#libc.close(this.#fd);
  }
}
