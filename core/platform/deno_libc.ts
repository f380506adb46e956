/**
 * The C library of Linux by `Deno.dlopen`, which takes the permission for that
 * library alone (`--allow-ffi=/lib/x86_64-linux-gnu/libc.so.6`).
 *
 * @module
 */
import { libraryPlaces } from "./deno_libraries.ts";
import { hostError } from "./files.ts";
import type { Libc } from "./libc.ts";

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
  getrlimit: { parameters: ["i32", "buffer"], result: "i32" },
  fdatasyncLater: {
    name: "fdatasync",
    parameters: ["i32"],
    result: "i32",
    nonblocking: true,
  },
  preadLater: {
    name: "pread",
    parameters: ["i32", "buffer", "usize", "i64"],
    result: "i32",
    nonblocking: true,
  },
  pwriteLater: {
    name: "pwrite",
    parameters: ["i32", "buffer", "usize", "i64"],
    result: "i32",
    nonblocking: true,
  },
} as const satisfies Deno.ForeignLibraryInterface;

/** Bound with the library: they have to be there when a call has failed. */
const HELPERS = {
  __errno_location: { parameters: [], result: "pointer" },
  copyNumber: {
    name: "memcpy",
    parameters: ["buffer", "pointer", "usize"],
    result: "void",
  },
  // Copies nothing, and answers where it would have gone. What Deno itself has
  // for that takes ten times as long, and the permission for all libraries.
  addressOf: {
    name: "memcpy",
    parameters: ["buffer", "buffer", "usize"],
    result: "usize",
  },
} as const;

/**
 * What the library is called with glibc, and with musl, whose loader is the
 * library itself. Where there are both, Deno is a program of glibc's.
 */
const namesOf = (arch: string): string[] => [
  "libc.so.6",
  `libc.musl-${arch}.so.1`,
  `ld-musl-${arch}.so.1`,
];

let loaded: Libc | null | undefined;
let helpers: Deno.DynamicLibrary<typeof HELPERS>["symbols"];
let errnoPlace: Deno.PointerValue;
const errno = new Int32Array(1);
const errnoBytes = new Uint8Array(errno.buffer);

const EIO = 5;
const ENOSYS = 38;

/** The C library, or `null` where it is not there or not permitted. */
export function libc(): Libc | null {
  if (loaded !== undefined) return loaded;
  loaded = null;
  for (const path of namesOf(Deno.build.arch).flatMap(libraryPlaces)) {
    try {
      helpers = Deno.dlopen(path, HELPERS).symbols;
      errnoPlace = helpers.__errno_location();
      return loaded = bindLazily(path);
    } catch {
      // Another place, or no such library: there is the other way to do I/O.
    }
  }
  return loaded;
}

function addressOf(bytes: Uint8Array): bigint {
  // The runtime may keep a small array elsewhere until it is asked for this.
  void bytes.buffer;
  const memory = bytes as Uint8Array<ArrayBuffer>;
  return helpers.addressOf(memory, memory, 0n);
}

/**
 * Binding a function takes up to 0.25 ms, in which a small command is half
 * done: each is bound when it is first called. One that an old library has not
 * answers as a system call does that the kernel has not.
 */
function bindLazily(path: string): Libc {
  const O_DIRECT = Deno.build.arch === "aarch64" ? 0o200000 : 0o40000;
  const library = { O_DIRECT, addressOf };
  for (const name of Object.keys(SYMBOLS) as (keyof typeof SYMBOLS)[]) {
    Object.defineProperty(library, name, {
      configurable: true,
      get() {
        const value = bind(path, name);
        Object.defineProperty(library, name, { value });
        return value;
      },
    });
  }
  return library as unknown as Libc;
}

// deno-lint-ignore no-explicit-any -- their types are those of `SYMBOLS`
type AnyFunction = (...parameters: any[]) => any;

function bind(path: string, name: keyof typeof SYMBOLS): AnyFunction {
  let call: AnyFunction;
  try {
    call = Deno.dlopen(path, { [name]: SYMBOLS[name] }).symbols[name];
  } catch (error) {
    // The permission may have been taken back.
    if (error instanceof Deno.errors.NotCapable) throw hostError(error);
    return () => -ENOSYS;
  }
  // The number of an error is the other thread's own.
  return "nonblocking" in SYMBOLS[name] ? call : answering(call);
}

/**
 * `call`, with the error's number, negated, for its result where it fails.
 *
 * The library keeps that number in `errno`, which whatever runs next in this
 * thread may overwrite, the runtime included, when it compiles, binds or frees
 * something. So nothing comes between: a function that is bound already copies
 * the number directly after. Where a wrong one would lose data, it is not
 * believed alone ({@linkcode HostFile.seekData}, locks).
 */
function answering(call: AnyFunction): AnyFunction {
  return (...parameters) => {
    const result = call(...parameters);
    if (result >= 0) return Number(result);
    helpers.copyNumber(errnoBytes, errnoPlace, 4n);
    return isErrno(errno[0]) ? -errno[0] : -EIO;
  };
}

/** The kernel has none above; 0 stands for no error. */
function isErrno(number: number): boolean {
  return number > 0 && number < 4096;
}
