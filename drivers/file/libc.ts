/**
 * The C library of Linux, as far as files need it.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { libraryPlaces } from "../../core/runtime.ts";
import { errnoError } from "./host.ts";

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
  copy_file_range: {
    parameters: ["i32", "buffer", "i32", "buffer", "usize", "u32"],
    result: "i32",
  },
  lseek: { parameters: ["i32", "i64", "i32"], result: "i64" },
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  fdatasync: { parameters: ["i32"], result: "i32" },
  fallocate: { parameters: ["i32", "i32", "i64", "i64"], result: "i32" },
  fcntl: { parameters: ["i32", "i32", "buffer"], result: "i32" },
  aio_write: { parameters: ["buffer"], result: "i32" },
  aio_error: { parameters: ["buffer"], result: "i32" },
  aio_return: { parameters: ["buffer"], result: "i32" },
  aio_suspend: { parameters: ["buffer", "i32", "pointer"], result: "i32" },
  __errno_location: { parameters: [], result: "pointer" },
} as const;

/** Its functions. */
export type Libc = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

let loaded: Libc | null | undefined;
let errnoView: Deno.UnsafePointerView;

/** The C library, or `null` where it is not there or not permitted. */
export function libc(): Libc | null {
  if (loaded !== undefined) return loaded;
  loaded = null;
  for (const path of libraryPlaces("libc.so.6")) {
    try {
      const library = bindLazily(path);
      // Bound now: binding it after a call would overwrite what that left.
      errnoView = new Deno.UnsafePointerView(library.__errno_location()!);
      return loaded = library;
    } catch {
      // Another place, or no such library: there is the other way to do I/O.
    }
  }
  return loaded;
}

/** Whether it is there and permitted. */
export function isLibcAvailable(): boolean {
  return libc() !== null;
}

/**
 * Binding a function takes up to 0.25 ms, in which a small command is half
 * done: each is bound when it is first called.
 */
function bindLazily(path: string): Libc {
  const library = {} as Libc;
  for (const name of Object.keys(SYMBOLS) as (keyof typeof SYMBOLS)[]) {
    Object.defineProperty(library, name, {
      configurable: true,
      get() {
        const { symbols } = Deno.dlopen(path, { [name]: SYMBOLS[name] });
        Object.defineProperty(library, name, { value: symbols[name] });
        return symbols[name];
      },
    });
  }
  return library;
}

/** What the last call that failed left in `errno`. */
export function lastErrno(): number {
  return errnoView.getInt32();
}

const EINTR = 4;

/** Throw the error of a call that failed, unless a signal interrupted it. */
export function throwUnlessInterrupted(): void {
  const errno = lastErrno();
  if (errno !== EINTR) throw errnoError(errno);
}

const O_CLOEXEC = 0o2000000;

/**
 * Open an existing file; answers its descriptor. Deno's permissions, which
 * libc knows nothing of, are the caller's business.
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
  for (;;) {
    const fd = library.open(name, flags | O_CLOEXEC, 0);
    if (fd >= 0) return fd;
    throwUnlessInterrupted();
  }
}
