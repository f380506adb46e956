/**
 * What a runtime provides that JavaScript itself does not: modules of Node.js
 * and fast comparison. Native means are looked for when first needed, and portable
 * ones take their place where there are none, as in a browser.
 *
 * @module
 */

interface NativeBuffer {
  compare(a: Uint8Array, b: Uint8Array): number;
}

/** The globals of Node.js, which other runtimes have as well. */
interface NativeGlobals {
  process?: { getBuiltinModule?(name: string): unknown };
  Buffer?: NativeBuffer;
}

let portable = false;
let buffer: NativeBuffer | null | undefined;

/**
 * Pretend that the runtime provides nothing, so that tests see the portable
 * ways.
 */
export function setPortable(value: boolean): void {
  portable = value;
}

function globals(): NativeGlobals {
  return globalThis as NativeGlobals;
}

/**
 * A module of Node.js that the runtime has as well, or `null`. Loading one
 * takes 30 ms and more: ask when it is needed, not before.
 */
export function nativeModule<T>(name: `node:${string}`): T | null {
  if (portable) return null;
  const module = globals().process?.getBuiltinModule?.(name);
  return module as T | undefined ?? null;
}

/**
 * Zero bytes to look at before the runtime's `Buffer` is loaded: that takes some 6 ms,
 * in which the portable way looks at more than this.
 */
const PATIENCE = 64 * 1024 * 1024;

let zeroBytesSeen = 0;

/** Whether all bytes are zero. */
export function isZero(bytes: Uint8Array): boolean {
  const { length } = bytes;
  if (length < 64) return isZeroSlowly(bytes, 0, length);
  // Most data shows at its edges.
  if (bytes[0] !== 0 || bytes[length >> 1] !== 0 || bytes[length - 1] !== 0) {
    return false;
  }
  if (length >= 1024 && zeroBytesSeen >= PATIENCE) {
    const native = nativeBuffer();
    if (native) {
      // All bytes are like the first eight if each is like its eighth next.
      return isZeroSlowly(bytes, 0, 8) && native.compare(
            bytes.subarray(8),
            bytes.subarray(0, length - 8),
          ) === 0;
    }
  }
  const zero = isZeroByWords(bytes);
  if (zero) zeroBytesSeen += length;
  return zero;
}

function nativeBuffer(): NativeBuffer | null {
  if (portable) return null;
  buffer ??= globals().Buffer ?? null;
  return buffer;
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

/** Bytes compared the portable way before the runtime's `Buffer` is loaded. */
let equalBytesSeen = 0;

/** Whether two buffers of one length hold the same bytes. */
export function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  if (equalBytesSeen >= PATIENCE) {
    const native = nativeBuffer();
    if (native) return native.compare(a, b) === 0;
  }
  equalBytesSeen += a.length;
  const { length } = a;
  const aligned = ((a.byteOffset | b.byteOffset) & 3) === 0;
  const count = aligned ? length >> 2 : 0;
  const wordsA = new Int32Array(a.buffer, aligned ? a.byteOffset : 0, count);
  const wordsB = new Int32Array(b.buffer, aligned ? b.byteOffset : 0, count);
  for (let i = 0; i < count; i++) if (wordsA[i] !== wordsB[i]) return false;
  for (let i = count * 4; i < length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Have a timer not keep the program running, where that can be said. */
export function unrefTimer(timer: unknown): void {
  const { Deno } = globalThis as {
    Deno?: { unrefTimer?(timer: unknown): void };
  };
  Deno?.unrefTimer?.(timer);
}
