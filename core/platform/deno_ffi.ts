/**
 * Libraries of a Linux system through `Deno.dlopen`: the C library, which needs
 * permission for itself only (`--allow-ffi=/lib/x86_64-linux-gnu/libc.so.6`),
 * and others.
 *
 * @module
 */
import { hostError } from "./system_calls.ts";
import type { Libc } from "./libc.ts";
import type { Libraries, NativeCallback } from "./platform.ts";

/**
 * `ssize_t` results are declared `i32`: the kernel transfers less than 2^31
 * bytes at once, and a 64-bit result would cost a bigint per request.
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
  ioctl: { parameters: ["i32", "usize", "buffer"], result: "i32" },
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
  pwritevLater: {
    name: "pwritev",
    parameters: ["i32", "buffer", "i32", "i64"],
    result: "i32",
    nonblocking: true,
  },
} as const satisfies Deno.ForeignLibraryInterface;

/** Bound with the library: they must be ready when a call fails. */
const HELPERS = {
  __errno_location: { parameters: [], result: "pointer" },
  // Returns the target's address. Deno's own function for that is slower, and
  // needs permission for all libraries.
  memcpy: { parameters: ["buffer", "pointer", "usize"], result: "usize" },
} as const;

/**
 * The library's names with glibc and with musl, whose loader is the library
 * itself. Where there are both, Deno was linked with glibc.
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

/** The C library, or `null` where it is missing or not permitted. */
export function libc(): Libc | null {
  if (loaded !== undefined) return loaded;
  loaded = null;
  for (const name of namesOf(Deno.build.arch)) {
    for (const path of libraryPlaces(name)) {
      try {
        helpers = Deno.dlopen(path, HELPERS).symbols;
        errnoPlace = helpers.__errno_location();
        answer(-1); // V8 compiles it now, rather than after a call that fails.
        return loaded = bindLazily(path);
      } catch {
        // Try the next place; without it, I/O goes through the runtime.
      }
    }
  }
  return loaded;
}

function addressOf(bytes: Uint8Array): bigint {
  // V8 keeps small arrays on its heap until their `buffer` is accessed.
  void bytes.buffer;
  return helpers.memcpy(bytes as Uint8Array<ArrayBuffer>, errnoPlace, 0n);
}

/**
 * Bind each function when it is first called: binding is slow compared with a
 * small command, and most commands use a few.
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

/**
 * A function of the library. One that an old library lacks returns ENOSYS, as a
 * system call missing from the kernel does.
 */
function bind(path: string, name: keyof typeof SYMBOLS): AnyFunction {
  let symbols: { readonly [name: string]: AnyFunction };
  try {
    symbols = Deno.dlopen(path, { [name]: SYMBOLS[name] })
      .symbols as typeof symbols;
  } catch (error) {
    // The permission may have been revoked.
    if (error instanceof Deno.errors.NotCapable) throw hostError(error);
    return () => -ENOSYS;
  }
  // `errno` of what runs in another thread belongs to that thread.
  if ("nonblocking" in SYMBOLS[name]) return symbols[name];
  const { [name]: call } = symbols;
  // V8 optimizes all closures of one literal together, and calls a native
  // function fast only where it is the only one. So the frequent ones get
  // literals of their own.
  if (name === "pread") {
    return (fd, bytes, length, offset) =>
      answer(call(fd, bytes, length, offset));
  }
  if (name === "pwrite") {
    return (fd, bytes, length, offset) =>
      answer(call(fd, bytes, length, offset));
  }
  return (...parameters) => answer(call(...parameters));
}

/**
 * The result of a call just made, or the negated error number if it failed.
 *
 * `errno` may be overwritten by whatever runs next in this thread, including
 * the runtime when it compiles, binds or frees something. So it is copied right
 * after the call, by a function bound in advance. Where a wrong number could
 * lose data, it is not trusted alone ({@linkcode HostFile.seekData}, locks).
 */
function answer(result: number | bigint): number {
  if (result >= 0) return Number(result);
  helpers.memcpy(errnoBytes, errnoPlace, 4n);
  return isErrno(errno[0]) ? -errno[0] : -EIO;
}

/** The kernel's error numbers; 0 means no error. */
function isErrno(number: number): boolean {
  return number > 0 && number < 4096;
}

/**
 * Paths where distributions keep a library, as far as they may be opened.
 * Permissions are for absolute paths, and most systems have two; the loader,
 * given a name, finds libraries elsewhere as well.
 */
function* libraryPlaces(file: string): Generator<string> {
  if (Deno.build.os !== "linux") return;
  const triple = `${Deno.build.arch}-linux-gnu`;
  const folders = [`/lib/${triple}`, "/lib64", `/usr/lib/${triple}`]
    .concat("/usr/lib64", "/lib", "/usr/lib");
  for (const folder of folders) {
    const path = `${folder}/${file}`;
    if (isGranted({ name: "ffi", path })) yield path;
  }
  if (isGranted({ name: "ffi" })) yield file;
}

function isGranted(permission: Deno.PermissionDescriptor): boolean {
  return Deno.permissions.querySync(permission).state === "granted";
}

/** Binds functions; workers get this as text. */
const open: Libraries["open"] = (path, functions) =>
  Deno.dlopen(path, functions as Deno.ForeignLibraryInterface);

const found = new Map<string, string | null>();

export const libraries: Libraries = {
  open,
  isPermitted: (file) => libraryPlaces(file).next().done !== true,
  find(file) {
    let path = found.get(file);
    if (path === undefined) found.set(file, path = find(file));
    return path;
  },
  addressOf(bytes) {
    const pointer = Deno.UnsafePointer.of(bytes as Uint8Array<ArrayBuffer>);
    return Deno.UnsafePointer.value(pointer);
  },
  callback(parameters, call) {
    if (!isGranted({ name: "ffi" })) return null;
    return Deno.UnsafeCallback.threadSafe(
      { parameters: parameters as Deno.NativeType[], result: "i32" },
      call as (...values: unknown[]) => number,
    ) as NativeCallback;
  },
};

function find(file: string): string | null {
  for (const path of libraryPlaces(file)) {
    try {
      Deno.dlopen(path, {}).close();
      return path;
    } catch {
      // Try the next place.
    }
  }
  return null;
}
