/**
 * The program of a worker that makes calls of `node:zlib`, and the layout of
 * the memory it shares with the main thread.
 *
 * @module
 */
import type { LibraryCompression } from "./codecs.ts";
import type { LibraryOpener, Zlib } from "./platform/platform.ts";
import type { zlibCompressorOf } from "./zlib_compressor.ts";
import type { compressorOf } from "./zstd_compressor.ts";

/** One call of `node:zlib`, as plain data. */
export interface ZlibCall {
  readonly method:
    | "deflateSync"
    | "inflateRawSync"
    | "deflateRawSync"
    | "zstdDecompressSync"
    | "zstdCompressSync";
  readonly options: { readonly [name: string]: unknown };
  /** How to call libzstd instead. */
  readonly zstd?: LibraryCompression;
  /** How to call libdeflate instead. */
  readonly deflate?: LibraryCompression;
}

/**
 * Most calls queued with the workers: enough to keep them busy while this
 * thread writes results.
 */
export const SLOTS = 64;

/** The layout of the shared memory. Indices count 32-bit words. */
export const LAYOUT = {
  slots: SLOTS,
  /** Bytes of a slot: qcow2's largest cluster, and what compression may add. */
  slotSize: 2 * 1024 * 1024 + 64 * 1024,
  /** Count of submitted calls; workers sleep on it. */
  submitted: 0,
  /** Count of finished calls; the main thread sleeps on it. */
  done: 1,
  /** Number of running workers. */
  alive: 2,
  /** Number of workers ever started. */
  started: 3,
  /** Nonzero when workers are to end. */
  quit: 4,
  /** Number of sleeping workers, and whether the main thread sleeps. */
  asleep: 5,
  waiting: 6,
  /** The first slot; each has its state, and the lengths of call and data. */
  firstSlot: 7,
  slotWords: 3,
  states: { free: 0, ready: 1, taken: 2, done: 3, failed: 4 },
  /** Milliseconds without work after which a worker ends. */
  idle: 1000,
} as const;

/**
 * The worker's program. It is passed on as text, so it must refer to nothing
 * outside. (A separate module would need read permission, and be missing from
 * bundles and compiled programs.)
 */
export function serve(
  layout: typeof LAYOUT,
  openCompressor: typeof compressorOf,
  openZlib: typeof zlibCompressorOf,
  zlib: () => Zlib | null,
  openLibrary: LibraryOpener | undefined,
): void {
  const scope = globalThis as unknown as {
    close(): void;
    onmessage(event: {
      data: { control: Int32Array; memory: Uint8Array };
    }): void;
  };
  const { slots, slotSize, firstSlot, slotWords, states } = layout;
  let next = 0;
  scope.onmessage = ({ data: { control, memory } }) => {
    let compressor: ReturnType<typeof compressorOf> | undefined;
    let deflater: ReturnType<typeof zlibCompressorOf> | undefined;
    const output = (call: ZlibCall, input: Uint8Array): Uint8Array => {
      const { method, options, zstd, deflate } = call;
      if (zstd) {
        const { path } = zstd;
        compressor ??= openCompressor((functions) =>
          openLibrary!(path, functions)
        );
        return compressor(input, zstd.level);
      }
      if (deflate) {
        const { path } = deflate;
        deflater ??= openZlib((functions) => openLibrary!(path, functions));
        return deflater(input, deflate.level);
      }
      // Loaded late, because loading is slow.
      return zlib()![method]!(input, options);
    };
    const make = (slot: number, words: number): number => {
      const start = slot * slotSize;
      const data = start + control[words + 1];
      try {
        const call = JSON.parse(
          new TextDecoder().decode(memory.slice(start, data)),
        );
        const input = memory.subarray(data, data + control[words + 2]);
        const made = output(call, input);
        if (made.length > slotSize) return states.failed;
        memory.set(made, start);
        control[words + 2] = made.length;
        // Otherwise tens of MiB pile up. (Smaller ones may share their memory.)
        const buffer = made.buffer as ArrayBuffer;
        if (buffer.byteLength === call.options.chunkSize) buffer.transfer?.(0);
        return states.done;
      } catch {
        return states.failed;
      }
    };
    const makeAll = (): void => {
      for (let seen = 0; seen < slots; seen++, next = (next + 1) % slots) {
        const words = firstSlot + next * slotWords;
        const { ready, taken } = states;
        if (Atomics.compareExchange(control, words, ready, taken) !== ready) {
          continue;
        }
        Atomics.store(control, words, make(next, words));
        Atomics.add(control, layout.done, 1);
        if (Atomics.load(control, layout.waiting) !== 0) {
          Atomics.notify(control, layout.done);
        }
        seen = 0;
      }
    };
    Atomics.add(control, layout.alive, 1);
    Atomics.add(control, layout.started, 1);
    for (;;) {
      const submitted = Atomics.load(control, layout.submitted);
      makeAll();
      if (Atomics.load(control, layout.quit) !== 0) break;
      const { idle } = layout;
      Atomics.add(control, layout.asleep, 1);
      const woken = Atomics.wait(control, layout.submitted, submitted, idle);
      Atomics.sub(control, layout.asleep, 1);
      if (woken === "timed-out") break;
    }
    Atomics.sub(control, layout.alive, 1);
    // Whoever submits a call checks for workers afterwards: one side notices.
    makeAll();
    scope.close();
  };
}
