/**
 * Comparison of bytes, and other services of the runtime. Native functions are
 * looked for when first needed; portable ones replace them where there are
 * none, as in a browser.
 *
 * @module
 */
import { type Platform, platform } from "./platform/mod.ts";
import type { NativeFunction } from "./platform/platform.ts";

const libraries = new Map<string, unknown>();

/**
 * Functions of a library of the system, or `null` if it is missing or not
 * permitted. Binding is slow: ask only for functions that will be used.
 *
 * @param file A name such as `libz.so.1`; always with the same functions.
 */
export function nativeLibrary<T extends object>(
  file: string,
  functions: { readonly [name in keyof T]: NativeFunction },
): T | null {
  const found = platform().libraries;
  const path = found?.find(file) ?? null;
  if (!found || path === null) return null;
  let library = libraries.get(file);
  if (library === undefined) {
    try {
      library = found.open(path, functions).symbols;
    } catch {
      library = null; // The library is too old.
    }
    libraries.set(file, library);
  }
  return library as T | null;
}

/** The functions used of the C library. */
interface MemoryFunctions {
  memcmp(a: Uint8Array, b: Uint8Array, length: bigint): number;
}

function memoryFunctions(): MemoryFunctions | null {
  return nativeLibrary<MemoryFunctions>("libc.so.6", {
    memcmp: { parameters: ["buffer", "buffer", "usize"], result: "i32" },
  });
}

/**
 * Bytes to compare before native code is loaded, which takes about as long as
 * comparing this many portably.
 */
const LIBRARY_PATIENCE = 2 * 1024 * 1024;
const BUFFER_PATIENCE = 64 * 1024 * 1024;

type Comparison = (a: Uint8Array, b: Uint8Array) => boolean;
let comparison: { by: Platform; isSame: Comparison } | undefined;

/** The native comparison, once `seen` bytes have made loading it worthwhile. */
function nativeComparison(seen: number): Comparison | undefined {
  if (seen < LIBRARY_PATIENCE) return undefined;
  const by = platform();
  if (comparison?.by === by) return comparison.isSame;
  const isSame = findComparison(by, seen);
  if (isSame) comparison = { by, isSame };
  return isSame;
}

function findComparison(by: Platform, seen: number): Comparison | undefined {
  const memory = memoryFunctions();
  if (memory) return (a, b) => memory.memcmp(a, b, BigInt(a.length)) === 0;
  const { compare } = by;
  if (!compare || seen < BUFFER_PATIENCE) return undefined;
  return (a, b) => compare(a, b) === 0;
}

let zeroBytesSeen = 0;

/** Whether all bytes are zero. */
export function isZero(bytes: Uint8Array): boolean {
  const { length } = bytes;
  if (length < 64) return isZeroSlowly(bytes, 0, length);
  // Most data is nonzero at its edges or in the middle.
  if (bytes[0] !== 0 || bytes[length >> 1] !== 0 || bytes[length - 1] !== 0) {
    return false;
  }
  const isSame = length < 1024 ? undefined : nativeComparison(zeroBytesSeen);
  if (isSame) {
    // All bytes equal the first eight if each equals the one eight further on.
    return isZeroSlowly(bytes, 0, 8) &&
      isSame(bytes.subarray(8), bytes.subarray(0, length - 8));
  }
  const zero = isZeroByWords(bytes);
  if (zero) zeroBytesSeen += length;
  return zero;
}

/** Eight words at a time, from the first aligned one on. */
function isZeroByWords(bytes: Uint8Array): boolean {
  const { length } = bytes;
  const start = (4 - (bytes.byteOffset & 3)) & 3;
  const count = (length - start) >> 2;
  const words = new Int32Array(
    bytes.buffer,
    bytes.byteOffset + start,
    count,
  );
  const blocks = count & ~7;
  for (let i = 0; i < blocks; i += 8) {
    const any = words[i] | words[i + 1] | words[i + 2] | words[i + 3] |
      words[i + 4] | words[i + 5] | words[i + 6] | words[i + 7];
    if (any !== 0) return false;
  }
  return isZeroSlowly(bytes, 0, start) &&
    isZeroSlowly(bytes, start + blocks * 4, length);
}

function isZeroSlowly(bytes: Uint8Array, from: number, to: number): boolean {
  for (let i = from; i < to; i++) if (bytes[i] !== 0) return false;
  return true;
}

let equalBytesSeen = 0;

/** Whether two buffers hold the same bytes. */
export function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  const { length } = a;
  if (b.length !== length) return false;
  const isSame = length < 64 ? undefined : nativeComparison(equalBytesSeen);
  if (isSame) return isSame(a, b);
  equalBytesSeen += length;
  const aligned = ((a.byteOffset | b.byteOffset) & 3) === 0;
  const count = aligned ? length >> 2 : 0;
  const wordsA = new Int32Array(a.buffer, aligned ? a.byteOffset : 0, count);
  const wordsB = new Int32Array(b.buffer, aligned ? b.byteOffset : 0, count);
  for (let i = 0; i < count; i++) if (wordsA[i] !== wordsB[i]) return false;
  for (let i = count * 4; i < length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/**
 * Let the program end while a timer is pending, where runtimes support that.
 */
export function unrefTimer(timer: unknown): void {
  platform().unrefTimer(timer);
}

const survived = new Set<string>();

/**
 * Keep a signal from ending the program, where the runtime has signals. There
 * is no way back: Deno delivers signals late, and one that arrived before a
 * listener was removed would end the program afterwards.
 */
export function surviveSignal(signal: string): void {
  if (survived.has(signal)) return;
  survived.add(signal);
  platform().surviveSignal(signal);
}

/** Whether {@linkcode surviveSignal} was called for a signal. */
export function isSurvived(signal: string): boolean {
  return survived.has(signal);
}

/** Turns given to other tasks. */
let turns = 0;

/** Yield to timers, signals and other pending tasks. */
export function giveWay(): Promise<void> {
  // Timers may have to wait behind messages, but not behind `setImmediate`.
  // Accessing that loads a part of Node.js in Deno, which would slow down short
  // programs.
  if (++turns % 4 !== 0) return messageToSelf();
  const { setImmediate } = globalThis as {
    setImmediate?(then: () => void): unknown;
  };
  if (!setImmediate) return messageToSelf();
  return new Promise((resolve) => setImmediate(resolve));
}

/**
 * Resolves soon, but after everything else in this turn of the event loop. A
 * timer would take milliseconds.
 */
export function messageToSelf(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(undefined);
  });
}
