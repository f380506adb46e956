/**
 * What the block layer needs of a runtime, beyond what browsers have. Each
 * runtime provides as much as it can; callers have a portable fallback for
 * everything that is `null` or absent.
 *
 * @module
 */
import type { Files } from "./files.ts";
import type { Libc } from "./libc.ts";
import type { Sockets } from "./sockets.ts";
import type { Tls } from "./tls.ts";

/** The services of a runtime. */
export interface Platform {
  /** Whether paths are Windows paths, with drives and `\` between folders. */
  readonly isWindows: boolean;
  /** Local files, used synchronously. */
  readonly files?: Files;
  /** Load the module for connections to other programs. */
  readonly sockets?: () => Promise<Sockets>;
  /** Load the module that encrypts connections. */
  readonly tls?: () => Promise<Tls>;
  /** Whether its TLS has keys shared in advance (PSK), not only certificates. */
  readonly hasSharedKeys?: boolean;
  /** The system's C library, where it may be called. */
  libc(): Libc | null;
  /** Other libraries of the system, where they may be called. */
  readonly libraries?: Libraries;
  /**
   * Load `node:zlib`, which is slow: call it only when needed. It refers to
   * nothing outside, so that its text works in other threads.
   */
  readonly zlib: () => Zlib | null;
  /** Load `node:crypto`, which is slow as well. */
  crypto(): Crypto | null;
  /** Compare two buffers; 0 if they are equal. */
  readonly compare?: (a: Uint8Array, b: Uint8Array) => number;
  /**
   * Run a program in another thread. It must refer to nothing outside; it has
   * the runtime's globals, and receives messages through `onmessage`.
   *
   * @throws if the runtime has no threads.
   */
  startWorker(program: string): WorkerThread;
  /**
   * An environment variable; `undefined` if it is not set, `null` if it may not
   * be read.
   */
  environment?(name: string): string | undefined | null;
  /** Let the program end while a timer is pending. */
  unrefTimer(timer: unknown): void;
  /** Keep a signal from ending the program, if there is such a signal. */
  surviveSignal(signal: string): void;
}

/** Libraries of the system. */
export interface Libraries {
  /** Whether a library may be called at all, wherever it is. */
  isPermitted(file: string): boolean;
  /** The path of a library, or `null` if it is missing or not permitted. */
  find(file: string): string | null;
  /**
   * Bind functions of a library that was found. It refers to nothing outside,
   * so that its text works in other threads.
   */
  readonly open: LibraryOpener;
  /**
   * The address of a buffer, for libraries that keep it; keep the buffer alive.
   */
  addressOf(bytes: Uint8Array): bigint;
  /**
   * A function that a library may call from any of its threads, which then
   * waits for the answer: so nothing may wait for that thread meanwhile. `null`
   * unless all libraries are permitted.
   */
  callback(
    parameters: readonly string[],
    call: (...values: (number | bigint)[]) => number,
  ): NativeCallback | null;
}

/** A function for a library. */
export interface NativeCallback {
  /** Pass this as a parameter of the type `function`. */
  readonly pointer: unknown;
  /** It is not called any more. Until then, the program does not end. */
  close(): void;
}

/** Binds functions of a library. */
export type LibraryOpener = (
  path: string,
  functions: { readonly [name: string]: NativeFunction },
) => { symbols: unknown; close(): void };

/** A function of a library, as `Deno.dlopen` describes it. */
export interface NativeFunction {
  readonly parameters: readonly string[];
  readonly result: string;
  /** The library's name for it, if different. */
  readonly name?: string;
  /** Whether it runs in another thread, and returns a promise. */
  readonly nonblocking?: boolean;
}

/** The functions used of `node:zlib`. */
export interface Zlib {
  readonly constants: { readonly [name: string]: number };
  readonly deflateSync: ZlibFunction;
  readonly inflateRawSync: ZlibFunction;
  readonly deflateRawSync: ZlibFunction;
  readonly zstdDecompressSync?: ZlibFunction;
  readonly zstdCompressSync?: ZlibFunction;
}

type ZlibFunction = (input: Uint8Array, options: object) => Uint8Array;

/** The functions used of `node:crypto`. */
export interface Crypto {
  createCipheriv(name: string, key: Uint8Array, iv: null): Cipher;
  createDecipheriv(name: string, key: Uint8Array, iv: null): Cipher;
  createHash(name: string): Hash;
  pbkdf2(
    password: Uint8Array,
    salt: Uint8Array,
    iterations: number,
    length: number,
    hash: string,
    done: (error: Error | null, key: Uint8Array) => void,
  ): void;
}

/** A digest that is being computed. */
export interface Hash {
  update(data: Uint8Array): Hash;
  digest(): Uint8Array;
}

/** One direction of a cipher. */
export interface Cipher {
  setAutoPadding(on: boolean): unknown;
  update(input: Uint8Array): Uint8Array;
}

/** Another thread. */
export interface WorkerThread {
  /** Send it a message, which arrives as the `data` of a message event. */
  post(message: unknown): void;
  /** Called if it cannot be started, or terminates with an error. */
  onFailure?: () => void;
}
