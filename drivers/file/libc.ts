/**
 * The C library of Linux, as far as files need it. Its functions answer here
 * what the kernel does: a result, or the number of an error, negated.
 *
 * @module
 */
import { BlockError } from "../../core/errors.ts";
import { libraryPlaces } from "../../core/runtime.ts";
import { denoError, errnoError } from "./host.ts";

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
  aio_write: { parameters: ["buffer"], result: "i32" },
  aio_error: { parameters: ["buffer"], result: "i32" },
  aio_return: { parameters: ["buffer"], result: "i32" },
  aio_suspend: { parameters: ["buffer", "i32", "pointer"], result: "i32" },
} as const satisfies Deno.ForeignLibraryInterface;

type Functions = Deno.DynamicLibrary<typeof SYMBOLS>["symbols"];

/** Its functions. */
export type Libc = {
  readonly [name in keyof Functions]: (
    ...parameters: Parameters<Functions[name]>
  ) => number;
};

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

let loaded: Libc | null | undefined;
let helpers: Deno.DynamicLibrary<typeof HELPERS>["symbols"];
let errnoPlace: Deno.PointerValue;
const errno = new Int32Array(1);
const errnoBytes = new Uint8Array(errno.buffer);

/** Linux's number for a call that a signal interrupted. */
export const EINTR = 4;
const EIO = 5;
const ENOSYS = 38;

/** The C library, or `null` where it is not there or not permitted. */
export function libc(): Libc | null {
  if (loaded !== undefined) return loaded;
  loaded = null;
  for (const path of libraryPlaces("libc.so.6")) {
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

/** Whether it is there and permitted. */
export function isLibcAvailable(): boolean {
  return libc() !== null;
}

/** Where bytes lie, which stay there as long as they are referred to. */
export function addressOf(bytes: Uint8Array): bigint {
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
  const library = {} as { -readonly [name in keyof Libc]: Libc[name] };
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
  return library;
}

// deno-lint-ignore no-explicit-any -- their types are those of `SYMBOLS`
type AnyFunction = (...parameters: any[]) => any;

function bind(path: string, name: keyof typeof SYMBOLS): AnyFunction {
  let call: AnyFunction;
  try {
    call = Deno.dlopen(path, { [name]: SYMBOLS[name] }).symbols[name];
  } catch (error) {
    // The permission may have been taken back.
    if (error instanceof Deno.errors.NotCapable) throw denoError(error);
    return () => -ENOSYS;
  }
  // It answers an error's number by itself.
  return name === "aio_error" ? call : answering(call);
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
  return uninterrupted(() => library.open(name, flags | O_CLOEXEC, 0));
}

/**
 * Write all of `part` at `offset`.
 *
 * @throws {BlockError} as the system does; part of it may be written then.
 */
export function writeAll(
  library: Libc,
  descriptor: number,
  offset: number,
  part: Uint8Array,
): void {
  const { length } = part;
  for (let done = 0; done < length;) {
    const count = library.pwrite(
      descriptor,
      // Views of shared memory work as well, whatever the type says.
      (done === 0 ? part : part.subarray(done)) as Uint8Array<ArrayBuffer>,
      BigInt(length - done),
      BigInt(offset + done),
    );
    if (count < 0) throwUnlessInterrupted(count);
    else if (count === 0) throw new BlockError("ENOSPC");
    else done += count;
  }
}
