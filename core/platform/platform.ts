/**
 * What the block layer asks of a runtime, beyond JavaScript itself and what
 * browsers have. Each runtime fulfils as much of it as it can; whoever asks has
 * a portable way to go on with for all that is `null` or absent.
 *
 * @module
 */
import type { Files } from "./files.ts";
import type { Libc } from "./libc.ts";
import type { Sockets } from "./sockets.ts";
import type { Tls } from "./tls.ts";

/** The gifts of one runtime. */
export interface Platform {
  /** Whether paths are those of Windows: drives, and `\` between folders. */
  readonly isWindows: boolean;
  /** Local files, used synchronously. */
  readonly files?: Files;
  /** Connections to other programs. */
  readonly sockets?: Sockets;
  /** Encryption of such connections, and of others. */
  readonly tls?: Tls;
  /** The system's C library, where it may be called. */
  libc(): Libc | null;
  /** Other libraries of the system, where they may be called. */
  readonly libraries?: Libraries;
  /**
   * Loading it may take 30 ms: ask when it is needed, not before. It refers to
   * nothing outside, so that the text of it works in other threads.
   */
  readonly zlib: () => Zlib | null;
  /** Loading it may take 30 ms, too. */
  crypto(): Crypto | null;
  /** The order of two buffers: 0 if they are equal. */
  readonly compare?: (a: Uint8Array, b: Uint8Array) => number;
  /**
   * Run a program in another thread. It refers to nothing outside, has the
   * globals of the runtime, and finds what is posted by its `onmessage`.
   *
   * @throws if there are no other threads.
   */
  startWorker(program: string): WorkerThread;
  /** Have a timer not keep the program running. */
  unrefTimer(timer: unknown): void;
  /**
   * Have a signal not end the program from now on; nothing happens where there
   * is no such signal.
   */
  surviveSignal(signal: string): void;
}

/** Libraries of the system. */
export interface Libraries {
  /** Where a library is that is there and permitted, or `null`. */
  find(file: string): string | null;
  /**
   * Bind functions of a library that was found. It refers to nothing outside,
   * so that the text of it works in other threads.
   */
  readonly open: LibraryOpener;
  /** Where a buffer lies, for libraries that keep that; it must be kept alive. */
  addressOf(bytes: Uint8Array): bigint;
}

/** Binds functions of a library. */
export type LibraryOpener = (
  path: string,
  functions: { readonly [name: string]: NativeFunction },
) => { symbols: unknown; close(): void };

/** A function of a library, in the terms of `Deno.dlopen`. */
export interface NativeFunction {
  readonly parameters: readonly string[];
  readonly result: string;
  /** What the library calls it, if not as we do. */
  readonly name?: string;
}

/** What is used of `node:zlib`. */
export interface Zlib {
  readonly constants: { readonly [name: string]: number };
  readonly inflateRawSync: ZlibFunction;
  readonly deflateRawSync: ZlibFunction;
  readonly zstdDecompressSync?: ZlibFunction;
  readonly zstdCompressSync?: ZlibFunction;
}

type ZlibFunction = (input: Uint8Array, options: object) => Uint8Array;

/** What is used of `node:crypto`. */
export interface Crypto {
  createCipheriv(name: string, key: Uint8Array, iv: null): Cipher;
  createDecipheriv(name: string, key: Uint8Array, iv: null): Cipher;
}

/** One direction of a cipher. */
export interface Cipher {
  setAutoPadding(on: boolean): unknown;
  update(input: Uint8Array): Uint8Array;
}

/** Another thread. */
export interface WorkerThread {
  /** Send it something, which it finds as the `data` of a message event. */
  post(message: unknown): void;
  /** Called when it cannot be started, or breaks off. */
  onFailure?: () => void;
}
